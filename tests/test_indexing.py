import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import numbagrad as ng
from numbagrad.array import Spec
from numbagrad.compiler.trace import trace
from numbagrad.errors import DeviceError, DTypeError, GraphError, ShapeError, TraceError
from numbagrad.layers import Parameter

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)

EXAMPLES = settings(derandomize=True, max_examples=60, deadline=None, database=None)


# ------------------------------------------------------------- against NumPy


def assert_reads_and_writes_like_numpy(values, key):
    x = ng.asarray(values)
    expected = values[key]
    np.testing.assert_array_equal(x[key].numpy(), expected, strict=True)

    written = -1 - np.arange(expected.size, dtype=values.dtype).reshape(expected.shape)
    x[key] = written
    changed = values.copy()
    changed[key] = written
    np.testing.assert_array_equal(x.numpy(), changed, strict=True)


def arange(shape):
    return np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)


@EXAMPLES
@given(st.data())
def test_basic_keys(data):
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    key = data.draw(hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))
    assert_reads_and_writes_like_numpy(arange(shape), key)


@EXAMPLES
@given(st.data())
def test_keys_with_arrays(data):
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=4))
    drawn = data.draw(hnp.broadcastable_shapes((2, 3), max_dims=2, max_side=3))
    kinds = data.draw(st.lists(st.sampled_from("iis:"), min_size=1, max_size=len(shape)))
    key = []
    for kind, extent in zip(kinds, shape, strict=False):
        if kind == "i":
            numbers = st.integers(-extent, extent - 1)
            key.append(data.draw(hnp.arrays(np.int64, drawn, elements=numbers)))
        elif kind == "s":
            key.append(data.draw(st.integers(-extent, extent - 1)))
        else:
            key.append(data.draw(st.slices(extent)))
    assert_reads_and_writes_like_numpy(arange(shape), tuple(key))


@EXAMPLES
@given(st.data())
def test_masks(data):
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3))
    axes = data.draw(st.integers(1, len(shape)))
    mask = data.draw(hnp.arrays(bool, shape[:axes]))
    assert_reads_and_writes_like_numpy(arange(shape), mask)


# ------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (2, r"index 2 is out of range for axis 0 of shape \(2, 3, 4\)"),
        ((0, -4), "index -4 is out of range for axis 1"),
        ((0, 0, 0, 0), "an index for 4 axes"),
        ((..., 0, ...), "2 '...' do not fit"),
        (1.5, "cannot index with float"),
        (True, "cannot index with bool"),
        ("a", "cannot index with str"),
        (np.zeros(2), "cannot index with 1-d float64"),
        (np.ones((3, 2), bool), r"mask of shape \(3, 2\)"),
        (([0, 1], [0, 1, 2]), "do not broadcast"),
        ([[0, 1], [0, 2]], r"index 2 at position \(1, 1\) .* extent 2; valid are -2 to 1"),
        (([0, 1], [0, -4]), r"index -4 at position \(1,\) .* extent 3"),
        ((slice(None), slice(0, 0), [0, 4]), r"index 4 at position \(1,\) .* extent 4"),
    ],
)
def test_a_bad_key_is_an_index_error(key, message):
    x = ng.asarray(X)
    with pytest.raises(IndexError, match=message):
        x[key]
    with pytest.raises(IndexError, match=message):
        x[key] = 0.0
    np.testing.assert_array_equal(x.numpy(), X)


def test_nothing_moves_to_serve_as_an_index():
    x = ng.asarray(X)
    elsewhere = [ng.Array(None, Spec((2,), np.dtype(kind), "cuda")) for kind in ("bool", "int64")]
    for key in elsewhere:
        with pytest.raises(DeviceError, match=r"indexing: .* 'cpu' and 'cuda'"):
            x[key]
        with pytest.raises(DeviceError, match=r"indexing: .* 'cpu' and 'cuda'"):
            x[key] = 0.0


def test_an_empty_axis_has_no_valid_index():
    with pytest.raises(IndexError, match="it has no elements"):
        ng.take(ng.asarray(np.zeros((2, 0))), [0], axis=1)


def test_take_wants_integers():
    with pytest.raises(DTypeError, match="integers, got float32"):
        ng.take(ng.asarray(X), ng.asarray([0.0]))


def test_the_first_bad_index_is_named_from_shards_too():
    x = ng.asarray(np.zeros((10, 4000), np.float32))
    indices = np.zeros(400, np.int64)
    indices[[250, 390]] = 11, 12
    with pytest.raises(IndexError, match=r"index 11 at position \(250,\)"):
        x[indices]


