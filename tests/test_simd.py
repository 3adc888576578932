"""SIMD vectors and the register tile: every function, every tail, nothing out of bounds."""

import inspect
import math
import operator
import os
import subprocess
import sys

import numpy as np
import pytest
import tiles
from numba.core.errors import TypingError

from numbagrad import simd
from numbagrad.jit import njit

DTYPES = [np.float32, np.float64]
CANARY = 0xB3  # a byte
MARGIN = 256  # canaries on each side, in bytes: more than two vectors

rng = np.random.default_rng(0)


def lanes(dtype):
    return simd.VECTOR_BYTES // np.dtype(dtype).itemsize


def between_canaries(size, dtype):
    """Return bytes that are canaries at both ends, and the array in the middle."""
    middle = size * np.dtype(dtype).itemsize
    whole = np.full(middle + 2 * MARGIN, CANARY, np.uint8)
    return whole, whole[MARGIN : MARGIN + middle].view(dtype)


def canaries_live(whole):
    return (whole[:MARGIN] == CANARY).all() and (whole[-MARGIN:] == CANARY).all()


# -------------------------------------------------- load, store, where they end


@njit
def copy_masked(x, out):
    for i in range(0, x.size, simd.lanes(x)):
        n = x.size - i
        simd.store(out, i, simd.load(x, i, n), n)


@njit
def copy_whole(x, out):
    for i in range(0, x.size, simd.lanes(x)):
        simd.store(out, i, simd.load(x, i))


@njit
def load_tail(x, n, out):
    simd.store(out, 0, simd.load(x, 0, n))


@pytest.mark.parametrize("dtype", DTYPES)
def test_tails(dtype):
    for size in range(2 * lanes(dtype) + 1):
        x = rng.normal(size=size).astype(dtype)
        whole, out = between_canaries(size, dtype)
        copy_masked(x, out)
        np.testing.assert_array_equal(out, x)
        assert canaries_live(whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_lanes_past_the_tail_are_zero(dtype):
    width = lanes(dtype)
    x, out = np.ones(width, dtype), np.empty(width, dtype)
    for n in (-3, 0, 1, width - 1, width, width + 5):
        load_tail(x, n, out)
        np.testing.assert_array_equal(out, np.arange(width) < n)


@pytest.mark.parametrize("dtype", DTYPES)
def test_whole_vectors(dtype):
    x = rng.normal(size=(2, lanes(dtype))).astype(dtype)
    out = np.empty_like(x)
    copy_whole(x, out)
    np.testing.assert_array_equal(out, x)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.bool_])
def test_integers_have_one_lane(dtype):
    x = np.array([0, 1, 2, 3]).astype(dtype)
    out = np.empty_like(x)
    copy_masked(x, out)
    np.testing.assert_array_equal(out, x)


# ------------------------------------------------------- arithmetic, functions


def two(function):
    """Compile out = function(x, y) on vectors."""
    function = njit(function)

    @njit
    def kernel(x, y, out):
        for i in range(0, x.size, simd.lanes(x)):
            n = x.size - i
            simd.store(out, i, function(simd.load(x, i, n), simd.load(y, i, n)), n)

    return kernel


def one_and_two(a, b):
    # Scalars take the vector's dtype: 0.5 brings no float64.
    return 0.5 * a + b / 2 - (1 - a) * -b


def in_place(a, b):
    a += b
    a *= 2
    a -= 1
    a /= 4
    return a


def mask_in_place(a, b):
    mask = a < b
    mask &= b > -1
    mask |= a > 1
    mask ^= b > 0
    return simd.where(mask ^ (a > 0), a, b)


def bits_in_place(a, b):
    k = simd.bits(a)
    k += simd.bits(b)
    k -= simd.bits(a)
    k ^= 0
    k >>= 1
    k <<= 1
    return simd.from_bits(k)


def chosen(a, b):
    return simd.where((a < b) & ~(a == 0) | (b >= 2.0), a, 1.0)


def swapped_bits(a, b):
    return simd.from_bits(simd.bits(a) + simd.bits(b) - simd.bits(a))


def even_bits(a, b):
    return simd.from_bits(simd.bits(a) >> 1 << 1)


def last_bits(a, b):
    return simd.to_float((simd.bits(a) & 255 | simd.bits(b) & 127) - 64 | 256)


