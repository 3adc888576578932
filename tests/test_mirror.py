"""Both kernel files hold the same kernels under the same names."""

import inspect

import pytest

import numbagrad  # noqa: F401  (fills the registry)
from numbagrad import dispatch, kernels_cpu, kernels_cuda


def public(module, kind):
    """Return what a kernel file defines itself under public names."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and isinstance(value, kind)
        and value.__module__ == module.__name__
    }


KERNELS = public(kernels_cpu, type(kernels_cpu.add_forward))
LAUNCHERS = public(kernels_cuda, type(kernels_cuda.add_forward))
USED = {op.name: op.kernel for op in dispatch.registry.values() if isinstance(op.kernel, str)}


def parameters(function):
    return list(inspect.signature(function).parameters)


def test_same_names():
    assert set(KERNELS) == set(LAUNCHERS)


@pytest.mark.parametrize("name", KERNELS)
def test_same_parameters(name):
    assert parameters(LAUNCHERS[name]) == [*parameters(KERNELS[name].py_func), "stream"]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_kernel_stands_beside_its_launcher(name):
    kernel = getattr(kernels_cuda, "_" + name)
    assert isinstance(kernel, type(kernels_cuda._add_forward))
    assert not kernel.targetoptions["device"]


@pytest.mark.parametrize("name", KERNELS)
def test_all_are_documented(name):
    assert KERNELS[name].__doc__
    assert LAUNCHERS[name].__doc__
    assert getattr(kernels_cuda, "_" + name).__doc__


def test_kernels_serve_ops_and_ops_name_kernels():
    assert set(KERNELS) == set(USED.values())
