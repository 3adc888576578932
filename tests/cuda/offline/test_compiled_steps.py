"""Compiled steps, planned and emitted without a GPU; their fused kernels, as machine code."""

import numpy as np
import pytest
from cuda_recorder import recording, require_clean

import numbagrad as ng
from numbagrad import kernels_cuda
from numbagrad.cuda_support import compile_offline


def on_gpu(*shape, dtype="float32"):
    return ng.asarray(np.ones(shape, dtype), device="cuda")


def training(model, batch, *shape):
    """Return a training step of a network on a batch of images, after it has run."""
    model = model.to("cuda")
    optimizer = ng.optim.Adam(model.parameters())

    @ng.compile
    def step(images, labels):
        optimizer.zero_grad()
        loss = ng.softmax_cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    step(on_gpu(batch, *shape), on_gpu(batch, dtype="int64"))
    return step


def chain(dtype):
    """Return all kinds of operands and functions in one loop with two results, after it has run."""

    @ng.compile
    def step(x, row, column, number):
        y = ng.gelu(x * row + column) / number
        z = ng.tanh(ng.sigmoid(y) ** 2.5 + ng.log(ng.exp(y) + ng.sqrt(ng.abs(x))))
        w = ng.where((z > row) & ~(y <= z), z, ng.leaky_relu(x))
        return y, ng.maximum(w, column) - ng.erf(x)

    shapes = (300, 7), (7,), (300, 1), ()
    step(*[on_gpu(*shape, dtype=dtype) for shape in shapes])
    return step


STEPS = {
    "resnet8": lambda: training(ng.models.resnet8(), 8, 32, 32, 3),
    "chain, float32": lambda: chain("float32"),
    "chain, float64": lambda: chain("float64"),
}


@pytest.fixture(scope="module", params=STEPS.values(), ids=STEPS)
def recorded(request):
    """Return a compiled step, and its fused kernels with their signatures."""
    with recording() as launches:
        step = request.param()
    own = [pair for pair in launches if pair[0].py_func.__module__ != kernels_cuda.__name__]
    assert own
    return step, sorted(own, key=str)


@pytest.mark.parametrize("cc", [(8, 0), (9, 0)], ids=["sm_80", "sm_90"])
def test_fused_kernels(recorded, cc):
    for kernel, signature in recorded[1]:
        require_clean(compile_offline(kernel, signature, cc), signature)


def test_source_names_each_fused_kernel(recorded):
    step, kernels = recorded
    for kernel, _ in kernels:
        assert f"def {kernel.__name__}(" in step.source
        assert f"    {kernel.__name__.removeprefix('_')}(" in step.source


def test_plan_of_lenet():
    with recording() as launches:
        step = training(ng.models.lenet(), 128, 28, 28, 1)
    report = step.report()
    assert report.planned < report.unplanned
    launchers = {kernel.__name__.removeprefix("_") for kernel, _ in launches}
    assert {"convolution", "max_pool2d_forward", "matmul_forward", "adam_update"} <= launchers
    for name in ("_0_weight", "labels", "conv2d", "max_pool2d"):
        assert name in step.source
