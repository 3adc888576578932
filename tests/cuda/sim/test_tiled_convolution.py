"""Convolutions in tiles on the simulator: middle tiles, pieces of the sum, groups, strides."""

import numpy as np
import pytest
from cases.convolution import reference, reference_gradients

from numbagrad import cuda_support as cs
from numbagrad import kernels_cuda as kernels

memory = cs.memory()

rng = np.random.default_rng(6)

# x, weight, stride, padding, dilation, groups
SHAPES = {
    "middle tiles": ((1, 5, 7, 3), (2, 2, 3, 9), (1, 1), (1, 0), (1, 1), 1),
    "four at a time": ((1, 4, 4, 4), (3, 3, 4, 8), (1, 1), (1, 1), (1, 1), 1),
    "groups, strided": ((2, 5, 4, 4), (2, 3, 2, 12), (2, 1), (1, 1), (1, 1), 2),
    "dilated, one channel": ((2, 5, 6, 1), (2, 2, 1, 5), (1, 2), (2, 1), (2, 1), 1),
    "depthwise": ((3, 4, 4, 3), (2, 2, 1, 3), (1, 1), (0, 1), (1, 1), 3),
}


def with_relu(*args):
    *others, out, parts, stream = args
    kernels.conv2d_forward(*others, True, out, parts, stream)


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_convolution(shape, pieces):
    x_shape, weight_shape, *window, groups = shape
    names = dict(zip(("stride", "padding", "dilation"), window), groups=groups)
    x, weight, bias = (rng.normal(size=s) for s in (x_shape, weight_shape, weight_shape[3:]))
    out = reference(x, weight, bias, **names)
    grad_out = rng.normal(size=out.shape)
    grad_x, grad_weight = reference_gradients(x, weight, grad_out, **names)
    gpu = [memory.from_host(a.astype(np.float32)) for a in (x, weight, bias, grad_out, np.zeros(0))]
    on_x, on_weight, on_bias, on_grad, none = gpu
    for launcher, args, expected in (
        (kernels.conv2d_forward, (on_x, on_weight, on_bias, none), out),
        (with_relu, (on_x, on_weight, on_bias, none), np.maximum(out, 0)),
        (kernels.conv2d_backward_input, (on_grad, on_weight, none), grad_x),
        (kernels.conv2d_backward_weight, (on_x, on_grad), grad_weight),
    ):
        result = memory.empty(expected.shape, np.float32)
        parts = memory.empty(pieces * expected.size if pieces > 1 else 0, np.float32)
        relu = [False] if launcher is kernels.conv2d_forward else []
        launcher(*args, *window, groups, *relu, result, parts, 0)
        np.testing.assert_allclose(memory.to_host(result), expected, rtol=1e-4, atol=1e-5)
