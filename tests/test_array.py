"""`Array` as a value: making one, reading it, exchanging it, its looks."""

import copy
import pickle

import numpy as np
import pytest

import numbagrad as ng
from numbagrad.array import DTYPES, Spec
from numbagrad.errors import DeviceError, DTypeError, GraphError

L = ng.layers
FLOAT, INT = ng.asarray([[1.0, 2.5], [3.0, 4.0]]), ng.asarray([1, 2, 3])


# ------------------------------------------------------------------- making


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (1.5, "float32"),
        ([1.0, 2.0], "float32"),
        ([[1, 2], [3, 4]], "int64"),
        (True, "bool"),
        ([], "float32"),
        (np.float64(1.5), "float64"),
        (np.array([1.0]), "float64"),
        (np.array([1.0], np.float32), "float32"),
        (np.array([1], ">i4"), "int32"),  # another byte order
    ],
)
def test_asarray_dtype(value, dtype):
    array = ng.asarray(value)
    assert array.dtype == dtype
    assert array.dtype.isnative
    np.testing.assert_array_equal(array.numpy(), value)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype):
    array = ng.asarray([0, 1], dtype=dtype)
    assert array.dtype == dtype
    assert array.tolist() == [0, 1]


@pytest.mark.parametrize("value", [np.array([1 + 2j]), np.array(["a"]), np.array([1], np.float16)])
def test_dtypes_that_are_not_there(value):
    with pytest.raises(DTypeError, match=f"dtype {value.dtype} is not supported; convert to one"):
        ng.asarray(value)


def test_asarray_copies():
    host = np.zeros(3)
    array = ng.asarray(host)
    host[0] = 1
    assert array.tolist() == [0, 0, 0]


@pytest.mark.parametrize("host", [np.arange(12.0).reshape(3, 4).T, np.arange(9)[::-2]])
def test_asarray_of_any_layout(host):
    np.testing.assert_array_equal(ng.asarray(host).numpy(), host)


def test_asarray_of_an_array():
    x = ng.asarray([1.0, 2.0])
    same = ng.asarray(x, requires_grad=True)
    assert same.requires_grad
    assert not x.requires_grad
    assert ng.asarray(x, dtype="float64").dtype == np.float64


def test_astype():
    assert INT.astype("float32").dtype == np.float32
    assert INT.astype("int64").tolist() == INT.tolist()
    assert ng.asarray([-1.7, 1.7]).astype("int32").tolist() == [-1, 1]
    with pytest.raises(DTypeError, match="astype: dtype float16 is not supported"):
        INT.astype("float16")
    with pytest.raises(DTypeError, match=r"astype: dtype flaot32 .* did you mean 'float32'"):
        INT.astype("flaot32")
    with pytest.raises(TypeError, match="astype: dtype must be named, got None"):
        INT.astype(None)


# ------------------------------------------------------------------ reading


def test_attributes():
    assert (FLOAT.shape, FLOAT.ndim, FLOAT.size, FLOAT.nbytes, len(FLOAT)) == ((2, 2), 2, 4, 16, 2)
    assert FLOAT.device == "cpu"
    with pytest.raises(TypeError, match="len\\(\\) of a 0-d array"):
        len(ng.asarray(1.0))


def test_numpy_is_a_copy():
    host = FLOAT.numpy()
    host[0, 0] = 100
    assert FLOAT.numpy()[0, 0] == 1


def test_python_numbers():
    assert ng.asarray([[2.5]]).item() == 2.5
    assert type(ng.asarray(2).item()) is int
    assert type(ng.asarray(True).item()) is bool
    assert (float(ng.asarray(2.5)), int(ng.asarray(2.5)), bool(ng.asarray(0.0))) == (2.5, 2, False)
    assert ["a", "b", "c"][ng.asarray(1)] == "b"


@pytest.mark.parametrize(
    ("read", "error", "message"),
    [
        (lambda: FLOAT.item(), ValueError, r"exactly one element, got shape \(2, 2\)"),
        (lambda: bool(FLOAT), ValueError, r"shape \(2, 2\) has no single truth value"),
        (lambda: float(INT), ValueError, "exactly one element"),
        (lambda: range(ng.asarray(1.0)), TypeError, "only integer arrays can be an index"),
    ],
)
def test_not_one_number(read, error, message):
    with pytest.raises(error, match=message):
        read()


# ----------------------------------------------------------------- exchange


def test_array_is_read_only():
    view = np.asarray(FLOAT)
    assert np.shares_memory(view, FLOAT._data)
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 1
    assert np.array(FLOAT).flags.writeable
    assert np.asarray(FLOAT, dtype="float64").dtype == np.float64
    with pytest.raises(ValueError, match="a view of float32 cannot become float64"):
        np.asarray(FLOAT, dtype="float64", copy=False)


def test_state_is_exported_as_a_copy():
    weight = ng.layers.Parameter([1.0, 2.0])
    view = np.asarray(weight)
    ng.assign(weight, [3.0, 4.0])
    assert view.tolist() == [1, 2]


def test_numpy_operators_leave_it_to_us():
    for result in (np.ones(2) * FLOAT, np.float32(2) + FLOAT, FLOAT - np.ones((2, 1))):
        assert isinstance(result, ng.Array)
    with pytest.raises(TypeError):
        np.add(np.ones(2), FLOAT)


