"""Convolution beyond its cases: realistic sizes, threads, error messages."""

import numpy as np
import pytest

import numbagrad as ng
from numbagrad.errors import DTypeError, ShapeError


def random(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


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
    np.testing.assert_allclose(out.numpy(), columns @ matrix, rtol=1e-4, atol=1e-4)

    grad_out = random(*out.shape, seed=2)
    out.backward(ng.asarray(grad_out))
    grad_matrix = np.tensordot(columns, grad_out, ((0, 1, 2), (0, 1, 2)))
    np.testing.assert_allclose(b.grad.numpy(), grad_matrix.reshape(filters), rtol=1e-4, atol=1e-3)
    # The input's gradient is the adjoint: <grad_out, conv(v)> = <grad_x, v> for any v.
    v = random(*image, seed=3).astype(np.float64)
    expected = np.sum((im2col(v, filters[:2], stride, padding) @ matrix) * grad_out)
    np.testing.assert_allclose(np.sum(a.grad.numpy() * v), expected, rtol=1e-4, atol=1e-2)


def test_bits_do_not_depend_on_threads():
    x, weight, bias = random(32, 16, 16, 8), random(3, 3, 8, 20, seed=1), random(20, seed=2)

    def run():
        arrays = [ng.asarray(value, requires_grad=True) for value in (x, weight, bias)]
        out = ng.conv2d(*arrays, padding=1)
        (out * out).sum().backward()
        return [out.numpy()] + [array.grad.numpy() for array in arrays]

    threads = ng.get_num_threads()
    try:
        ng.set_num_threads(1)
        alone = run()
    finally:
        ng.set_num_threads(threads)
    for one, several in zip(alone, run(), strict=True):
        np.testing.assert_array_equal(one, several)


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
    with pytest.raises(TypeError, match="conv2d: x is of type ndarray; ops take Arrays"):
        ng.conv2d(x, ng.asarray(weight))
    with pytest.raises(TypeError, match="conv2d: bias is of type float"):
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
