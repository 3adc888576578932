import numpy as np
import pytest

import numbagrad as ng
from numbagrad.errors import ShapeError
from numbagrad.layers import Parameter

X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.reshape(4), "6 elements of shape"),
        (lambda x: x.reshape(-1, 4), "6 elements of shape"),
        (lambda x: ng.permute_dims(x, (0, 0)), "each of 2 axes once"),
        (lambda x: ng.squeeze(x, 0), "must have extent 1"),
        (lambda x: ng.expand_dims(x, 3), "axis 3 is out of range"),
        (lambda x: ng.flip(x, 2), "axis 2 is out of range"),
        (lambda x: ng.flip(x, (0, -2)), "names a dimension twice"),
        (lambda x: ng.pad(x, -1), "ints >= 0"),
        (lambda x: ng.pad(x, 1.5), "ints >= 0"),
        (lambda x: ng.pad(x, ((1, 1), (1, 1), (1, 1))), "does not fit shape"),
        (lambda x: ng.split(x, 2, axis=1), "2 equal parts"),
        (lambda x: ng.split(x, [2, 1]), "must ascend"),
        (lambda x: ng.concat([]), "at least one array"),
        (lambda x: ng.concat([x, x[0]]), r"\(2, 3\) and \(3,\)"),
        (lambda x: ng.concat([x, x[:1]], axis=1), "along axis 1 only"),
        (lambda x: ng.stack([x, x[:1]]), "differ"),
        (lambda x: ng.permute_dims(x, 1), "each of 2 axes once"),
        (lambda x: ng.broadcast_to(x, 4), "do not broadcast"),
    ],
)
def test_what_does_not_fit_is_named(function, message):
    with pytest.raises(ShapeError, match=message):
        function(ng.asarray(X))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.reshape(1.0, 6.5), r"reshape: shape must be .* got \(1.0, 6.5\)"),
        (lambda x: ng.permute_dims(x, (0.0, 1.0)), "permute_dims: axes must be an int or a tuple"),
        (lambda x: ng.broadcast_to(x, (2.5, 3)), "broadcast_to: shape must be"),
        (lambda x: x.sum(0.0), "sum: axis must be an int or a tuple of ints, got 0.0"),
        (lambda x: ng.take(x, [0], None), "take: axis must be an int, got None"),
        (lambda x: ng.argmax(x, (0,)), "argmax: axis must be an int"),
        (lambda x: ng.concat(x), "concat: takes a list of arrays, got one array"),
        (lambda x: ng.stack(x.numpy()), "stack: takes a list of arrays, got one array"),
        *[
            (
                lambda x, function=function: function(x.numpy(), 0),
                rf"{function.__name__}: x is a numpy.ndarray; ops take Arrays: .*asarray\(x\)",
            )
            for function in (
                *(ng.sum, ng.mean, ng.max, ng.min, ng.argmax, ng.softmax, ng.log_softmax),
                *(ng.reshape, ng.flatten, ng.expand_dims, ng.squeeze, ng.permute_dims, ng.flip),
                *(ng.pad, ng.split, ng.broadcast_to, ng.take, ng.dropout),
            )
        ],
    ],
)
def test_arguments_of_another_type_are_named(function, message):
    with pytest.raises(TypeError, match=message):
        function(ng.asarray(X))


def test_concat_takes_any_iterable():
    joined = ng.concat(ng.asarray([k]) for k in range(3))
    assert joined.tolist() == [0, 1, 2]


def test_concat_brings_dtypes_together():
    joined = ng.concat([ng.asarray([1, 2]), ng.asarray([0.5])])
    assert joined.dtype == np.float32
    assert joined.tolist() == [1.0, 2.0, 0.5]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_any_number_of_arrays_is_joined_in_order(count):
    parts = [X + k for k in range(count)]
    arrays = [ng.asarray(part) for part in parts]
    np.testing.assert_array_equal(ng.concat(arrays, axis=-1).numpy(), np.concatenate(parts, -1))
    np.testing.assert_array_equal(ng.stack(arrays, axis=1).numpy(), np.stack(parts, 1))


def test_pad_keeps_the_dtype():
    assert ng.pad(ng.asarray([True]), 1).tolist() == [False, True, False]
    assert ng.pad(ng.asarray([3]), 1, value=7).tolist() == [7, 3, 7]


def test_rows_of_a_parameter_are_copied():
    weight = Parameter([[1.0, 2.0], [3.0, 4.0]])
    row, rows = weight[1], weight[:1]
    ng.assign(weight, np.zeros((2, 2)))
    assert (row.tolist(), rows.tolist()) == ([3.0, 4.0], [[1.0, 2.0]])


def test_neighbouring_rows_share_the_buffer():
    x = ng.asarray(X)
    assert np.shares_memory(np.asarray(x), np.asarray(x[1:]))
    assert np.shares_memory(np.asarray(x), np.asarray(x.reshape(3, 2)))


@pytest.mark.parametrize(
    "same",
    [
        lambda x: x[:],
        lambda x: x[...],
        lambda x: x.reshape(2, 3),
        lambda x: x.flatten(1),
        lambda x: ng.permute_dims(x, (0, 1)),
        lambda x: ng.concat([x]),
        lambda x: ng.pad(x, 0),
        lambda x: ng.split(x, 1)[0],
        lambda x: ng.dropout(x, 0.0),
        lambda x: ng.dropout(x, training=False),
    ],
)
def test_a_result_is_another_object(same):
    x = ng.asarray(X)
    y = same(x)
    y[0] = 9.0
    np.testing.assert_array_equal(x.numpy(), X)
