"""Checks of the register tile, for several kinds of processes: compiled, other processors, no JIT.

Arrays that are read lie in NaN, which a wrong place or lane brings into the result; arrays that are
written are full of a number that nothing computes.
"""

from __future__ import annotations

import numpy as np

from numbagrad import simd
from numbagrad.jit import njit

ROWS, COLUMNS = simd.TILE_ROWS, simd.TILE_COLUMNS
STEPS = 3  # of a product
AT = 5  # where what is read or written begins; the arrays begin earlier
UNTOUCHED = -12345.0

rng = np.random.default_rng(0)


def lanes(dtype):
    return simd.VECTOR_BYTES // np.dtype(dtype).itemsize


def kernels_of(rows, columns):
    """Return the kernels below for tiles of so many rows and vectors: literals in them."""

    @njit
    def product(start, bias, a, starts, b, places, i, count, width, out):
        """out = start + a b + bias, a tile of `count` x `width`."""
        acc = simd.tile(out, rows, columns)
        to = simd.tile_rows(acc, places, i, count)
        acc = simd.tile_load(acc, start, to, AT, count, width)
        here = simd.tile_rows(acc, starts, i, count)
        for p in range(STEPS):
            acc = simd.tile_fma(acc, a, here, AT + p, b, AT + p * columns * simd.lanes(out))
        acc = simd.tile_add(acc, bias, AT, width)
        simd.tile_store(acc, out, to, AT, count, width)

    @njit
    def lanewise(a, starts, b, places, i, count, width, out):
        """out[i, j] = sum_p a[i, j + p] b[j + p], a tile of `count` x `width`."""
        acc = simd.tile(out, rows, columns)
        here = simd.tile_rows(acc, starts, i, count)
        for p in range(STEPS):
            acc = simd.tile_fma_rows(acc, a, here, AT + p, b, AT + p, width)
        to = simd.tile_rows(acc, places, i, count)
        simd.tile_store(acc, out, to, AT, count, width)

    @njit
    def all_of_it(x, starts, places, count, width, out):
        """out = all of a tile that was filled in part: x + x x + x, its first row of x thrice."""
        acc = simd.tile(out, rows, columns)
        here = simd.tile_rows(acc, starts, 0, count)
        acc = simd.tile_load(acc, x, here, AT, count, width)
        acc = simd.tile_fma_rows(acc, x, here, AT, x, AT + starts[0], width)
        acc = simd.tile_add(acc, x, AT + starts[0], width)
        simd.tile_store(acc, out, simd.tile_rows(acc, places, 0, rows), AT, rows, out.size)

    @njit
    def dots(a, starts, b, pitch, places, i, count, width, terms, out):
        """out[i, j] = sum_l a[i, l] b[j, l] for l < terms, twice: a tile of `count` x `width`."""
        acc = simd.tile(out, rows, columns)
        here = simd.tile_rows(acc, starts, i, count)
        for _ in range(2):
            acc = simd.tile_fma_terms(acc, a, here, AT, b, AT, pitch, terms)
        to = simd.tile_rows(acc, places, i, count)
        simd.tile_store_sums(acc, out, to, AT, count, width)

    @njit
    def turned(x, start, step, count, width, places, i, out):
        """out[places[i + j]] = x[start + j step]: `count` columns of `width`, vector by vector."""
        here = simd.tile_steps(simd.tile(out, rows, 1), 0, columns * simd.lanes(out), rows)
        room = np.zeros(rows * columns * simd.lanes(out), out.dtype)
        for j in range(0, columns * simd.lanes(out), simd.lanes(out)):
            acc = simd.tile(out, rows, 1)
            acc = simd.tile_load_turned(acc, x, start + j * step, step, count - j, width)
            simd.tile_store(acc, room, here, j, rows, simd.lanes(out))
        acc = simd.tile_load(
            simd.tile(out, rows, columns), room,
            simd.tile_steps(simd.tile(out, rows, columns), 0, columns * simd.lanes(out), rows),
            0, rows, columns * simd.lanes(out),
        )  # fmt: skip
        simd.tile_store_turned(acc, out, places, i, AT, width)

    return product, lanewise, all_of_it, dots, turned


@njit
def transpose(x, step_x, rows, columns, out, step_out, width):
    """out[j, i] = x[i, j] for i < rows and j < columns, zeros from there to `width`."""
    square = simd.tile_square(out)
    here = simd.tile_steps(square, AT, step_x, rows)
    square = simd.tile_transpose(simd.tile_load(square, x, here, 0, rows, columns))
    to = simd.tile_steps(square, 0, step_out, columns)
    simd.tile_store(square, out, to, AT, columns, width)


def scattered(count, length):
    """Return where `count` rows of `length` begin in one array: apart, in no order."""
    return rng.permutation(count).astype(np.int64) * (length + 3)


def filled(places, values, fill):
    """Return an array full of `fill` but for rows of values, from `AT` on after their places."""
    size = AT + values.shape[1] + 2 * max(lanes(values.dtype), places.max())
    out = np.full(size, fill, values.dtype)
    for place, row in zip(places, values, strict=True):
        out[AT + place : AT + place + len(row)] = row
    return out