FUNCTIONS = [
    (lambda a, b: a + b, np.add, 0),
    (lambda a, b: a - b, np.subtract, 0),
    (lambda a, b: a * b, np.multiply, 0),
    (lambda a, b: a / b, np.divide, 0),
    (lambda a, b: -a, lambda a, b: -a, 0),
    (lambda a, b: abs(a), lambda a, b: abs(a), 0),
    (one_and_two, one_and_two, 4),
    (in_place, lambda a, b: ((a + b) * 2 - 1) / 4, 0),
    (mask_in_place, lambda a, b: mask_in_place(a.copy(), b), 0),
    (bits_in_place, lambda a, b: even_bits(b, a), 0),
    (lambda a, b: simd.fma(a, b, 1.0), lambda a, b: a * b + 1, 2),
    (lambda a, b: simd.sqrt(abs(a)), lambda a, b: np.sqrt(abs(a)), 0),
    (lambda a, b: simd.exp(a), lambda a, b: np.exp(a), 2),
    (lambda a, b: simd.log(abs(a)), lambda a, b: np.log(abs(a)), 2),
    (lambda a, b: simd.tanh(a), lambda a, b: np.tanh(a), 2),
    (lambda a, b: simd.erf(a), lambda a, b: np.vectorize(math.erf, otypes=[a.dtype])(a), 2),
    (lambda a, b: simd.power(abs(a), b), lambda a, b: np.power(abs(a), b), 2),
    (lambda a, b: simd.floor(4 * a), lambda a, b: np.floor(4 * a), 0),
    (lambda a, b: simd.round(4 * a), lambda a, b: np.rint(4 * a), 0),
    (lambda a, b: simd.copysign(a, b), np.copysign, 0),
    (swapped_bits, lambda a, b: b, 0),
    (even_bits, even_bits, 0),
    (last_bits, last_bits, 0),
    (chosen, lambda a, b: np.where(((a < b) & (a != 0)) | (b >= 2), a, 1), 0),
    (lambda a, b: simd.maximum(a, b), np.maximum, 0),
    (lambda a, b: simd.minimum(a, b), np.minimum, 0),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("function", "reference", "ulps"), FUNCTIONS)
def test_function(function, reference, ulps, dtype):
    size = 2 * lanes(dtype) + 3
    x, y = (rng.normal(size=size).astype(dtype) for _ in range(2))
    whole, out = between_canaries(size, dtype)
    two(function)(x, y, out)
    expected = reference(x, y)
    assert expected.dtype == dtype
    limit = ulps * np.finfo(dtype).eps
    np.testing.assert_allclose(out, expected, rtol=limit, atol=limit)
    assert canaries_live(whole)


