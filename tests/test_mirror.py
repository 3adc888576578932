"""Both kernel files hold the same kernels under the same names, but for some of the CPU's own."""

import inspect

import pytest
from cases import CASES

from numbagrad import device, dispatch, kernels_cpu, kernels_cuda
from numbagrad.array import asarray
from numbagrad.compiler.trace import trace
from numbagrad.ops.linalg import nothing
from numbagrad.testing import value_and_gradients


def public(module, kind):
    """Return what a kernel file defines itself under public names."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and isinstance(value, kind)
        and value.__module__ == module.__name__
    }


# Kernels without a mirror, with the reason; no op that is chosen on CUDA names one.
_LAYOUT = "lays a matrix out for the CPU's register tiles"
_FASTER = "another way to a result that conv2d's kernels give too"
CPU_ONLY = {
    "conv2d_bank": _LAYOUT,
    "conv2d_bank_turned": _LAYOUT,
    "winograd_bank": _LAYOUT,
    "planar_forward": _FASTER,
    "planar_backward_input": _FASTER,
    "planar_backward_weight": _FASTER,
    "depthwise_forward": _FASTER,
    "depthwise_backward_input": _FASTER,
    "depthwise_backward_weight": _FASTER,
    "winograd_forward": _FASTER,
    "winograd_backward_input": _FASTER,
    "winograd_backward_weight": _FASTER,
}

KERNELS = public(kernels_cpu, type(kernels_cpu.add_forward))
LAUNCHERS = public(kernels_cuda, type(kernels_cuda.add_forward))
USED = {op.name: op.kernel for op in dispatch.registry.values() if isinstance(op.kernel, str)}


def parameters(function):
    return list(inspect.signature(function).parameters)


def test_same_names():
    assert set(KERNELS) - set(CPU_ONLY) == set(LAUNCHERS)
    assert set(CPU_ONLY) <= set(KERNELS)


# Scratch arrays come last, and each device declares its own: (the CPU's, CUDA's).
WORKSPACE = {
    "matmul_forward": (["tables", "panel", "block"], ["parts"]),
    "conv2d_forward": (["padded", "pixels", "taps"], ["parts"]),
    "conv2d_backward_input": (["spread", "pixels", "taps"], ["parts"]),
    "conv2d_backward_weight": (["padded", "tables", "lines", "strip"], ["parts"]),
    "sum_forward": ([], ["parts"]),
    "batch_norm_backward_sums": ([], ["parts"]),
}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_same_parameters(name):
    expected = parameters(KERNELS[name].py_func)
    if name in WORKSPACE:
        own, other = WORKSPACE[name]
        start = len(expected) - len(own)
        assert expected[start:] == own
        expected[start:] = other
    assert parameters(LAUNCHERS[name]) == [*expected, "stream"]


VARIANTS = {
    "matmul_forward": (kernels_cuda.SMALL, kernels_cuda.ALONG, kernels_cuda.ACROSS),
    "conv2d_forward": (kernels_cuda.SMALL, kernels_cuda.ACROSS),
    "conv2d_backward_input": (kernels_cuda.SMALL, True),
    "conv2d_backward_weight": (kernels_cuda.SMALL, kernels_cuda.ACROSS),
}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_kernel_stands_beside_its_launcher(name):
    kernel = getattr(kernels_cuda, "_" + name)
    if name in VARIANTS:  # a function that makes a kernel for each kind of tile and operands
        kernel = kernel(*VARIANTS[name])
    assert isinstance(kernel, type(kernels_cuda._add_forward))
    assert not kernel.targetoptions["device"]


def test_all_are_documented():
    for name, kernel in KERNELS.items():
        assert kernel.__doc__, name
    for name, launcher in LAUNCHERS.items():
        assert launcher.__doc__, name
        assert getattr(kernels_cuda, "_" + name).__doc__, name


def test_kernels_serve_ops_and_ops_name_kernels():
    assert set(KERNELS) == set(USED.values())


class Nowhere(device.CPU):
    """Stands in for the GPU: traces run no kernels, and constants lie in the CPU's memory."""

    name = "cuda"


@pytest.mark.parametrize("family", sorted({family for family, _ in CASES}))
def test_no_op_chosen_on_cuda_needs_the_cpu(family, monkeypatch):
    backend = device.backend
    monkeypatch.setattr(
        device, "backend", lambda name: Nowhere() if name == "cuda" else backend(name)
    )
    for case in (case for name, case in CASES if name == family):
        traced = trace(
            lambda *inputs: value_and_gradients(case.function, inputs, case.grad),  # noqa: B023
            *(asarray(x, device="cuda") for x in case.inputs),
        )
        chosen = {equation.op.kernel for equation in traced.equations}
        assert not chosen & set(CPU_ONLY), case.name
    nothing.cache_clear()  # of arrays that are not on a GPU
