"""A user's own ops: gradients, shards, errors, and never a stale kernel."""

from types import ModuleType, SimpleNamespace

import numba
import numpy as np
import pytest

import numbagrad as ng
from numbagrad import dispatch
from numbagrad.dispatch import Split, registry
from numbagrad.errors import DeviceError, GraphError, ShapeError
from numbagrad.jit import njit
from numbagrad.testing import check_op


def cube_kernel(x, out):
    for i in range(x.size):
        out[i] = x[i] * x[i] * x[i]


def same(x):
    return x.shape, x.dtype


def elements(call):
    return [Split(call.outputs[0].size, inputs=(1,), outputs=(1,))]


def make_cube(**options):
    options = {"cpu": cube_kernel, "infer": same, "vjp": lambda grad_out, x: grad_out * x * x * 3.0,
               "split": elements} | options  # fmt: skip
    return ng.custom_op("cube", **options)


@pytest.mark.parametrize("kernel", [cube_kernel, njit(cube_kernel), numba.njit(cube_kernel)],
                         ids=["plain", "njit", "numba.njit"])  # fmt: skip
def test_custom_op(kernel):
    cube = make_cube(cpu=kernel)
    reached = check_op(cube, np.linspace(-2, 2, 7), reference=lambda x: x**3)
    assert "cube" in reached


def test_on_threads():
    x = np.linspace(-2, 2, 400_000, dtype=np.float32)
    cube = make_cube()
    np.testing.assert_array_equal(cube(ng.asarray(x)).numpy(), x * x * x)
    (plan,) = cube.op._plans.values()
    assert plan.shards.count > 1


def axpy_kernel(x, y, scale, shift, out):
    for i in range(x.size):
        out[i] = scale * x[i] + y[i] + shift


def axpy_infer(x, y, *, scale, shift=0):
    if x.shape != y.shape:
        raise ShapeError(f"axpy: shapes {x.shape} and {y.shape} differ")
    return x.shape, x.dtype


axpy = ng.custom_op(
    "axpy",
    cpu=axpy_kernel,
    infer=axpy_infer,
    vjp=lambda grad_out, scale: (grad_out * scale, grad_out),
)


def test_parameters():
    x, y = np.arange(3.0), np.ones(3)
    check_op(
        lambda x, y: axpy(x, y, shift=2, scale=0.1), x, y, reference=lambda x, y: x * 0.1 + y + 2
    )


def test_float_parameters_take_the_arrays_dtype():
    axpy(ng.asarray([1.0]), ng.asarray([1.0]), scale=0.1)
    types = [str(t) for signature in axpy.op.kernel["cpu"].signatures for t in signature]
    assert "float64" not in types or any("float64, 1d" in t for t in types)
    assert "float32" in types


def test_declared_again():
    first, second = make_cube(), make_cube()
    assert registry["cube"] is second.op is not first.op


X = ng.asarray([1.0, 2.0])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: axpy(X, scale=1.0), TypeError, "axpy: takes inputs x, y; got 1 arrays"),
        (lambda: axpy(X, 3.0, scale=1.0), TypeError, "axpy: y is a float; ops take Arrays"),
        (lambda: axpy(X, X), TypeError, "axpy: parameter 'scale' is missing"),
        (lambda: axpy(X, X, scal=1), TypeError, "axpy: no parameter 'scal'; did you mean 'scale'"),
        (lambda: axpy(X, ng.asarray(1.0), scale=1.0), ShapeError, r"axpy: shapes \(2,\) and \(\)"),
        (lambda: make_cube(infer=lambda x: x.shape)(X), TypeError,
         r"cube: infer must return \(shape, dtype\), got \(2,\)"),
        (lambda: make_cube(infer=lambda x, y: None), TypeError,
         "cube: the CPU kernel's arguments must be x, y, out .* got x, out"),
        (lambda: make_cube(infer=lambda: None), TypeError, "cube: infer must take at least one"),
        (lambda: ng.custom_op("exp", cpu=cube_kernel, infer=same), ValueError,
         "custom_op: 'exp' is a built-in op"),
        (lambda: make_cube(vjp=lambda grad_out, xx: None), TypeError, "cube: vjp asks for 'xx'"),
    ],
)  # fmt: skip
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("vjp", "error", "message"),
    [
        (lambda grad_out: (grad_out, grad_out), GraphError, "cube: its vjp returned 2 gradients"),
        (lambda grad_out: grad_out.sum(), ShapeError, r"cube: its vjp gave .* shape \(\)"),
        (lambda grad_out: grad_out.numpy(), TypeError, "cube: its vjp gave a ndarray"),
    ],
)
def test_wrong_vjp(vjp, error, message):
    x = ng.asarray([1.0, 2.0], requires_grad=True)
    with pytest.raises(error, match=message):
        make_cube(vjp=vjp)(x).sum().backward()