def test_a_value_that_does_not_fit_is_a_shape_error():
    x = ng.asarray(X)
    for key in (0, [0, 1], (0, [1, 2])):
        with pytest.raises(ShapeError, match=r"a value of shape \(5,\) does not broadcast"):
            x[key] = np.zeros(5)


def test_a_0d_array_has_no_rows():
    with pytest.raises(TypeError, match="0-d"):
        iter(ng.asarray(1.0))


# --------------------------------------------------------------- assignment


def test_assignment_leaves_other_objects_alone():
    x = ng.asarray(X)
    row, same = x[0], x.reshape(6, 4)
    x[0] = 0.0
    assert not x[0].numpy().any()
    np.testing.assert_array_equal(row.numpy(), X[0])
    np.testing.assert_array_equal(same.numpy(), X.reshape(6, 4))


def test_a_value_is_cast():
    x = ng.asarray([1, 2, 3])
    x[1:] = ng.asarray([2.5, 3.5])
    assert x.tolist() == [1, 2, 3]


def test_the_last_of_repeated_indices_stays():
    x = ng.asarray([0.0, 0.0])
    x[[1, 1, -1]] = [1.0, 2.0, 3.0]
    assert x.tolist() == [0.0, 3.0]


def test_gradients_before_and_after():
    w = ng.asarray([1.0, 2.0, 3.0], requires_grad=True)
    x = w * 2
    y = x * x
    x[0] = 5.0
    (y.sum() + x.sum()).backward()
    np.testing.assert_array_equal(w.grad.numpy(), [8.0, 18.0, 26.0])


def test_an_array_without_gradients_takes_them_from_the_value():
    w = ng.asarray([3.0], requires_grad=True)
    x = ng.asarray([1.0, 2.0])
    x[1:] = w
    (x * x).sum().backward()
    assert w.grad.tolist() == [6.0]


def test_a_leaf_is_assigned_to_inside_no_grad_only():
    x = ng.asarray([1.0, 2.0], requires_grad=True)
    y = x * x
    with pytest.raises(GraphError, match=r"ng\.copy"):
        x[0] = 5.0
    with ng.no_grad():
        x[0] = 5.0
    y.sum().backward()
    assert x.requires_grad
    assert x.tolist() == [5.0, 2.0]
    assert x.grad.tolist() == [2.0, 4.0]


def test_assignment_without_recording_drops_the_history():
    x = ng.asarray([1.0, 2.0], requires_grad=True)
    y = x * x
    with ng.no_grad():
        y[0] = 5.0
    assert not y.requires_grad


def test_a_function_may_assign_to_its_argument():
    def f(x):
        return (ng.grad(assigned)(x * x)).sum()

    def assigned(x):
        y = x * x
        x[0] = 0.0
        return (x * y).sum()

    x = ng.asarray([2.0, 3.0])
    # With u = x^2: d/du = (0, 3 u_1^2), so d/dx = (0, 6 u_1 2 x_1).
    np.testing.assert_allclose(ng.grad(f)(x).numpy(), [0.0, 324.0])


@pytest.mark.parametrize("key", [0, slice(None, None, -1), np.array([1, 1])])
def test_a_parameter_keeps_its_address(key):
    p = Parameter(np.array([1.0, 2.0], np.float32))
    address = p._data.ctypes.data
    with pytest.raises(GraphError, match="Parameter or Buffer"):
        p[key] = 3.0
    expected = p.numpy()
    expected[key] = expected[key]
    with ng.no_grad():
        p[key] = p[key]
    np.testing.assert_array_equal(p.numpy(), expected)
    assert p._data.ctypes.data == address
    assert p.requires_grad


def test_assignment_is_traced():
    def f(x):
        y = x * 2.0
        y[0] = x[1]
        y[y > 5.0] = 0.0
        return y

    x = ng.asarray([1.0, 2.0, 3.0])
    assert trace(f, x)(x).tolist() == [2.0, 4.0, 0.0]


def test_a_traced_function_cannot_assign_to_what_is_outside():
    outside = ng.asarray([1.0, 2.0])

    def f(x):
        outside[0] = x[0]
        return x

    with pytest.raises(TraceError, match="from outside"):
        trace(f, ng.asarray([1.0]))
    assert outside.tolist() == [1.0, 2.0]


# --------------------------------------------------------------- arithmetic


def test_repeated_indices_add_up_in_order():
    values = np.array([1e8, 1.0, -1e8, 1.0], np.float32)
    x = ng.asarray(np.zeros(2, np.float32), requires_grad=True)
    x[[1, 1, 1, 1]].backward(ng.asarray(values))
    assert x.grad.tolist() == [0.0, 1.0]  # ((1e8 + 1) - 1e8) + 1 in float32