def normal(dtype, *shape):
    return rng.normal(size=shape).astype(dtype)


def table(places):
    """Return the places behind two that are never right, and the index of the first."""
    wrong = np.full(2, places.max() + AT, np.int64)
    return np.concatenate([wrong, places, wrong]), 2


def require_equal(result, expected):
    tolerance = 16 * np.finfo(result.dtype).eps
    np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)


def check_tiles(dtype, rows, columns):
    """Check tiles filled to every number of rows and columns."""
    product, lanewise, all_of_it, dots, turned = kernels_of(rows, columns)
    most = columns * lanes(dtype)
    for width in range(1, rows + 1):
        x, places = normal(dtype, most, width), scattered(most, width)
        places[1::3] = places[:-1:3]  # shared with the one before, which is the one that stays
        (to, i), steps = table(places), np.arange(most, dtype=np.int64) * (width + 1)
        out = filled(places, np.full_like(x, np.nan), UNTOUCHED)
        turned(filled(steps, x, np.nan), AT, width + 1, most, width, to, i, out)
        x[1::3] = x[:-1:3]
        require_equal(out, filled(places, x, UNTOUCHED))
    for count in range(1, rows + 1):
        for width in range(1, columns + 1):
            for terms in range(1, lanes(dtype) + 1):
                (to, i), (here, _) = (table(scattered(count, most)) for _ in range(2))
                pitches = np.arange(columns, dtype=np.int64) * (terms + 1)
                a, b = normal(dtype, count, terms), normal(dtype, columns, terms)
                out = filled(to[i:-i], np.full((count, width), np.nan, dtype), UNTOUCHED)
                dots(
                    filled(here[i:-i], a, np.nan), here, filled(pitches, b, np.nan), terms + 1,
                    to, i, count, width, terms, out,
                )  # fmt: skip
                value = 2 * (a @ b[:width].T)
                require_equal(out, filled(to[i:-i], value, UNTOUCHED))
    for count in range(1, rows + 1):
        for width in range(1, most + 1):
            places, starts = scattered(count, width), scattered(count, most + STEPS)
            (to, i), (here, _) = table(places), table(starts)
            start, bias = normal(dtype, count, width), normal(dtype, 1, width)
            first = np.zeros(1, np.int64)
            a, b = normal(dtype, count, STEPS), normal(dtype, STEPS, most)
            out = filled(places, np.full_like(start, np.nan), UNTOUCHED)
            product(
                filled(places, start, np.nan), filled(first, bias, np.nan).ravel(),
                filled(starts, a, np.nan), here, filled(first, b.reshape(1, -1), np.nan), to, i,
                count, width, out,
            )  # fmt: skip
            value = start + a.astype(float) @ b[:, :width] + bias
            require_equal(out, filled(places, value.astype(dtype), UNTOUCHED))

            a, b = normal(dtype, count, width + STEPS - 1), normal(dtype, 1, width + STEPS - 1)
            out = filled(places, np.full_like(start, np.nan), UNTOUCHED)
            around = filled(starts, a, np.nan), here, filled(first, b, np.nan)
            lanewise(*around, to, i, count, width, out)
            value = sum((a * b)[:, p : p + width] for p in range(STEPS))
            require_equal(out, filled(places, value, UNTOUCHED))

            x, whole = normal(dtype, count, width), scattered(rows, most)
            out = filled(whole, np.full((rows, most), np.nan, dtype), UNTOUCHED)
            all_of_it(filled(starts, x, np.nan), starts, whole, count, width, out)
            value = np.zeros((rows, most), dtype)
            value[:count, :width] = x
            # Rows past the last repeat it, but were loaded as zeros.
            value[:, :width] += x[np.minimum(np.arange(rows), count - 1)] * x[0] + x[0]
            require_equal(out, filled(whole, value, UNTOUCHED))


def check_transpose(dtype):
    """Check square tiles filled to every number of rows and columns."""
    most = lanes(dtype)
    for rows in range(1, most + 1):
        for columns in range(1, most + 1):
            width = rng.integers(rows, most + 1)
            x, out = normal(dtype, rows, columns), np.zeros((columns, width), dtype)
            places = [k * np.arange(count) for k, count in ((columns, rows), (width + 1, columns))]
            result = filled(places[1], np.full_like(out, np.nan), UNTOUCHED)
            transpose(
                filled(places[0], x, np.nan), columns, rows, columns, result, width + 1, width
            )
            out[:, :rows] = x.T
            np.testing.assert_array_equal(result, filled(places[1], out, UNTOUCHED))


DTYPES = [np.float32, np.float64]
SHAPES = [(ROWS, COLUMNS), (simd.NARROW_ROWS, 2), (simd.NARROW_ROWS, 1), (3, COLUMNS)]


def check_all():
    """Check everything."""
    for dtype in DTYPES:
        check_transpose(dtype)
        for shape in SHAPES:
            check_tiles(dtype, *shape)