def test_without_gradient():
    assert not make_cube(vjp=None)(ng.asarray([1.0], requires_grad=True)).requires_grad


# ------------------------------------------------------------ never a stale kernel


@pytest.fixture
def notebook():
    """Run cells of source text in one namespace, as a notebook does."""
    namespace = {
        "__name__": "notebook",
        "ng": ng,
        "njit": njit,
        "numba": numba,
        "elements": elements,
    }
    return SimpleNamespace(
        run=lambda source: exec(source, namespace),
        value=lambda name: namespace[name],
        set=namespace.__setitem__,
    )


KERNEL = """
def kernel(x, out):
    for i in range(x.size):
        out[i] = inner(x[i]) * FACTOR

op = ng.custom_op(
    "celled", cpu={decorate}(kernel), infer=lambda x: (x.shape, x.dtype), split=elements
)
"""


@pytest.mark.parametrize("decorate", ["", "njit", "numba.njit"])
def test_cells_run_again(notebook, decorate):
    notebook.run("FACTOR = 1")
    notebook.run("@njit\ndef innermost(v): return v + 1")
    notebook.run("@numba.njit\ndef inner(v): return innermost(v)")
    notebook.run(KERNEL.format(decorate=decorate))
    op, x = notebook.value("op"), ng.asarray([3.0])
    assert op(x).item() == 4
    notebook.run("@njit\ndef innermost(v): return v + 2")  # called by what the kernel calls
    assert op(x).item() == 5
    notebook.run("@numba.njit\ndef inner(v): return v * v")
    assert op(x).item() == 9
    notebook.run("FACTOR = 10")
    assert op(x).item() == 90


def test_function_in_a_module_of_a_module(notebook):
    outer, deep = ModuleType("outer"), ModuleType("deep")
    outer.deep = deep
    notebook.run("FACTOR = 1\n@njit\ndef inner(v): return outer.deep.f(v)")
    notebook.set("outer", outer)
    deep.f = njit(lambda v: v + 1)
    notebook.run(KERNEL.format(decorate=""))
    op = notebook.value("op")
    assert op(X).tolist() == [2, 3]
    deep.f = njit(lambda v: v + 2)
    assert op(X).tolist() == [3, 4]


def test_constant_changed_on_threads(notebook):
    notebook.run("FACTOR = 2\n@njit\ndef inner(v): return v + 1")
    notebook.run(KERNEL.format(decorate=""))
    op, x = notebook.value("op"), ng.asarray(np.ones(200_000, np.float32))
    assert op(x).max().item() == 4
    notebook.run("FACTOR = 3")
    assert op(x).max().item() == 6


def test_helper_with_an_error(notebook):
    notebook.run("FACTOR = 1\n@njit\ndef inner(v): return v + 1")
    notebook.run(KERNEL.format(decorate=""))
    op = notebook.value("op")
    assert op(X).tolist() == [2.0, 3.0]
    notebook.run("@njit\ndef inner(v): return v.nothing")
    for _ in range(2):
        with pytest.raises(numba.TypingError, match="nothing"):
            op(X)
    notebook.run("@njit\ndef inner(v): return v + 5")
    assert op(X).tolist() == [6.0, 7.0]


def test_no_cuda_kernel():
    with pytest.raises(DeviceError, match="cube has no kernel for device 'cuda'"):
        dispatch.find_kernel(make_cube().op, "cuda")
