"""Pooling beyond its cases: equal elements, NaN, infinities, threads, error messages."""

import numpy as np
import pytest

import numbagrad as ng
from numbagrad.errors import DTypeError, ShapeError

POOLS = [ng.max_pool2d, ng.avg_pool2d]


def image(rows):
    return ng.asarray(np.array(rows, np.float32)[None, :, :, None], requires_grad=True)


def test_the_first_of_equal_elements_takes_the_gradient():
    x = image([[1, 2, 2], [2, 2, 0]])
    ng.max_pool2d(x, 2, stride=1).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy()[0, :, :, 0], [[0, 2, 0], [0, 0, 0]])


def test_the_first_nan_wins():
    x = image([[np.nan, 9], [np.nan, 1]])
    out = ng.max_pool2d(x, 2)
    assert np.isnan(out.numpy()).all()
    out.backward(image([[1]]))
    np.testing.assert_array_equal(x.grad.numpy()[0, :, :, 0], [[1, 0], [0, 0]])


def test_padding_never_wins():
    x = image([[-np.inf, -2], [-3, -4]])
    out = ng.max_pool2d(x, 2, stride=2, padding=1)
    np.testing.assert_array_equal(out.numpy()[0, :, :, 0], x.numpy()[0, :, :, 0])
    out.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), np.ones((1, 2, 2, 1)))


def test_padding_counts_in_a_mean():
    out = ng.avg_pool2d(image([[4, 8], [12, 16]]), 2, stride=2, padding=1)
    np.testing.assert_array_equal(out.numpy()[0, :, :, 0], [[1, 2], [3, 4]])


@pytest.mark.parametrize("pool", POOLS)
def test_bits_do_not_depend_on_threads(pool):
    x = np.random.default_rng(0).normal(size=(24, 32, 32, 20)).astype(np.float32)

    def run():
        array = ng.asarray(x, requires_grad=True)
        out = pool(array, 3, stride=2, padding=1)
        (out * out).sum().backward()
        return out.numpy(), array.grad.numpy()

    threads = ng.get_num_threads()
    try:
        ng.set_num_threads(1)
        alone = run()
    finally:
        ng.set_num_threads(threads)
    for one, several in zip(alone, run(), strict=True):
        np.testing.assert_array_equal(one, several)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(
    ("shape", "window", "error", "message"),
    [
        ((4, 4, 3), {"kernel_size": 2}, ShapeError, r"x must be \(n, h, w, c\)"),
        ((1, 0, 4, 3), {"kernel_size": 2}, ShapeError, "h, w >= 1"),
        ((1, 2, 4, 3), {"kernel_size": 3}, ShapeError, "3 x 3 does not fit .* 2 x 4"),
        ((1, 4, 4, 3), {"kernel_size": 0}, ValueError, "kernel_size must .* got 0"),
        ((1, 4, 4, 3), {"kernel_size": 2, "stride": 0}, ValueError, "stride must"),
        ((1, 4, 4, 3), {"kernel_size": 2.0}, TypeError, "kernel_size must be an int .* got 2.0"),
        ((1, 4, 4, 3), {"kernel_size": None}, TypeError, "kernel_size must be an int"),
        ((1, 4, 4, 3), {"kernel_size": (2,)}, ValueError, "a pair of them"),
        ((1, 4, 4, 3), {"kernel_size": 2, "padding": -1}, ValueError, "padding must"),
        ((1, 4, 4, 3), {"kernel_size": (3, 2), "padding": (1, 2)}, ValueError, "half"),
    ],
)
def test_errors_say_what_would_fit(pool, shape, window, error, message):
    with pytest.raises(error, match=f"{pool.__name__}: .*{message}"):
        pool(ng.asarray(np.zeros(shape, np.float32)), **window)


@pytest.mark.parametrize("pool", POOLS)
def test_what_is_no_array_is_named(pool):
    with pytest.raises(TypeError, match=rf"{pool.__name__}: x is a numpy\.ndarray"):
        pool(np.zeros((1, 2, 2, 1), np.float32), 2)


@pytest.mark.parametrize("pool", POOLS)
def test_integers_are_refused(pool):
    with pytest.raises(DTypeError, match="needs float32 or float64, got int64"):
        pool(ng.asarray(np.zeros((1, 2, 2, 1), np.int64)), 2)
