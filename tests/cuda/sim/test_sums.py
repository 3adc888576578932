"""Sums that blocks share: each has a piece, and what they found is put together."""

import numpy as np
import pytest

from numbagrad import cuda_support as cs
from numbagrad import kernels_cuda as kernels

memory = cs.memory()
rng = np.random.default_rng(0)


def on_gpu(*arrays):
    return [memory.from_host(np.asarray(a, np.float32)) for a in arrays]


@pytest.mark.parametrize("pieces", [1, 2, 5])
@pytest.mark.parametrize("shape", [(1, 40, 1), (1, 23, 3), (2, 17, 11), (3, 1, 2), (1, 3, 9)])
def test_sums(shape, pieces):
    outer, reduce, inner = shape
    (x,) = on_gpu(x_host := rng.normal(size=shape).ravel())
    out = memory.empty((outer * inner,), np.float32)
    parts = memory.empty((pieces * out.size if pieces > 1 else 0,), np.float32)
    kernels.sum_forward(x, reduce, inner, np.float32(0.5), out, parts, 0)
    expected = 0.5 * x_host.reshape(shape).sum(1).ravel()
    np.testing.assert_allclose(memory.to_host(out), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize(("rows", "channels"), [(1, 1), (29, 3), (40, 11), (2, 5)])
def test_sums_of_the_gradient_of_batch_norm(rows, channels, pieces):
    x, grad = rng.normal(size=(2, rows, channels))
    mean, var = x.mean(0), x.var(0)
    sums = memory.empty((2, channels), np.float32)
    parts = memory.empty((pieces * sums.size if pieces > 1 else 0,), np.float32)
    args = *on_gpu(x, grad, mean, var), np.float32(1e-5)
    kernels.batch_norm_backward_sums(*args, sums, parts, 0)
    by_weight = (grad * (x - mean)).sum(0) / np.sqrt(var + 1e-5)
    expected = np.stack([grad.sum(0), by_weight])
    np.testing.assert_allclose(memory.to_host(sums), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block", [1, 4, 7])
@pytest.mark.parametrize(("rows", "channels"), [(1, 1), (50, 3), (28, 5), (9, 2)])
def test_statistics_of_blocks_are_those_of_all_rows(rows, channels, block):
    x = 100 + rng.normal(size=(rows, channels))
    parts = [x[first : first + block] for first in range(0, rows, block)]
    means = np.stack([part.mean(0) for part in parts])
    squares = np.stack([((part - part.mean(0)) ** 2).sum(0) for part in parts])
    mean, var = memory.empty((channels,), np.float32), memory.empty((channels,), np.float32)
    kernels.batch_norm_statistics(*on_gpu(means, squares), block, rows, mean, var, 0)
    np.testing.assert_allclose(memory.to_host(mean), x.mean(0), rtol=1e-6)
    np.testing.assert_allclose(memory.to_host(var), x.var(0), rtol=1e-4, atol=1e-7)