COMPARISONS = [operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne]
SPECIAL = np.array([-np.inf, -1.0, -0.0, 0.0, 1.0, np.inf, np.nan])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", [*COMPARISONS, simd.maximum, simd.minimum])
def test_special_values(function, dtype):
    x, y = (side.ravel().astype(dtype) for side in np.meshgrid(SPECIAL, SPECIAL))
    is_mask = function in COMPARISONS
    whole, out = between_canaries(x.size, np.bool_ if is_mask else dtype)

    @njit
    def kernel(x, y, out):
        for i in range(0, x.size, simd.lanes(x)):
            n = x.size - i
            simd.store(out, i, function(simd.load(x, i, n), simd.load(y, i, n)), n)

    kernel(x, y, out)
    reference = {simd.maximum: np.maximum, simd.minimum: np.minimum}.get(function, function)
    np.testing.assert_array_equal(out, reference(x, y))  # NaN equals NaN here
    assert canaries_live(whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_wide_vectors(dtype):
    @njit
    def kernel(x, out):
        twice, total = simd.splat_wide(2, x), simd.splat_wide(0, x)
        for i in range(0, x.size, simd.WIDE * simd.lanes(x)):
            n = x.size - i
            value = simd.load_wide(x, i, n)
            value = simd.where(value > 0, simd.fma(value, twice, 1), simd.exp(value))
            simd.store(out, i, value, n)
            total = total + simd.load_wide(x, i, n)
        return simd.reduce_sum(total)

    for size in (0, 1, lanes(dtype) + 1, simd.WIDE * lanes(dtype), 9 * lanes(dtype) + 3):
        x = rng.normal(size=size).astype(dtype)
        whole, out = between_canaries(size, dtype)
        total = kernel(x, out)
        rtol = 4 * np.finfo(dtype).eps
        np.testing.assert_allclose(out, np.where(x > 0, 2 * x + 1, np.exp(x)), rtol=rtol)
        np.testing.assert_allclose(total, x.sum(), rtol=rtol, atol=rtol * size)
        assert canaries_live(whole)


def test_wide_integers_are_scalars():
    @njit
    def kernel(x, out):
        for i in range(0, x.size, simd.lanes(x)):
            simd.store(out, i, simd.load_wide(x, i) + simd.splat_wide(1, x))

    x = np.arange(5)
    out = np.empty_like(x)
    kernel(x, out)
    np.testing.assert_array_equal(out, x + 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_load_mask(dtype):
    @njit
    def kernel(condition, x, out):
        for i in range(0, x.size, simd.lanes(x)):
            n = x.size - i
            mask = simd.load_mask(condition, i, n, x)
            simd.store(out, i, simd.where(mask, simd.load(x, i, n), simd.splat(2, x)), n)

    size = lanes(dtype) + 3
    x, condition = rng.normal(size=size).astype(dtype), rng.random(size) < 0.5
    whole, out = between_canaries(size, dtype)
    kernel(condition, x, out)
    np.testing.assert_array_equal(out, np.where(condition, x, 2))
    assert canaries_live(whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_reductions_over_lanes(dtype):
    @njit
    def kernel(x):
        a = simd.load(x, 0)
        return simd.reduce_sum(a), simd.reduce_max(a), simd.reduce_min(a)

    x = rng.normal(size=lanes(dtype)).astype(dtype)
    total, largest, smallest = kernel(x)
    assert total == simd.reduce_sum(x)  # the same order: the same bits
    assert (largest, smallest) == (x.max(), x.min())
    x[1] = np.nan
    assert np.isnan(kernel(x)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_lanes_past_the_tail_hold_the_rest(dtype):
    @njit
    def kernel(x, n, out):
        simd.store(out, 0, simd.load(x, 0, n, -np.inf))

    width = lanes(dtype)
    x, out = np.ones(width, dtype), np.empty(width, dtype)
    for n in (0, 1, width - 1, width, width + 5):
        kernel(x, n, out)
        np.testing.assert_array_equal(out, np.where(np.arange(width) < n, 1, -np.inf))


def test_keywords():
    @njit
    def kernel(x, n, out):
        simd.store(out, 0, n=n, value=simd.load(x, i=0, n=n - 1, rest=7))

    width = lanes(np.float32)
    x, out = np.ones(width, np.float32), np.zeros(width, np.float32)
    kernel(x, 3, out)
    np.testing.assert_array_equal(out[:4], [1, 1, 7, 0])


X32, X64 = np.ones(64, np.float32), np.ones(64)
REFUSED = {
    "strided": (lambda x, y: simd.load(x, 0), (X32[::2], X32), "load.*contiguous"),
    "Fortran": (lambda x, y: simd.lanes(x), (np.ones((2, 3)).T, X32), "lanes.*contiguous"),
    "two dtypes": (
        lambda x, y: simd.store(x, 0, simd.fma(simd.load(x, 0), simd.load(y, 0), 1)),
        (X32, X64),
        "fma.*float32 and float64 do not mix",
    ),
    "store of another dtype": (
        lambda x, y: simd.store(y, 0, simd.load(x, 0)),
        (X32, X64),
        "store.*float32 and float64 do not mix",
    ),
    "store of a mask": (
        lambda x, y: simd.store(y, 0, simd.load(x, 0) > 0),
        (X32, X64),
        r"store[\s\S]*A mask goes into booleans",
    ),
    "tile": (lambda x, y: simd.tile_store(simd.tile(x, y.size, 1)), (X32, X32), "literals"),
    "a list": (lambda x, y: simd.load([1.0], 0), (X32, X32), r"load\(x, i, n=None, rest=0\)"),
    "too few": (lambda x, y: simd.load(x), (X32, X32), "load.*missing a required argument: 'i'"),
    "a name": (lambda x, y: simd.load(x, 0, m=3), (X32, X32), "load.*unexpected keyword.*'m'"),
    "a gap": (lambda x, y: simd.load(x, 0, rest=3.0), (X32, X32), "load.*'rest'.*'n'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_call_that_does_not_fit_is_refused_in_a_sentence(name):
    function, arrays, message = REFUSED[name]
    with pytest.raises(TypingError, match=message) as error:
        njit(function)(*arrays)
    assert "candidate implementations" not in str(error.value)


def test_vectors_of_two_dtypes_do_not_add():
    kernel = njit(lambda x, y: simd.store(x, 0, simd.load(x, 0) + simd.load(y, 0)))
    with pytest.raises(TypingError, match="float32 and float64 do not mix"):
        kernel(X32, X64)


def test_public_names():
    functions = {
        name
        for name, value in inspect.getmembers(simd, inspect.isfunction)
        if value.__module__ == simd.__name__ and name[0] != "_"
    }
    assert {name for name in simd.__all__ if name.islower()} == functions


@pytest.mark.parametrize("dtype", DTYPES)
def test_integer_vectors(dtype):
    @njit
    def kernel(x, n, out):
        chosen = simd.where(simd.load(x, 0) > 0, simd.integers(x, 5, 2), simd.integers(x, -1, 0))
        simd.store(out, 0, chosen, n)
        return simd.reduce_sum(chosen), simd.reduce_max(chosen), simd.reduce_min(chosen)

    width = lanes(dtype)
    x = rng.normal(size=width).astype(dtype)
    expected = np.where(x > 0, 5 + 2 * np.arange(width), -1)
    for n in (0, 1, width):
        whole, out = between_canaries(n, np.int64)
        assert kernel(x, n, out) == (expected.sum(), expected.max(), expected.min())
        np.testing.assert_array_equal(out, expected[:n])
        assert canaries_live(whole)


# ------------------------------------------------------------------ random words


@njit
def arrange_words(first, step, zipped, halved, products, kept):
    k = simd.words(first, step)
    other = (k * 3) ^ 5
    simd.store(zipped, 0, simd.zip_low(k, other))
    simd.store(zipped, zipped.size // 2, simd.zip_high(k, other))
    simd.store(halved, 0, simd.halves(k))
    simd.store(products, 0, other)
    simd.store(kept, 0, simd.halves(k) >= 2)


def test_words():
    count = simd.VECTOR_BYTES // 8
    first, step = 2**33 + 1, 2**31 + 7
    k = first + step * np.arange(count)
    zipped, halved = np.empty(2 * count, np.int64), np.empty(2 * count, np.int64)
    products, kept = np.empty(count, np.int64), np.empty(2 * count, np.bool_)
    arrange_words(first, step, zipped, halved, products, kept)
    np.testing.assert_array_equal(products, (k * 3) ^ 5)
    np.testing.assert_array_equal(zipped, np.stack((k, (k * 3) ^ 5), 1).reshape(-1))
    np.testing.assert_array_equal(halved, k.view(np.int32))
    np.testing.assert_array_equal(kept, k.view(np.int32) >= 2)


@njit
def fill_with_fractions(x):
    simd.store(x, 0, simd.fraction(simd.words(-1, 0), x))


@pytest.mark.parametrize(("dtype", "digits"), [(np.float32, 24), (np.float64, 53)])
def test_fractions_stay_below_one(dtype, digits):
    x = np.empty(lanes(dtype), dtype)
    fill_with_fractions(x)
    np.testing.assert_array_equal(x, 1 - dtype(2.0**-digits))


# -------------------------------------------------------------------- the tile


@pytest.mark.parametrize("dtype", tiles.DTYPES)
@pytest.mark.parametrize(("rows", "columns"), tiles.SHAPES)
def test_tiles(rows, columns, dtype):
    tiles.check_tiles(dtype, rows, columns)


@pytest.mark.parametrize("dtype", tiles.DTYPES)
def test_transpose(dtype):
    tiles.check_transpose(dtype)


# --------------------------------------------------------- other processors


@pytest.mark.parametrize(("cpu", "width", "rows"), [("haswell", 32, 6), ("generic", 16, 4)])
@pytest.mark.skipif(sys.platform == "darwin", reason="another kind of processor")
def test_width_follows_the_processor(cpu, width, rows):
    script = f"""
import numpy as np, numbagrad as ng, tiles
assert (ng.simd.VECTOR_BYTES, ng.simd.TILE_ROWS) == ({width}, {rows}), ng.simd.VECTOR_BYTES
a, b = np.random.default_rng(0).normal(size=(2, 19, 19)).astype(np.float32)
out = (ng.asarray(a) @ ng.asarray(b)).numpy()
np.testing.assert_allclose(out, a.astype(float) @ b, rtol=1e-4, atol=1e-5)
tiles.check_all()
"""
    paths = os.pathsep.join(filter(None, [os.path.dirname(__file__), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"NUMBA_CPU_NAME": cpu, "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
