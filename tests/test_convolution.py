"""Convolution beyond its cases: realistic sizes, threads, error messages."""

from dataclasses import replace

import numpy as np
import pytest
from cases.convolution import CASES, CPU_CASES, reference, reference_gradients
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import numbagrad as ng
from numbagrad.errors import DTypeError, ShapeError
from numbagrad.ops import convolution
from numbagrad.testing import check_case, check_op


def random(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def error(result, expected):
    """Return the largest difference, in units of the largest value expected."""
    return np.max(np.abs(result - expected)) / np.max(np.abs(expected))


def with_gradients(x, weight, bias=None, **window):
    """Return conv2d's result and its gradients along a fixed direction, and that direction."""
    given = [array for array in (x, weight, bias) if array is not None]
    arrays = [ng.asarray(array, requires_grad=True) for array in given]
    out = ng.conv2d(*arrays, **window)
    grad_out = random(*out.shape, dtype=x.dtype, seed=7)
    out.backward(ng.asarray(grad_out))
    return [out.numpy(), *(array.grad.numpy() for array in arrays)], grad_out


@pytest.fixture
def no_winograd():
    ng.set_winograd(False)
    yield
    ng.set_winograd(True)


def im2col(x, kernel, stride, padding):
    """Return the windows of x as rows: (n, h, w, r * s * c)."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel, (1, 2))[:, ::stride, ::stride]
    return np.moveaxis(windows, 3, -1).reshape(*windows.shape[:3], -1)


@pytest.mark.parametrize(
    ("image", "filters", "stride", "padding"),
    [
        ((8, 28, 28, 1), (5, 5, 1, 6), 1, 2),
        ((8, 14, 14, 6), (5, 5, 6, 16), 1, 0),
        ((2, 32, 32, 3), (3, 3, 3, 32), 1, 1),
        ((3, 16, 16, 32), (3, 3, 32, 64), 1, 1),
        ((2, 17, 17, 16), (3, 3, 16, 40), 2, 1),
        ((2, 8, 8, 24), (1, 1, 24, 20), 1, 0),
    ],
)
def test_float32_agrees_with_im2col(image, filters, stride, padding):
    x, weight = random(*image), random(*filters, seed=1)
    columns = im2col(x.astype(np.float64), filters[:2], stride, padding)
    matrix = weight.reshape(-1, filters[3]).astype(np.float64)
    a, b = ng.asarray(x, requires_grad=True), ng.asarray(weight, requires_grad=True)
    out = ng.conv2d(a, b, stride=stride, padding=padding)
    assert error(out.numpy(), columns @ matrix) < 2e-5

    grad_out = random(*out.shape, seed=2)
    out.backward(ng.asarray(grad_out))
    grad_matrix = np.tensordot(columns, grad_out, ((0, 1, 2), (0, 1, 2)))
    assert error(b.grad.numpy(), grad_matrix.reshape(filters)) < 2e-5
    # The input's gradient is the adjoint: <grad_out, conv(v)> = <grad_x, v> for any v.
    v = random(*image, seed=3).astype(np.float64)
    expected = np.sum((im2col(v, filters[:2], stride, padding) @ matrix) * grad_out)
    np.testing.assert_allclose(np.sum(a.grad.numpy() * v), expected, rtol=1e-4, atol=1e-2)


@st.composite
def windows(draw):
    """Return shapes and a window that fit: (x, weight, window)."""

    def ints(least, most):
        return draw(st.tuples(st.integers(least, most), st.integers(least, most)))

    groups, depth, each = (draw(st.integers(1, most)) for most in (3, 3, 4))
    x = draw(st.integers(0, 5)), *ints(1, 9), groups * depth
    weight = *ints(1, 4), depth, groups * each
    stride, padding, dilation = ints(1, 4), ints(0, 5), ints(1, 3)
    for k in range(2):
        assume(dilation[k] * (weight[k] - 1) < x[1 + k] + 2 * padding[k])
    return x, weight, dict(stride=stride, padding=padding, dilation=dilation, groups=groups)


def check_against_loops(x, weight, window):
    x, weight = (random(*shape, dtype=np.float64, seed=1) for shape in (x, weight))
    results, grad_out = with_gradients(x, weight, **window)
    expected = reference(x, weight, **window), *reference_gradients(x, weight, grad_out, **window)
    for result, value in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, value, rtol=1e-10, atol=1e-10)


@given(windows())
def test_any_window(drawn):
    check_against_loops(*drawn)


@pytest.fixture
def planes(monkeypatch):
    """Have planes wherever they can be: for many channels and float64 too, on every processor."""
    monkeypatch.setattr(convolution, "_in_planes", lambda columns, itemsize, way: way == "tiles")


@given(windows())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_window_in_planes(planes, drawn):
    check_against_loops(*drawn)


def test_pixels_that_no_window_sees_stay_out_of_planes(planes):
    x = np.ones((1, 3, 4, 1), np.float32)
    x[0, 0, 3, 0] = np.inf
    weight = ng.asarray(np.ones((1, 2, 1, 2), np.float32), requires_grad=True)
    ng.conv2d(ng.asarray(x), weight).sum().backward()
    assert weight.grad[0, :, 0].tolist() == [[9, 9], [np.inf, np.inf]]


IN_PLANES = [
    replace(case, ops=("planar",))
    for case in CASES + CPU_CASES
    if case.ops == ("conv2d",) and "group" not in case.name
]


@pytest.mark.parametrize("case", IN_PLANES, ids=lambda case: case.name)
def test_case_in_planes(planes, case):
    check_case(case)


@st.composite
def winograds(draw):
    """Return what Winograd's algorithm is for."""
    channels = [draw(st.integers(16, 35)) for _ in range(2)]
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    extents = [draw(st.integers(11, 17)) + 2 - 2 * p for p in padding]
    window = dict(stride=(1, 1), padding=padding, dilation=(1, 1), groups=1)
    return (draw(st.integers(2, 4)), *extents, channels[0]), (3, 3, *channels), window


@given(winograds())
def test_any_winograd(drawn):
    x, weight, window = drawn
    assume(convolution._way(x, weight, **window, allowed=True) == "winograd")
    check_against_loops(*drawn)


WAYS = {
    "tiles": ((40, 13, 14, 8), (3, 3, 8, 20), {"padding": 1}),
    "tiles, strided": ((40, 13, 14, 8), (3, 3, 8, 20), {"padding": 1, "stride": 2}),
    "tiles, few channels": ((40, 13, 14, 3), (5, 5, 3, 5), {"padding": 2}),
    "groups": ((40, 13, 14, 8), (3, 3, 4, 20), {"padding": 1, "groups": 2}),
    "depthwise": ((40, 13, 14, 24), (3, 3, 1, 24), {"padding": 1, "groups": 24}),
    "winograd": ((20, 13, 14, 16), (3, 3, 16, 20), {"padding": 1}),
}


@pytest.mark.parametrize("way", WAYS)
def test_bits_do_not_depend_on_threads(way):
    x, weight, window = WAYS[way]
    window = {"stride": 1, "dilation": 1, "groups": 1} | window
    pairs = {name: convolution.pair("", name, value, 0) for name, value in window.items()}
    pairs["groups"] = window["groups"]
    assert way.startswith(convolution._way(x, weight, **pairs, allowed=True))
    arrays = random(*x), random(*weight, seed=1), random(weight[3], seed=2)
    several, _ = with_gradients(*arrays, **window)
    threads = ng.get_num_threads()
    try:
        ng.set_num_threads(1)
        alone, _ = with_gradients(*arrays, **window)
    finally:
        ng.set_num_threads(threads)
    for one, other in zip(alone, several, strict=True):
        np.testing.assert_array_equal(one, other)


# --------------------------------------------------------- Winograd's algorithm

# Largest errors of the output and of both gradients, in units of the largest value.
PLAIN_ERROR, WINOGRAD_ERROR = 2e-6, 2e-5


def errors(channels):
    """Return float32's errors on numbers of variance 1."""
    x, weight = random(2, 20, 20, channels), random(3, 3, channels, channels, seed=1)
    results, _ = with_gradients(x, weight, padding=1)
    exact, _ = with_gradients(x.astype(np.float64), weight.astype(np.float64), padding=1)
    return [error(result, value) for result, value in zip(results, exact, strict=True)]


@pytest.mark.parametrize("channels", [16, 32, 64, 128])
def test_winograds_error(channels):
    largest = max(errors(channels))
    # Below the upper bound, as documented; above the lower, or another algorithm ran.
    assert PLAIN_ERROR < largest < WINOGRAD_ERROR


@pytest.mark.parametrize("channels", [16, 32, 64, 128])
def test_error_without_winograd(channels, no_winograd):
    assert not ng.get_winograd()
    assert max(errors(channels)) < PLAIN_ERROR


def test_winograd_is_exact_but_for_rounding(no_winograd):
    x, weight = (random(*shape, dtype=np.float64) for shape in [(2, 14, 13, 24), (3, 3, 24, 33)])
    plain, _ = with_gradients(x, weight, padding=(2, 1))
    ng.set_winograd(True)
    fast, _ = with_gradients(x, weight, padding=(2, 1))
    for result, expected in zip(fast, plain, strict=True):
        assert 0 < error(result, expected) < 1e-12


def test_winograd_a_few_tiles_at_a_time(monkeypatch):
    monkeypatch.setattr(convolution, "WINOGRAD_BYTES", 0)  # as few as there may be
    x, weight = random(5, 11, 12, 17, dtype=np.float64), random(3, 3, 17, 16, dtype=np.float64)
    f = lambda x, weight: ng.conv2d(x, weight, padding=1)  # noqa: E731
    reached = check_op(f, x, weight, reference=lambda x, weight: reference(x, weight, padding=1))
    assert "winograd" in reached


def test_bits_do_not_depend_on_the_place_in_the_image():
    patch, weight = random(1, 3, 3, 5), random(3, 3, 5, 7, seed=1)
    x = np.tile(patch, (2, 5, 7, 1))
    out = ng.conv2d(ng.asarray(x), ng.asarray(weight), stride=3).numpy()
    np.testing.assert_array_equal(out, np.broadcast_to(out[:1, :1, :1], out.shape))


def test_a_missing_bias_is_a_bias_of_zeros():
    x, weight = ng.asarray(random(1, 4, 4, 2)), ng.asarray(random(3, 3, 2, 3))
    with_zeros = ng.conv2d(x, weight, ng.asarray(np.zeros(3, np.float32)))
    np.testing.assert_array_equal(ng.conv2d(x, weight).numpy(), with_zeros.numpy())


@pytest.mark.parametrize(
    ("x", "weight", "bias", "window", "error", "message"),
    [
        ((4, 4, 3), (3, 3, 3, 8), None, {}, ShapeError, r"x must be \(n, h, w, c\)"),
        ((1, 4, 4, 3), (3, 3, 8), None, {}, ShapeError, r"weight \(r, s, c / groups, k\)"),
        ((1, 4, 4, 3), (3, 3, 2, 8), None, {}, ShapeError, "has 3 channels, .* takes 2"),
        ((1, 4, 4, 4), (3, 3, 2, 5), None, {"groups": 2}, ShapeError, "multiples of groups"),
        ((1, 4, 4, 4), (3, 3, 4, 8), None, {"groups": 2}, ShapeError, "takes 8 and gives 8"),
        ((1, 4, 4, 3), (0, 3, 3, 8), None, {}, ShapeError, "empty window"),
        ((1, 4, 4, 3), (5, 3, 3, 8), None, {}, ShapeError, "5 x 3 does not fit .* 4 x 4"),
        ((1, 4, 4, 3), (3, 3, 3, 8), None, {"dilation": 2}, ShapeError, "5 x 5 does not fit"),
        ((1, 4, 4, 3), (3, 3, 3, 8), (3,), {}, ShapeError, r"bias \(3,\) must have shape \(8,\)"),
        ((1, 4, 4, 3), (3, 3, 3, 8), None, {"stride": 0}, ValueError, "stride must .* got 0"),
        ((1, 4, 4, 3), (3, 3, 3, 8), None, {"dilation": (1, 0)}, ValueError, "dilation must"),
        ((1, 4, 4, 3), (3, 3, 3, 8), None, {"padding": -1}, ValueError, "padding must .* >= 0"),
        ((1, 4, 4, 3), (3, 3, 3, 8), None, {"padding": (1, 1, 1)}, ValueError, "a pair of them"),
        ((1, 4, 4, 3), (3, 3, 3, 8), None, {"padding": "same"}, TypeError, "got 'same'"),
        ((1, 4, 4, 3), (3, 3, 3, 8), None, {"stride": 1.5}, TypeError, "stride .* got 1.5"),
        ((1, 4, 4, 3), (3, 3, 3, 8), None, {"stride": 3.0}, TypeError, "stride .* got 3.0"),
        ((1, 4, 4, 3), (3, 3, 3, 8), None, {"stride": None}, TypeError, "stride .* got None"),
        ((1, 4, 4, 3), (3, 3, 3, 8), None, {"stride": (3,)}, ValueError, r"got \(3,\)"),
        ((4, 4), (3, 3, 3, 8), None, {}, ShapeError, r"x must be \(n, h, w, c\)"),
        ((1, 4, 4, 3), (3, 3, 3, 8), (0,), {}, ShapeError, r"bias \(0,\) must have shape \(8,\)"),
        ((1, 4, 4, 3), (3, 3, 3, 8), None, {"groups": 0}, ValueError, "groups must"),
    ],
)
def test_errors_say_what_would_fit(x, weight, bias, window, error, message):
    arrays = [ng.asarray(random(*shape)) for shape in (x, weight, bias) if shape is not None]
    with pytest.raises(error, match=f"conv2d: .*{message}"):
        ng.conv2d(*arrays, **window)


def test_what_is_no_array_is_named():
    x, weight = random(1, 4, 4, 3), random(3, 3, 3, 8)
    with pytest.raises(TypeError, match=r"conv2d: x is a numpy\.ndarray; ops take Arrays"):
        ng.conv2d(x, ng.asarray(weight))
    with pytest.raises(TypeError, match="conv2d: bias is a float"):
        ng.conv2d(ng.asarray(x), ng.asarray(weight), 1.0)


def test_numpy_integers_are_ints():
    x, weight = ng.asarray(random(1, 5, 5, 1)), ng.asarray(random(2, 2, 1, 1))
    assert ng.conv2d(x, weight, stride=np.int64(3)).shape == (1, 2, 2, 1)


def test_dtypes_are_not_mixed():
    x = ng.asarray(random(1, 3, 3, 1))
    with pytest.raises(DTypeError, match="conv2d: operands have dtypes float32 and float64"):
        ng.conv2d(x, ng.asarray(random(3, 3, 1, 1, dtype=np.float64)))
    with pytest.raises(DTypeError, match="conv2d: needs float32 or float64, got int64"):
        ng.conv2d(x.astype("int64"), ng.asarray(random(3, 3, 1, 1)))


@pytest.mark.parametrize("on", ["no", 0, None])
def test_set_winograd_takes_a_bool(on):
    before = ng.get_winograd()
    with pytest.raises(TypeError, match=f"set_winograd.*{on!r}"):
        ng.set_winograd(on)
    assert ng.get_winograd() == before
