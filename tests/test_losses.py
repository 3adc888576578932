"""Softmax and losses: what errors say, and extreme values."""

import numpy as np
import pytest

import numbagrad as ng
from numbagrad.errors import DTypeError, ShapeError


def floats(*shape):
    return ng.asarray(np.ones(shape, np.float32))


def test_large_logits_do_not_overflow():
    x = ng.asarray([[3e38, -3e38, 0.0]])
    np.testing.assert_array_equal(ng.softmax(x).numpy(), [[1, 0, 0]])
    loss = ng.softmax_cross_entropy(ng.asarray([[1e4, 0.0]]), ng.asarray([1]))
    assert loss.item() == 1e4


def test_small_losses_keep_their_digits():
    loss = ng.softmax_cross_entropy(ng.asarray([[15.0, 0.0]]), ng.asarray([0]))
    assert loss.item() == pytest.approx(np.log1p(np.exp(-15.0)), rel=0.2)


@pytest.mark.parametrize("smoothing", [-0.1, 1.5, float("nan")])
def test_label_smoothing_is_a_share(smoothing):
    with pytest.raises(ValueError, match="label_smoothing must be from 0 to 1"):
        ng.softmax_cross_entropy(floats(2, 3), ng.asarray([0, 1]), label_smoothing=smoothing)


def test_nan_spreads_over_its_row_only():
    x = np.zeros((2, 40), np.float32)
    for column in (0, 39):
        x[0] = 0
        x[0, column] = np.nan
        out = ng.softmax(ng.asarray(x)).numpy()
        assert np.isnan(out[0]).all()
        np.testing.assert_array_equal(out[1], np.float32(1 / 40))


def test_probabilities_add_up_to_one():
    x = np.random.default_rng(0).normal(size=(7, 1000)).astype(np.float32) * 5
    np.testing.assert_allclose(ng.softmax(ng.asarray(x)).numpy().sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize("bad", [3, -1])
@pytest.mark.parametrize("dtype", ["int64", "int8"])
def test_a_label_out_of_range(bad, dtype):
    labels = np.array([[0, 1], [bad, bad]], dtype)
    message = rf"labels\[1, 0\] is {bad}; with logits of shape \(2, 2, 3\) labels go from 0 to 2"
    with pytest.raises(IndexError, match=message):
        ng.softmax_cross_entropy(floats(2, 2, 3), ng.asarray(labels))


def test_the_first_bad_label_of_all_shards_is_named():
    labels = np.zeros(20_000, np.int64)
    labels[[9_000, 19_000]] = 99
    with pytest.raises(IndexError, match=r"labels\[9000\] is 99"):
        ng.softmax_cross_entropy(floats(20_000, 10), ng.asarray(labels))


@pytest.mark.parametrize("function", [ng.softmax, ng.log_softmax])
@pytest.mark.parametrize("axis", [None, (0,), 1.0])
def test_softmax_takes_one_axis(function, axis):
    with pytest.raises(TypeError, match=rf"{function.__name__}: axis must be an int, got"):
        function(floats(2, 3), axis)


def test_cross_entropy_refuses():
    labels = ng.asarray([0, 1])
    with pytest.raises(TypeError, match="softmax_cross_entropy: labels is a list"):
        ng.softmax_cross_entropy(floats(2, 2), [0, 1])
    with pytest.raises(ShapeError, match=r"need labels of shape \(3,\).* got \(2,\)"):
        ng.softmax_cross_entropy(floats(3, 2), labels)
    with pytest.raises(DTypeError, match="labels must be integers, got float32"):
        ng.softmax_cross_entropy(floats(2, 2), floats(2))
    with pytest.raises(DTypeError, match="needs float32 or float64, got int64"):
        ng.softmax_cross_entropy(ng.asarray([[1, 2], [3, 4]]), labels)
    with pytest.raises(ShapeError, match="no classes"):
        ng.softmax_cross_entropy(floats(2, 0), labels)
    with pytest.raises(ShapeError, match="the mean of no losses"):
        ng.softmax_cross_entropy(floats(0, 2), ng.asarray(np.zeros(0, np.int64)))
    with pytest.raises(ValueError, match="'mean', 'sum' or 'none', got 'avg'"):
        ng.softmax_cross_entropy(floats(2, 2), labels, reduction="avg")


def test_mse_refuses():
    with pytest.raises(ShapeError, match=r"x \(3, 1\) and target \(3,\) must have one shape"):
        ng.mse_loss(floats(3, 1), floats(3))
    with pytest.raises(DTypeError, match="needs float32 or float64, got int64"):
        ng.mse_loss(ng.asarray([1]), ng.asarray([2]))
    with pytest.raises(ShapeError, match="the mean of no losses"):
        ng.mse_loss(floats(0), floats(0))


def test_softmax_refuses():
    with pytest.raises(ShapeError, match="softmax: axis 2 is out of range"):
        ng.softmax(floats(2, 3), 2)
    with pytest.raises(DTypeError, match="log_softmax: needs float32 or float64, got int64"):
        ng.log_softmax(ng.asarray([1, 2]))