def test_dlpack():
    exported = np.from_dlpack(FLOAT)
    np.testing.assert_array_equal(exported, FLOAT.numpy())
    assert not np.shares_memory(exported, FLOAT._data)


def test_array_namespace():
    assert FLOAT.__array_namespace__() is ng


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_duplicates(duplicate, requires_grad):
    x = ng.asarray([[1.0, 2.0]], requires_grad=requires_grad)
    other = duplicate(x)
    assert (other.spec, other.tolist()) == (x.spec, x.tolist())
    assert other.requires_grad == requires_grad
    assert not np.shares_memory(other._data, x._data)


# ------------------------------------------------------------------ devices


def test_to_the_same_device():
    x = ng.asarray([1.0, 2.0])
    same = x.to("cpu")
    assert np.shares_memory(same._data, x._data)
    same[0] = 5.0
    assert x.tolist() == [1, 2]


def test_gradients_do_not_flow_between_devices(monkeypatch):
    doubled = ng.asarray([1.0, 2.0], requires_grad=True) * 2
    monkeypatch.setattr(ng.device, "resolve", lambda name: name)
    with pytest.raises(GraphError, match=r"from 'cpu' to 'cuda'; .* x\.detach\(\)\.to\('cuda'\)"):
        doubled.to("cuda")


@pytest.mark.parametrize(
    "call",
    [
        lambda: ng.asarray([1.0], device="gpu"),
        lambda: FLOAT.to("gpu"),
        lambda: ng.asarray(FLOAT, device="gpu"),
    ],
)
def test_unknown_device(call):
    with pytest.raises(DeviceError, match=r"unknown device 'gpu'.* Known: auto, cpu, cuda"):
        call()


def test_mixed_devices():
    elsewhere = ng.Array(None, Spec((2,), np.dtype("float32"), "cuda"))
    with pytest.raises(DeviceError, match="add: arrays on different devices, 'cpu' and 'cuda'"):
        ng.asarray([1.0, 2.0]) + elsewhere
    with pytest.raises(DeviceError, match=r"NumPy cannot read .* x.numpy\(\)"):
        np.asarray(elsewhere)


# -------------------------------------------------------------------- looks


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (ng.asarray(1.0), "Array(1., dtype=float32)"),
        (ng.asarray([1, 2]), "Array([1, 2], dtype=int64)"),
        (ng.asarray([True]), "Array([ True], dtype=bool)"),
        (ng.asarray([[1.0], [2.0]]), "Array([[1.],\n       [2.]], dtype=float32)"),
        (ng.asarray(1.0, requires_grad=True), "Array(1., dtype=float32, requires_grad=True)"),
        (ng.asarray(np.zeros((0, 3))), "Array([], shape=(0, 3), dtype=float64)"),
    ],
)
def test_repr(array, text):
    assert repr(array) == text


def test_format():
    assert f"{ng.asarray(0.12345):.3f}" == "0.123"
    assert f"{ng.asarray([[7]]):>3d}" == "  7"
    assert f"{L.Parameter(1.5):.2e}" == "1.50e+00"
    x = ng.asarray([1.0, 2.0])
    assert f"{x}" == str(x)
    with pytest.raises(TypeError, match=r"shape \(2,\).*'\.3f'"):
        f"{x:.3f}"


def test_repr_of_many_elements():
    assert len(repr(ng.asarray(np.zeros((1000, 1000))))) < 1000


def test_html():
    assert "<b>Array</b> (3,) int64 on cpu" in INT._repr_html_()


# ---------------------------------------------------------------- operators


def test_comparisons_are_elementwise():
    assert (INT == 2).tolist() == [False, True, False]
    assert (INT[::-1] != INT).tolist() == [True, False, True]
    narrow = ng.asarray([1, 255], dtype="uint8")
    assert (narrow == -1).tolist() == [False, False]
    assert (narrow < 300).tolist() == [True, True]
    assert (np.int64(-1) < narrow).tolist() == [True, True]
    with pytest.raises(TypeError, match="equal: cannot use NoneType"):
        assert INT == None  # noqa: E711
    assert len({INT, FLOAT}) == 2  # by identity


@pytest.mark.parametrize("other", ["2", None, object()])
def test_operands_that_make_no_sense(other):
    with pytest.raises(TypeError, match=f"multiply: cannot use {type(other).__name__}"):
        INT * other


def test_float32_stays_float32():
    x = ng.asarray([1.0, 2.0])
    numpys = x * np.sqrt(2), np.float64(2) - x, x ** np.float64(0.5), INT * np.float64(2)
    for result in numpys + (
        x * 2.5,
        2 / x,
        x**0.5,
        x + INT[:2],
        x.mean(),
        INT / 2,
        INT * 0.5,
        INT.mean(),
    ):
        assert result.dtype == np.float32


def test_logic_is_for_booleans():
    mask = INT > 1
    assert (mask & True).tolist() == [False, True, True]
    assert (np.array([True, False, True]) ^ mask).tolist() == [True, True, False]
    for combine in (lambda: INT & INT, lambda: mask | INT, lambda: ~INT):
        with pytest.raises(DTypeError, match="needs bool, got int64"):
            combine()


def test_number_that_does_not_fit():
    with pytest.raises(OverflowError, match="300 does not fit uint8"):
        ng.asarray([1], dtype="uint8") + 300
