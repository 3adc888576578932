"""The CPU kernels: sequential functions that Numba compiles, one or a few for each op.

How to read one
---------------
Arguments come in the order inputs, parameters, outputs, workspace. Arrays are contiguous; outputs
are overwritten and hold garbage before. A kernel knows nothing of threads: it runs on a *shard*,
some rows of the whole, and the op's ``split`` (in ``ops/``) says how the whole is cut. The CUDA
kernel of the same name does the same work in ``kernels_cuda.py``. Only banks and the faster ways to
convolve (depthwise, Winograd's, for few channels) are for the CPU alone.

float32 and float64 go through one text: ``x.dtype.type(0)`` is a zero of the right kind, where a
bare ``0.0`` would turn float32 arithmetic into float64.
"""

from __future__ import annotations

import numpy as np

from . import formulas, simd
from .errors import NO_ERROR
from .jit import njit


@njit
def _const(x, value):
    return value  # beside a vector, a scalar takes the vector's dtype


vector = formulas.bind({**vars(simd), "const": _const}, njit)


# ================================================================ elementwise
#
# Three loops serve nearly all elementwise ops. `_map1` and `_map_alike` take one and two operands
# of out's shape: everything is contiguous. `_map2` broadcasts: `layout` holds the collapsed shape
# in its first row and the strides of each operand, in elements, in the next ones. A stride of 0
# repeats an operand along that dimension.
#
# A formula is a chain of instructions that wait for each other. Four vectors at once give the
# processor something to do meanwhile, and need no masks; masked ones finish.


@njit
def _whole(count, x):
    """Return how many of `count` elements lie in wide vectors; none of integers."""
    step = simd.lanes(x)
    return count - count % (simd.WIDE * step) if step > 1 else 0


@njit
def _load2(x, i, n):
    """Load two neighbouring vectors, `n` elements of them."""
    step = simd.lanes(x)
    return simd.load(x, i, n), simd.load(x, i + step, n - step)


@njit
def _store2(x, i, n, a, b):
    """Store two neighbouring vectors, `n` elements of them."""
    step = simd.lanes(x)
    simd.store(x, i, a, n)
    simd.store(x, i + step, b, n - step)


@njit
def _map1(f, x, out, *parameters):
    """out[i] = f(x[i], *parameters)."""
    step, whole = simd.lanes(x), _whole(x.size, x)
    for i in range(0, whole, simd.WIDE * step):
        simd.store(out, i, f(simd.load_wide(x, i), *parameters))
    for i in range(whole, x.size, step):
        n = x.size - i
        simd.store(out, i, f(simd.load(x, i, n), *parameters), n)


@njit
def _map_alike(f, x, y, out, *parameters):
    """out[i] = f(x[i], y[i], *parameters)."""
    step, whole = simd.lanes(x), _whole(x.size, x)
    for i in range(0, whole, simd.WIDE * step):
        simd.store(out, i, f(simd.load_wide(x, i), simd.load_wide(y, i), *parameters))
    for i in range(whole, x.size, step):
        n = x.size - i
        simd.store(out, i, f(simd.load(x, i, n), simd.load(y, i, n), *parameters), n)


@njit
def _offset(row, layout, operand):
    """Return where row number `row` of a broadcast operand starts."""
    offset = 0
    for axis in range(layout.shape[1] - 2, 0, -1):
        offset += row % layout[0, axis] * layout[operand, axis]
        row //= layout[0, axis]
    return offset + row * layout[operand, 0]


@njit
def _pick(x, start, j, n, stride):
    """Load a vector of a row, or repeat its one element (stride 0)."""
    if stride == 0:
        return simd.splat(x[start], x)
    return simd.load(x, start + j, n)


@njit
def _map2(f, x, y, layout, out):
    """out[row, j] = f(x[row, j], y[row, j]), both broadcast as `layout` says."""
    width = min(layout[0, -1], out.size)  # a shard of a single row is shorter than the row
    for row in range(out.size // max(width, 1)):
        at_x, at_y = _offset(row, layout, 1), _offset(row, layout, 2)
        for j in range(0, width, simd.lanes(x)):
            n = width - j
            a = _pick(x, at_x, j, n, layout[1, -1])
            b = _pick(y, at_y, j, n, layout[2, -1])
            simd.store(out, row * width + j, f(a, b), n)


@njit
def add_forward(x, y, layout, out):
    """out[i] = x[i] + y[i]."""
    _map2(vector.add, x, y, layout, out)


@njit
def subtract_forward(x, y, layout, out):
    """out[i] = x[i] - y[i]."""
    _map2(vector.subtract, x, y, layout, out)


@njit
def multiply_forward(x, y, layout, out):
    """out[i] = x[i] y[i]."""
    _map2(vector.multiply, x, y, layout, out)


@njit
def divide_forward(x, y, layout, out):
    """out[i] = x[i] / y[i]."""
    _map2(vector.divide, x, y, layout, out)


@njit
def pow_forward(x, y, layout, out):
    """out[i] = x[i] ** y[i]."""
    _map2(vector.raised, x, y, layout, out)


@njit
def maximum_forward(x, y, layout, out):
    """out[i] = max(x[i], y[i]); NaN if either is."""
    _map2(vector.larger, x, y, layout, out)


@njit
def minimum_forward(x, y, layout, out):
    """out[i] = min(x[i], y[i]); NaN if either is."""
    _map2(vector.smaller, x, y, layout, out)


@njit
def equal_forward(x, y, layout, out):
    """out[i] = x[i] == y[i]."""
    _map2(vector.equal, x, y, layout, out)


@njit
def not_equal_forward(x, y, layout, out):
    """out[i] = x[i] != y[i]."""
    _map2(vector.not_equal, x, y, layout, out)


@njit
def less_forward(x, y, layout, out):
    """out[i] = x[i] < y[i]."""
    _map2(vector.less, x, y, layout, out)


@njit
def less_equal_forward(x, y, layout, out):
    """out[i] = x[i] <= y[i]."""
    _map2(vector.less_equal, x, y, layout, out)


@njit
def greater_forward(x, y, layout, out):
    """out[i] = x[i] > y[i]."""
    _map2(vector.greater, x, y, layout, out)


@njit
def greater_equal_forward(x, y, layout, out):
    """out[i] = x[i] >= y[i]."""
    _map2(vector.greater_equal, x, y, layout, out)


@njit
def logical_and_forward(x, y, layout, out):
    """out[i] = x[i] and y[i]."""
    _map2(vector.logical_and, x, y, layout, out)


@njit
def logical_or_forward(x, y, layout, out):
    """out[i] = x[i] or y[i]."""
    _map2(vector.logical_or, x, y, layout, out)


@njit
def logical_xor_forward(x, y, layout, out):
    """out[i] = x[i] != y[i]."""
    _map2(vector.logical_xor, x, y, layout, out)


@njit
def logical_not_forward(x, out):
    """out[i] = not x[i]."""
    _map1(vector.logical_not, x, out)


@njit
def where_forward(condition, x, y, layout, out):
    """out[i] = x[i] if condition[i] else y[i]."""
    width = min(layout[0, -1], out.size)
    for row in range(out.size // max(width, 1)):
        at_c = _offset(row, layout, 1)
        at_x, at_y = _offset(row, layout, 2), _offset(row, layout, 3)
        for j in range(0, width, simd.lanes(x)):
            n = width - j
            a = _pick(x, at_x, j, n, layout[2, -1])
            b = _pick(y, at_y, j, n, layout[3, -1])
            if layout[1, -1] == 0:
                chosen = a if condition[at_c] else b
            else:
                chosen = simd.where(simd.load_mask(condition, at_c + j, n, x), a, b)
            simd.store(out, row * width + j, chosen, n)


@njit
def broadcast_to_forward(x, layout, out):
    """out[i] = x[i], repeated along the dimensions where x has stride 0."""
    width = min(layout[0, -1], out.size)
    for row in range(out.size // max(width, 1)):
        start = _offset(row, layout, 1)
        for j in range(0, width, simd.lanes(x)):
            n = width - j
            simd.store(out, row * width + j, _pick(x, start, j, n, layout[1, -1]), n)


@njit
def cast_forward(x, out):
    """out[i] = x[i] in out's dtype; floats become integers by dropping their fraction."""
    for i in range(x.size):
        out[i] = out.dtype.type(x[i])


@njit
def copy_forward(x, out):
    """out[i] = x[i]."""
    for i in range(x.size):
        out[i] = x[i]


@njit
def negative_forward(x, out):
    """out[i] = -x[i]."""
    _map1(vector.negative, x, out)


@njit
def abs_forward(x, out):
    """out[i] = |x[i]|."""
    _map1(vector.absolute, x, out)


@njit
def exp_forward(x, out):
    """out[i] = exp(x[i])."""
    _map1(vector.exponential, x, out)


@njit
def log_forward(x, out):
    """out[i] = ln x[i]."""
    _map1(vector.logarithm, x, out)


@njit
def sqrt_forward(x, out):
    """out[i] = sqrt(x[i])."""
    _map1(vector.square_root, x, out)


@njit
def tanh_forward(x, out):
    """out[i] = tanh(x[i])."""
    _map1(vector.hyperbolic_tangent, x, out)


@njit
def erf_forward(x, out):
    """out[i] = erf(x[i])."""
    _map1(vector.error_function, x, out)


@njit
def sigmoid_forward(x, out):
    """out[i] = 1 / (1 + exp(-x[i]))."""
    _map1(vector.sigmoid, x, out)


@njit
def tanh_backward(x, grad_out, out):
    """out[i] = grad_out[i] (1 - x[i]^2), where x is what tanh gave."""
    _map_alike(vector.tanh_backward, x, grad_out, out)


@njit
def sigmoid_backward(x, grad_out, out):
    """out[i] = grad_out[i] x[i] (1 - x[i]), where x is what the sigmoid gave."""
    _map_alike(vector.sigmoid_backward, x, grad_out, out)


@njit
def relu_forward(x, out):
    """out[i] = max(x[i], 0)."""
    _map1(vector.relu, x, out)


@njit
def relu_backward(x, grad_out, out):
    """out[i] = grad_out[i] if x[i] > 0 else 0; x may be what relu gave, too."""
    _map_alike(vector.relu_backward, x, grad_out, out)


@njit
def leaky_relu_forward(x, slope, out):
    """out[i] = x[i] if x[i] > 0 else slope x[i]."""
    _map1(vector.leaky_relu, x, out, slope)


@njit
def leaky_relu_backward(x, grad_out, slope, out):
    """out[i] = grad_out[i] if x[i] > 0 else slope grad_out[i]."""
    _map_alike(vector.leaky_relu_backward, x, grad_out, out, slope)


@njit
def gelu_forward(x, out):
    """out[i] = x[i] Phi(x[i]), Phi the normal distribution function."""
    _map1(vector.gelu, x, out)


@njit
def gelu_backward(x, grad_out, out):
    """out[i] = grad_out[i] (Phi(x[i]) + x[i] phi(x[i])), phi the normal density."""
    _map_alike(vector.gelu_backward, x, grad_out, out)


# ================================================================= reduction
#
# Every reduction sees x as (outer, reduce, inner): the reduced axes lie together in the middle.
# Sums run in blocks: a long chain of float32 additions would lose small addends.

BLOCK = 256  # rows, or vectors


@njit
def sum_forward(x, reduce, inner, scale, out):
    """out[o, i] = scale sum_r x[o, r, i]."""
    for o in range(out.size // max(inner, 1)):
        if inner > 1:
            _sum_rows(x, o * reduce * inner, reduce, inner, scale, out, o * inner)
        else:
            out[o] = scale * _sum_contiguous(x, o * reduce, reduce)


@njit
def sum_backward(grad_out, reduce, inner, scale, out):
    """out[o, r, i] = scale grad_out[o, i]."""
    step = simd.lanes(out)
    for o in range(out.size // max(reduce * inner, 1)):
        start = o * reduce * inner
        if inner == 1:
            value = simd.splat(grad_out[o] * scale, out)
            for r in range(0, reduce, step):
                simd.store(out, start + r, value, reduce - r)
        else:
            for at in range(start, start + reduce * inner, inner):
                for i in range(0, inner, step):
                    value = simd.load(grad_out, o * inner + i, inner - i) * scale
                    simd.store(out, at + i, value, inner - i)


@njit
def _sum_contiguous(x, start, count):
    """Return the sum of x[start], ..., x[start + count - 1]."""
    step, whole = simd.lanes(x), _whole(count, x)
    total, zero = simd.splat(0, x), simd.splat_wide(0, x)
    wide = zero
    for block in range(0, whole, BLOCK * step):
        acc = zero
        for r in range(block, min(block + BLOCK * step, whole), simd.WIDE * step):
            acc = acc + simd.load_wide(x, start + r)
        wide = wide + acc
    for r in range(whole, count, step):
        total = total + simd.load(x, start + r, count - r)
    return simd.reduce_sum(wide) + simd.reduce_sum(total)


@njit
def _sum_rows(x, start, count, inner, scale, out, at):
    """out[at + i] = scale sum_{r < count} x[start + r inner + i], for i < inner.

    One block of rows after another, so that it stays in cache while strips of it are added up.
    """
    step, whole = simd.lanes(x), _whole(inner, x)
    zero = simd.splat(0, x)
    for block in range(0, max(count, 1), BLOCK):
        first, stop = start + block * inner, start + min(block + BLOCK, count) * inner
        for i in range(0, whole, simd.WIDE * step):
            wide = simd.splat_wide(0, x)
            for r in range(first + i, stop, inner):
                wide = wide + simd.load_wide(x, r)
            if block > 0:
                wide = wide + simd.load_wide(out, at + i)
            simd.store(out, at + i, wide)
        for i in range(whole, inner, step):
            n, total = inner - i, zero
            for r in range(first + i, stop, inner):
                total = total + simd.load(x, r, n)
            if block > 0:
                total = total + simd.load(out, at + i, n)
            simd.store(out, at + i, total, n)
    if scale != 1:
        for i in range(0, inner, step):
            simd.store(out, at + i, simd.load(out, at + i, inner - i) * scale, inner - i)


@njit
def _greater(value, best):
    """Return where a value replaces the best one: it is no less or equal, the best no NaN."""
    return ~(value <= best) & (best == best)


@njit
def _less(value, best):
    """Return where a value replaces the best one: it is no greater or equal, the best no NaN."""
    return ~(value >= best) & (best == best)


@njit
def max_forward(x, reduce, inner, out, index):
    """out[o, i] = max_r x[o, r, i] and the first r that attains it; the first NaN wins."""
    _extremum(_greater, simd.reduce_max, x, reduce, inner, out, index)


@njit
def min_forward(x, reduce, inner, out, index):
    """out[o, i] = min_r x[o, r, i] and the first r that attains it; the first NaN wins."""
    _extremum(_less, simd.reduce_min, x, reduce, inner, out, index)


@njit
def _extremum(beats, over_lanes, x, reduce, inner, out, index):
    """out[o, i] = the x[o, r, i] that beats all others, and index[o, i] = the first such r."""
    step = simd.lanes(x)
    for o in range(out.size // max(inner, 1)):
        if inner == 1 and step > 1:
            _extremum_contiguous(beats, over_lanes, x, o * reduce, reduce, out, index, o)
        else:
            for i in range(0, inner, step):
                n, at = inner - i, o * reduce * inner + i
                best, place = simd.load(x, at, n), simd.integers(x, 0, 0)
                for r in range(1, reduce):
                    value = simd.load(x, at + r * inner, n)
                    wins = beats(value, best)
                    best = simd.where(wins, value, best)
                    place = simd.where(wins, simd.integers(x, r, 0), place)
                simd.store(out, o * inner + i, best, n)
                simd.store(index, o * inner + i, place, n)


@njit
def _extremum_contiguous(beats, over_lanes, x, start, count, out, index, o):
    """Find what beats all of x[start], ..., x[start + count - 1]: in each lane, then over lanes.

    Lanes past the end hold the first element, for which lane 0 has the better place.
    """
    first = x[start]
    best, place = simd.load(x, start, count, first), simd.integers(x, 0, 1)
    for r in range(simd.lanes(x), count, simd.lanes(x)):
        value = simd.load(x, start + r, count - r, first)
        wins = beats(value, best)
        best = simd.where(wins, value, best)
        place = simd.where(wins, simd.integers(x, r, 1), place)
    found = over_lanes(best)
    holds = (best == found) | (best != best)  # if there is a NaN, it is what was found
    out[o] = found
    index[o] = simd.reduce_min(simd.where(holds, place, simd.integers(x, count, 0)))


@njit
def pick_forward(x, index, reduce, inner, out):
    """out[o, i] = x[o, index[o, i], i]: what a maximum found."""
    for o in range(out.size // max(inner, 1)):
        for i in range(inner):
            r = index[o * inner + i]
            out[o * inner + i] = x[(o * reduce + r) * inner + i]


@njit
def place_forward(x, index, reduce, inner, out):
    """out[o, r, i] = x[o, i] if r == index[o, i] else 0: the gradient of `pick`."""
    for o in range(out.size // max(reduce * inner, 1)):
        for r in range(reduce):
            for i in range(inner):
                hit = index[o * inner + i] == r
                value = x[o * inner + i] if hit else x.dtype.type(0)
                out[(o * reduce + r) * inner + i] = value


# ============================================================ matrix product
#
# Products and convolutions are one loop over register tiles (see simd.py): `_tiles`. Its second
# operand mostly lies in strips: as many columns as a tile is wide, row after row of the strip in
# one run, zeros past the last column. So it streams through the cache, whole vectors at a time. A
# product packs a few strips just before it reads them; a convolution has its whole weight in such a
# *bank*.
#
# A strip is as wide as the widest tile, but for the last one, where a half of it or a single vector
# may do. AVX-512 has all three, others two.

COLUMNS, HALF_COLUMNS = simd.TILE_COLUMNS, simd.TILE_COLUMNS // 2
ROWS, WIDE_ROWS = simd.NARROW_ROWS, simd.TILE_ROWS  # of narrow tiles, and of wide ones


def _tiles(rows_of_tile, columns):
    """Make `_strip`'s loop for tiles `columns` vectors wide: both counts are literals in it."""

    @njit
    def tiles(
        a, at_a, rows, taps, length, step, bank, at_bank, pitch, bias, at_bias,
        out, at_out, places, count, width, keep, relu,
    ):  # fmt: skip
        for q in range(0, count, rows_of_tile):
            left = count - q
            acc = simd.tile(out, rows_of_tile, columns)
            to = simd.tile_rows(acc, places, q, left)
            if keep:
                acc = simd.tile_load(acc, out, to, at_out, left, width)
            here = simd.tile_rows(acc, rows, q, left)
            row = at_bank
            for t in range(taps.size):
                at = at_a + taps[t]
                for p in range(length):
                    acc = simd.tile_fma(acc, a, here, at + p * step, bank, row)
                    row += pitch
            if bias.size > 0:
                acc = simd.tile_add(acc, bias, at_bias, width)
            if relu:
                acc = simd.tile_maximum(acc, 0)
            simd.tile_store(acc, out, to, at_out, left, width)

    return tiles


_wide_tiles, _narrow_tiles = _tiles(simd.TILE_ROWS, COLUMNS), _tiles(ROWS, 1)
_half_tiles = _tiles(ROWS, HALF_COLUMNS) if HALF_COLUMNS > 1 else _narrow_tiles


@njit
def _strip(
    a, at_a, rows, taps, length, step, bank, at_bank, pitch, bias, at_bias,
    out, at_out, places, count, width, keep, relu,
):  # fmt: skip
    """out[at_out + places[q] + j] = bias[at_bias + j]
    + sum_{t,p} a[at_a + rows[q] + taps[t] + p step] bank[at_bank + (t length + p) pitch + j]

    for q < count and j < width: one strip of the output. All arrays are flat. An empty bias adds
    nothing; with `keep` the sum is added to what `out` holds; with `relu`, max(out, 0) is stored.
    """
    if width > HALF_COLUMNS * simd.lanes(out):
        _wide_tiles(
            a, at_a, rows, taps, length, step, bank, at_bank, pitch, bias, at_bias,
            out, at_out, places, count, width, keep, relu,
        )  # fmt: skip
    elif width > simd.lanes(out):
        _half_tiles(
            a, at_a, rows, taps, length, step, bank, at_bank, pitch, bias, at_bias,
            out, at_out, places, count, width, keep, relu,
        )  # fmt: skip
    else:
        _narrow_tiles(
            a, at_a, rows, taps, length, step, bank, at_bank, pitch, bias, at_bias,
            out, at_out, places, count, width, keep, relu,
        )  # fmt: skip


@njit
def _pitch(left, x):
    """Return how many columns the next strip of a bank has, with `left` columns to go."""
    lanes = simd.lanes(x)
    return (COLUMNS if left > HALF_COLUMNS * lanes else HALF_COLUMNS if left > lanes else 1) * lanes


@njit
def _pack(x, at, step, count, left, bank, to):
    """bank[to + p pitch + j] = x[at + p step + j] for p < count; zero from j = left on."""
    pitch = _pitch(left, bank)
    lanes = simd.lanes(bank)
    for j in range(0, pitch, lanes):
        if left - j >= lanes:
            for p in range(count):
                simd.store(bank, to + p * pitch + j, simd.load(x, at + p * step + j))
        else:
            for p in range(count):
                simd.store(bank, to + p * pitch + j, simd.load(x, at + p * step + j, left - j))


@njit
def _turn(x, at, step, rows, columns, out, to, pitch, width):
    """out[to + j pitch + i] = x[at + i step + j] for i < rows and j < columns: a matrix turned.

    Each row of out is written up to `width`, with zeros from i = rows on.
    """
    lanes = simd.lanes(out)
    for i in range(0, width, lanes):
        for j in range(0, columns, lanes):
            square = simd.tile_square(out)
            source = simd.tile_steps(square, at + i * step + j, step, rows - i)
            square = simd.tile_load(square, x, source, 0, rows - i, columns - j)
            target = simd.tile_steps(square, to + j * pitch + i, pitch, columns - j)
            square = simd.tile_transpose(square)
            simd.tile_store(square, out, target, 0, columns - j, width - i)


# A product is cut into blocks: `a` into blocks of rows and steps, which stay in a core's own cache,
# and b into panels of as many steps and some strips. A panel is packed once and serves all rows.
BLOCK_UNIT = 24  # rows: whole tiles, wide and narrow
BLOCK_ROWS, BLOCK_STEPS = 11 * BLOCK_UNIT, 512
PANEL_STRIPS = 8
PACKED_ROWS = 48  # that read a panel of b, for packing it to pay
# Elements of b from a panel's first row to its last: on more pages than a core knows, and so few
# that they stay in its own cache.
FAR, NEAR = 1 << 18, 1 << 16


@njit
def _even(total, most, unit):
    """Return the size of pieces of `total`: as few as can be, even, whole units, `most` at most."""
    pieces = max(-(-total // most), 1)
    return max(-(-total // (pieces * unit)), 1) * unit


@njit
def _pack_panel(x, at, step, count, columns, panel):
    """panel[s count + p strip + j] = x[at + p step + s + j], s = 0, strip, ... below `columns`.

    Row after row, so that x is read in long runs; zeros past the last column.
    """
    lanes = simd.lanes(panel)
    strip = COLUMNS * lanes
    whole = columns // strip * strip
    for p in range(count):
        for s in range(0, whole, strip):
            for j in range(0, strip, lanes):
                value = simd.load(x, at + p * step + s + j)
                simd.store(panel, s * count + p * strip + j, value)
    if whole < columns:
        _pack(x, at + whole, step, count, columns - whole, panel, whole * count)


@njit
def _product_of_row(a, at_a, b, at_b, pitch, n, k, out, at):
    """out[at + j] = sum_p a[at_a + p] b[at_b + p pitch + j]: four rows of b in each pass."""
    zero = out.dtype.type(0)
    for p in range(0, max(k, 1), 4):
        here, row, left = at_a + p, at_b + p * pitch, k - p
        a0 = a[here] if left > 0 else zero
        a1 = a[here + 1] if left > 1 else zero
        a2 = a[here + 2] if left > 2 else zero
        a3 = a[here + 3] if left > 3 else zero
        for j in range(0, n, simd.lanes(out)):
            width = n - j
            total = simd.splat(zero, out) if p == 0 else simd.load(out, at + j, width)
            if left > 0:
                total = simd.fma(simd.load(b, row + j, width), a0, total)
            if left > 1:
                total = simd.fma(simd.load(b, row + pitch + j, width), a1, total)
            if left > 2:
                total = simd.fma(simd.load(b, row + 2 * pitch + j, width), a2, total)
            if left > 3:
                total = simd.fma(simd.load(b, row + 3 * pitch + j, width), a3, total)
            simd.store(out, at + j, total, width)


@njit
def _dots_of_row(a, at_a, b, at_b, n, k, out, at):
    """out[at + j] = sum_p a[at_a + p] b[at_b + j k + p]: a vector holds terms of the sum."""
    for j in range(n):
        total = simd.splat(out.dtype.type(0), out)
        for p in range(0, k, simd.lanes(out)):
            x = simd.load(a, at_a + p, k - p)
            total = simd.fma(x, simd.load(b, at_b + j * k + p, k - p), total)
        out[at + j] = simd.reduce_sum(total)


@njit
def _few_rows(a, b, bias, transpose_b, relu, n, k, m, left, columns, out):
    """out[w, i, j] = bias[j] + sum_p a[w, i, p] b[w, p, j], row by row: b is read once for each."""
    for row in range(out.size // max(n, 1)):
        which, at = row // m, row * n + left
        at_a = row * k if a.size > m * k else row % m * k
        at_b = which * k * n if b.size > k * n else 0
        if transpose_b:
            _dots_of_row(a, at_a, b, at_b + left * k, columns, k, out, at)
        else:
            _product_of_row(a, at_a, b, at_b + left, n, columns, k, out, at)
        if bias.size > 0 or relu:
            for j in range(0, columns, simd.lanes(out)):
                total = simd.load(out, at + j, columns - j)
                if bias.size > 0:
                    total = total + simd.load(bias, left + j, columns - j)
                if relu:
                    total = vector.relu(total)
                simd.store(out, at + j, total, columns - j)


@njit
def matmul_forward(
    a, b, bias, transpose_a, transpose_b, relu, n, k, width_a, first, m, left, columns, out,
    tables, panel, block,
):  # fmt: skip
    """out[w, i, j] = bias[j] + sum_p a[w, i, p] b[w, p, j], each operand as it is or transposed.

    All arrays are flat. Matrix number w of a is m x k, or k x width_a transposed, of which columns
    `first` to first + m are taken: a shard's rows of the product. A shard may also have columns
    `left` to left + columns of the n. A single matrix serves all of out's. An empty bias adds
    nothing; with `relu`, max(out, 0) is stored. Without `tables` there are too few rows for tiles,
    and a is not transposed.

    `panel` has room for a panel of b, or for its last strip if b is not packed. `block` has room
    for a block of a transposed a turned straight, which pays for many columns; an empty one says
    that a is read as it lies.
    """
    if tables.size == 0:
        _few_rows(a, b, bias, transpose_b, relu, n, k, m, left, columns, out)
        return
    lanes = simd.lanes(out)
    strip = COLUMNS * lanes
    row_a, step_a = (1, width_a) if transpose_a else (width_a, 1)
    steps_of_block, rows_of_block = _even(k, BLOCK_STEPS, lanes), _even(m, BLOCK_ROWS, BLOCK_UNIT)
    rows, places, taps = tables[0], tables[1], tables[2, :1]
    pitch_a = steps_of_block + lanes
    for i in range(min(rows_of_block, m)):
        rows[i], places[i] = i * (pitch_a if block.size > 0 else row_a), i * n
    taps[0] = 0
    for which in range(out.size // max(m * n, 1)):
        at_b = which * k * n if b.size > k * n else 0
        for top in range(left, left + columns, PANEL_STRIPS * strip):
            wide = min(left + columns - top, PANEL_STRIPS * strip)
            for p in range(0, max(k, 1), steps_of_block):
                steps = min(steps_of_block, k - p)
                is_packed = transpose_b or _pays_to_pack(m, n, steps, lanes)
                if transpose_b:
                    for j in range(0, wide, strip):
                        width, pitch = min(wide - j, strip), _pitch(wide - j, out)
                        at = at_b + (top + j) * k + p
                        _turn(b, at, k, width, steps, panel, j * steps, pitch, pitch)
                elif is_packed:
                    _pack_panel(b, at_b + p * n + top, n, steps, wide, panel)
                for i in range(0, m, rows_of_block):
                    high = min(rows_of_block, m - i)
                    source_a, at_a, along = a, (first + i) * row_a + p * step_a, step_a
                    if a.size > m * k:
                        at_a += which * m * k
                    if block.size > 0:
                        _turn(a, at_a, step_a, steps, high, block, 0, pitch_a, steps)
                        source_a, at_a, along = block, 0, 1
                    for j in range(0, wide, strip):
                        width, pitch = wide - j, _pitch(wide - j, out)
                        source_b, at, apart = panel, j * steps if is_packed else 0, pitch
                        if not is_packed and width >= pitch:
                            source_b, at, apart = b, at_b + p * n + top + j, n
                        elif not is_packed and i == 0:
                            _pack(b, at_b + p * n + top + j, n, steps, width, panel, 0)
                        is_last = p + steps == k
                        _strip(
                            source_a, at_a, rows, taps, steps, along, source_b, at, apart,
                            bias if is_last else bias[:0], top + j,
                            out, (which * m + i) * n + top + j, places, high, width,
                            p > 0, relu and is_last,
                        )  # fmt: skip


@njit
def _pays_to_pack(m, n, steps, lanes):
    """Return whether m rows repay packing a panel of b, whose rows are n elements apart.

    Sooner if they are far apart, later if all start at a whole vector: these load as fast unpacked,
    and never if they are near, too.
    """
    if n * steps >= FAR:
        return m >= PACKED_ROWS // 2
    if n % lanes == 0:
        return m >= 2 * PACKED_ROWS and n * steps > NEAR
    return m >= PACKED_ROWS


# =================================================================== shaping


@njit
def permute_dims_forward(x, layout, first, out):
    """out[i0, i1, ...] = x at the permuted indices, for out's rows from number `first` on.

    `layout` holds out's shape, then for each of its axes the stride along it in x.
    """
    width, stride = layout[0, -1], layout[1, -1]
    for row in range(out.size // max(width, 1)):
        start = _offset(first + row, layout, 1)
        for j in range(width):
            out[row * width + j] = x[start + j * stride]


@njit
def _copy_run(x, at, out, to, count):
    """out[to + i] = x[at + i] for i < count."""
    for i in range(0, count, simd.lanes(x)):
        simd.store(out, to + i, simd.load(x, at + i, count - i), count - i)


@njit
def slice_forward(x, layout, start, first, out):
    """out[i0, i1, ...] = x[start0 + i0 step0, start1 + i1 step1, ...], rows from `first` on.

    `layout` holds out's shape, then for each axis the elements of x that its step skips; `start`
    is where in x the slice begins.
    """
    width, stride = layout[0, -1], layout[1, -1]
    for row in range(out.size // max(width, 1)):
        at = start + _offset(first + row, layout, 1)
        if stride == 1:
            _copy_run(x, at, out, row * width, width)
        else:
            for j in range(width):
                out[row * width + j] = x[at + j * stride]


@njit
def set_slice_forward(x, value, layout, first, out):
    """out[i0, ...] = value[k0, ...] if i = start + k step along every axis, else x[i0, ...].

    For out's rows from number `first` on; x is cut as out is. `layout` holds for each axis out's
    extent, the start, step and extent of the slice, and the stride in value. A single element of
    x or value stands for all.
    """
    width = layout[0, -1]
    start, step, count, stride = layout[1:, -1]
    for row in range(out.size // max(width, 1)):
        at = row * width
        if x.size > 1:
            _copy_run(x, at, out, at, width)
        else:
            for j in range(width):
                out[at + j] = x[0]
        source = _row_of_slice(first + row, layout)
        if source >= 0:
            for k in range(count):
                out[at + start + k * step] = value[source + k * stride]


@njit
def _row_of_slice(row, layout):
    """Return where in value the part for a row of out begins, or -1 if there is none."""
    source = 0
    for axis in range(layout.shape[1] - 2, -1, -1):
        extent, start, step, count, stride = layout[:, axis]
        k, between = divmod(row % extent - start, step)
        if between != 0 or k < 0 or k >= count:
            return -1
        source += k * stride
        row //= extent
    return source


@njit
def concat_forward(x, y, width_x, width_y, out):
    """out[o, i] = x[o, i] for i < width_x, then y[o, i - width_x]."""
    width = width_x + width_y
    for o in range(out.size // max(width, 1)):
        _copy_run(x, o * width_x, out, o * width, width_x)
        _copy_run(y, o * width_y, out, o * width + width_x, width_y)


# ================================================================== indexing
#
# An array is seen as (outer, rows, inner) and indexed along its rows. Index r < 0 means rows + r.
# Outputs are good only if `error` says that every index is.


@njit
def _first_outside(indices, rows, first):
    """Return the place of the first index out of range, counted from `first`, or NO_ERROR."""
    for n in range(indices.size):
        if indices[n] < -rows or indices[n] >= rows:
            return first + n
    return NO_ERROR


@njit
def take_forward(x, indices, rows, inner, first, out, error):
    """out[o, n, i] = x[o, indices[n], i]; `first` is the number of the first index."""
    error[0] = _first_outside(indices, rows, first)
    if error[0] != NO_ERROR:
        return
    for o in range(out.size // max(indices.size * inner, 1)):
        for n in range(indices.size):
            row = indices[n] + (rows if indices[n] < 0 else 0)
            _copy_run(x, (o * rows + row) * inner, out, (o * indices.size + n) * inner, inner)


@njit
def take_backward(grad_out, indices, rows, inner, first, count, out):
    """out[o, r, i] = the sum of grad_out[o, n, i] over the n with indices[n] == first + r.

    `out` holds `count` of the rows, from number `first` on. Each sum runs in the order of n.
    """
    for i in range(out.size):
        out[i] = 0
    for o in range(out.size // max(count * inner, 1)):
        for n in range(indices.size):
            row = indices[n] + (rows if indices[n] < 0 else 0) - first
            if 0 <= row < count:
                at, source = (o * count + row) * inner, (o * indices.size + n) * inner
                for i in range(0, inner, simd.lanes(out)):
                    total = simd.load(out, at + i, inner - i)
                    total = total + simd.load(grad_out, source + i, inner - i)
                    simd.store(out, at + i, total, inner - i)


@njit
def ravel_index_forward(high, low, rows, first, out, error):
    """out[n] = high[n] rows + low[n]: one index for a pair, with low counted from the front."""
    error[0] = _first_outside(low, rows, first)
    for n in range(out.size):
        out[n] = high[n] * rows + low[n] + (rows if low[n] < 0 else 0)


@njit
def last_writer_forward(indices, rows, first, out, error):
    """out[r] = the last n with indices[n] == first + r, or -1 if there is none."""
    error[0] = _first_outside(indices, rows, 0)
    for r in range(out.size):
        out[r] = -1
    for n in range(indices.size):
        row = indices[n] + (rows if indices[n] < 0 else 0) - first
        if 0 <= row < out.size:
            out[row] = n


# ============================================================== optimisation
#
# Each update is one pass over a parameter, its gradient and its moments. `lr` and `steps` hold one
# number each, read when the kernel runs. Outputs may be the inputs of the same name: an element is
# read before it is written.


@njit
def count_forward(steps, out):
    """out[i] = steps[i] + 1."""
    for i in range(steps.size):
        out[i] = steps[i] + 1


@njit
def sgd_update(param, grad, lr, weight_decay, out):
    """g = grad + weight_decay param;  out = param - lr g."""
    rate = param.dtype.type(lr[0])
    for i in range(0, param.size, simd.lanes(param)):
        n = param.size - i
        p = simd.load(param, i, n)
        g = simd.load(grad, i, n) + weight_decay * p
        simd.store(out, i, p - rate * g, n)


@njit
def momentum_update(param, grad, velocity, lr, weight_decay, momentum, nesterov, out, new_velocity):
    """v = momentum velocity + g;  out = param - lr v, with g as in `sgd_update`.

    Nesterov's step looks ahead: out = param - lr (g + momentum v). A tiny v becomes 0.
    """
    rate = param.dtype.type(lr[0])
    for i in range(0, param.size, simd.lanes(param)):
        n = param.size - i
        p = simd.load(param, i, n)
        g = simd.load(grad, i, n) + weight_decay * p
        v = vector.settled(momentum * simd.load(velocity, i, n) + g)
        simd.store(new_velocity, i, v, n)
        step = g + momentum * v if nesterov else v
        simd.store(out, i, p - rate * step, n)


@njit
def adam_update(
    param, grad, mean, square, lr, steps,
    rest1, rest2, log1, log2, eps, l2, decay,
    out, new_mean, new_square,
):  # fmt: skip
    """Adam (Kingma and Ba, 2015), with t = steps, rest = 1 - beta, log = ln(beta):

    g = grad + l2 param;  m = mean + rest1 (g - mean);  s = square + rest2 (g^2 - square)
    out = (1 - lr decay) param - lr m / (1 - beta1^t) / (sqrt(s / (1 - beta2^t)) + eps)
    Tiny m and s become 0.
    """
    number = param.dtype.type
    t = number(steps[0])
    rate = number(lr[0])
    kept = number(1) - rate * decay
    m_scale = rate / number(-np.expm1(t * log1))
    s_scale = number(1) / number(-np.expm1(t * log2))
    for i in range(0, param.size, simd.lanes(param)):
        n = param.size - i
        p = simd.load(param, i, n)
        g = simd.load(grad, i, n) + l2 * p
        m = simd.load(mean, i, n)
        m = vector.settled(m + rest1 * (g - m))
        s = simd.load(square, i, n)
        s = vector.settled(s + rest2 * (g * g - s))
        simd.store(new_mean, i, m, n)
        simd.store(new_square, i, s, n)
        simd.store(out, i, kept * p - m_scale * m / (simd.sqrt(s * s_scale) + eps), n)


# =============================================================== convolution
#
# Images are (n, h, w, c), weights (r, s, c, k). Output pixels are the rows of register tiles and
# output channels their columns: a step multiplies an input value of each of these pixels by a row
# of the bank that holds the weight. Where pixels and filter taps lie is written down in tables
# first. That is all that stride, dilation and the gradient change: the loops know none of them.
# Nothing is unfolded; padding is a copy of a few images at a time, in workspace.
#
# Without dilation and groups, (s, c) lies in one run in both the image and the weight: one long
# tap in place of several short ones, which keeps the inner loop long even for 1 or 3 channels.


@njit
def _spread(x, first, count, offset, out):
    """out[i, h + offset, w + offset, c] = x[first + i, h, w, c] for i < count, where that is
    inside; the rest of out stays as it is.
    """
    _, height, width, depth = x.shape
    _, rows, columns, _ = out.shape
    left = max(0, -offset[1])
    length = (min(width, columns - offset[1]) - left) * depth
    for i in range(count):
        for h in range(max(0, -offset[0]), min(height, rows - offset[0])):
            at = (((first + i) * height + h) * width + left) * depth
            to = ((i * rows + h + offset[0]) * columns + left + offset[1]) * depth
            _copy_run(x, at, out, to, length)


@njit
def _pixels(extents, stride, image, pitch, pixels):
    """Write down where the windows of output pixels start in an image, and the pixels' places.

    An output pixel has `pitch` elements.
    """
    _, rows, columns, channels = image
    height, width = extents
    starts, places = pixels[0].reshape(-1), pixels[1].reshape(-1)
    for n in range(pixels.shape[1]):
        for h in range(height):
            for w in range(width):
                q = (n * height + h) * width + w
                pixel = (n * rows + h * stride[0]) * columns + w * stride[1]
                starts[q], places[q] = pixel * channels, q * pitch


@njit
def _convolve(
    image, at_image, starts, taps, length, depth, bank, at_bank, groups, group, bias, relu,
    out, at_out, places, count,
):  # fmt: skip
    """out[places[q], k] = bias[k] + sum_{t,p} image[starts[q] + taps[t] + p] bank[t length + p, k]

    for q < count and all k < groups * group. Return where the bank goes on.
    """
    for g in range(groups):
        for k in range(0, group, COLUMNS * simd.lanes(out)):
            first, pitch = g * group + k, _pitch(group - k, out)
            _strip(
                image, at_image + g * depth, starts, taps, length, 1, bank, at_bank, pitch,
                bias, first, out, at_out + first, places, count, group - k, False, relu,
            )  # fmt: skip
            at_bank += taps.size * length * pitch
    return at_bank


@njit
def conv2d_bank(weight, groups, bank):
    """bank = the filter in strips of k with rows (r, s, c), those of a group together."""
    rows, columns = weight.shape
    group = columns // groups
    weight, to = weight.reshape(-1), 0
    for g in range(groups):
        for k in range(0, group, COLUMNS * simd.lanes(bank)):
            _pack(weight, g * group + k, columns, rows, group - k, bank, to)
            to += rows * _pitch(group - k, bank)


@njit
def conv2d_forward(
    x, weight, bias, bank, stride, padding, dilation, groups, relu, out, padded, pixels, taps
):
    """out[n, h, w, k] = bias[k]
    + sum_{r,s,c} x[n, h stride + r dilation - padding, w ... + s ... - ..., c] weight[r, s, c, k].

    With groups, channel k sees only the c of its group. An empty bias adds nothing; with `relu`,
    max(out, 0) is stored. `bank` holds the weight in strips. `pixels` has room for the places of as
    many images as are done at a time.
    """
    filter_height, filter_width, depth, _ = weight.shape
    _, height, width, out_channels = out.shape
    image = padded if padded.size > 0 else x
    _, rows, columns, channels = image.shape
    runs, length = filter_width, depth
    if dilation[1] == 1 and groups == 1:
        runs, length = 1, filter_width * depth
    for r in range(filter_height):
        for s in range(runs):
            taps[0, r * runs + s] = (r * dilation[0] * columns + s * dilation[1]) * channels
    chunk = pixels.shape[1]
    starts, places = pixels[0].reshape(-1), pixels[1].reshape(-1)
    _pixels((height, width), stride, image.shape, out_channels, pixels)
    padded.fill(0)
    for n in range(0, x.shape[0], chunk):
        images = min(chunk, x.shape[0] - n)
        at = n * rows * columns * channels
        if padded.size > 0:
            _spread(x, n, images, padding, padded)
            at = 0
        _convolve(
            image.reshape(-1), at, starts, taps[0, : filter_height * runs], length, depth,
            bank, 0, groups, out_channels // groups, bias, relu,
            out.reshape(-1), n * height * width * out_channels, places, images * height * width,
        )  # fmt: skip


# The gradient of the input is a convolution too: of grad_out, by the filter upside down. With a
# stride, a pixel sees every stride-th tap only: which ones depends on its phase, (h + padding) %
# stride. Pixels of a phase see the same taps, r = phase + stride e, each e rows further up.


@njit
def _reach(kernel, stride, dilation):
    """Return how many rows of grad_out further up a pixel sees."""
    return (kernel - 1) * dilation // stride


@njit
def _first_seen(kernel, stride, padding, dilation):
    """Return how far grad_out is moved so that what the first pixel sees begins at 0."""
    return (
        _reach(kernel[0], stride[0], dilation[0]) - padding[0] // stride[0],
        _reach(kernel[1], stride[1], dilation[1]) - padding[1] // stride[1],
    )


@njit
def conv2d_bank_turned(weight, stride, dilation, groups, bank):
    """bank = the filter upside down, strips of c with rows (r, s, k), one phase after the other.

    A phase has the taps (r, s) with (r dilation) % stride = phase.
    """
    filter_height, filter_width, depth, out_channels = weight.shape
    group = out_channels // groups
    weight, to = weight.reshape(-1), 0
    for phase in range(stride[0] * stride[1]):
        for g in range(groups):
            for c in range(0, depth, COLUMNS * simd.lanes(bank)):
                pitch = _pitch(depth - c, bank)
                for r in range(filter_height - 1, -1, -1):
                    if r * dilation[0] % stride[0] != phase // stride[1]:
                        continue
                    for s in range(filter_width - 1, -1, -1):
                        if s * dilation[1] % stride[1] != phase % stride[1]:
                            continue
                        at = ((r * filter_width + s) * depth + c) * out_channels + g * group
                        left = min(depth - c, pitch)
                        _turn(weight, at, out_channels, left, group, bank, to, pitch, pitch)
                        to += group * pitch


@njit
def _phase_rows(phase, stride, padding, extent):
    """Return the first row of a phase, and how many it has."""
    first = (phase - padding) % stride
    return first, max(0, (extent - first + stride - 1) // stride)


@njit
def _phase_size(phase, stride, padding, extents):
    """Return how many pixels of an image are in a phase."""
    _, down = _phase_rows(phase[0], stride[0], padding[0], extents[0])
    _, across = _phase_rows(phase[1], stride[1], padding[1], extents[1])
    return down * across


@njit
def _phase_pixels(stride, padding, image, pitch, grad_x, pixels):
    """Write down where pixels start in an image, and their places in grad_x: phase after phase.

    `image` has `pitch` elements a pixel.
    """
    _, rows, columns, _ = image
    _, height, width, channels = grad_x
    starts, places = pixels[0].reshape(-1), pixels[1].reshape(-1)
    q = 0
    for phase in range(stride[0] * stride[1]):
        top, down = _phase_rows(phase // stride[1], stride[0], padding[0], height)
        left, across = _phase_rows(phase % stride[1], stride[1], padding[1], width)
        row = (top + padding[0]) // stride[0] - padding[0] // stride[0]
        column = (left + padding[1]) // stride[1] - padding[1] // stride[1]
        for n in range(pixels.shape[1]):
            for i in range(down):
                start = ((n * rows + row + i) * columns + column) * pitch
                place = ((n * height + top + i * stride[0]) * width + left) * channels
                for j in range(across):
                    starts[q] = start + j * pitch
                    places[q] = place + j * stride[1] * channels
                    q += 1


@njit
def _phase_taps(phase, kernel, stride, dilation, join, pitch, columns, taps):
    """Write down where a phase's taps lie from a pixel's start on, and in a depthwise filter.

    Return how many there are, and how many columns each is long: with `join`, the taps of a row
    of the filter are one.
    """
    runs, across = 0, 1
    for r in range(kernel[0] - 1, -1, -1):
        if r * dilation[0] % stride[0] != phase[0]:
            continue
        row = _reach(kernel[0], stride[0], dilation[0]) - r * dilation[0] // stride[0]
        across = 0
        for s in range(kernel[1] - 1, -1, -1):
            if s * dilation[1] % stride[1] != phase[1]:
                continue
            column = _reach(kernel[1], stride[1], dilation[1]) - s * dilation[1] // stride[1]
            if not join or across == 0:
                taps[0, runs] = (row * columns + column) * pitch
                taps[1, runs] = (r * kernel[1] + s) * pitch
                runs += 1
            across += 1
    return runs, across if join else 1


@njit
def conv2d_backward_input(
    grad_out, weight, bank, stride, padding, dilation, groups, grad_x, spread, pixels, taps
):
    """grad_x[n, h, w, c] = sum of grad_out[n, i, j, k] weight[r, s, c, k] over all r, s, k where
    i stride + r dilation - padding = h, and likewise for j and w.

    `bank` holds the weight as `conv2d_bank_turned` lays it out. `spread` has room for grad_out with
    zeros around it; empty, it is not needed.
    """
    filter_height, filter_width, _, out_channels = weight.shape
    kernel = filter_height, filter_width
    _, height, width, channels = grad_x.shape
    image = spread if spread.size > 0 else grad_out
    _, rows, columns, _ = image.shape
    offset = _first_seen(kernel, stride, padding, dilation)
    chunk, phases = pixels.shape[1], stride[0] * stride[1]
    starts, places = pixels[0].reshape(-1), pixels[1].reshape(-1)
    _phase_pixels(stride, padding, image.shape, out_channels, grad_x.shape, pixels)
    join = dilation[1] == 1 and groups == 1
    no_bias = bank[:0]
    spread.fill(0)
    for n in range(0, grad_x.shape[0], chunk):
        images = min(chunk, grad_x.shape[0] - n)
        at, at_bank, first = n * rows * columns * out_channels, 0, 0
        if spread.size > 0:
            _spread(grad_out, n, images, offset, spread)
            at = 0
        for number in range(phases):
            phase = number // stride[1], number % stride[1]
            count = _phase_size(phase, stride, padding, (height, width))
            runs, across = _phase_taps(
                phase, kernel, stride, dilation, join, out_channels, columns, taps
            )
            group = out_channels // groups
            at_bank = _convolve(
                image.reshape(-1), at, starts[first:], taps[0, :runs], across * group, group,
                bank, at_bank, groups, channels // groups, no_bias, False,
                grad_x.reshape(-1), n * height * width * channels, places[first:], images * count,
            )  # fmt: skip
            first += chunk * count


BLOCK_PIXELS = 128  # of grad_out, together in a strip that stays close to the core


@njit
def conv2d_backward_weight(
    x, grad_out, stride, padding, dilation, groups, grad_weight, padded, tables, lines, strip
):
    """grad_weight[r, s, c, k]
    = sum_{n,h,w} x[n, h stride + r dilation - padding, w ..., c] grad_out[n, h, w, k].

    The rows of a tile are (r, s, c), the columns k; the sum runs over a block of pixels at a time.
    """
    filter_height, filter_width, depth, out_channels = grad_weight.shape
    _, height, width, _ = grad_out.shape
    group = out_channels // groups
    image = padded if padded.size > 0 else x
    _, rows, columns, channels = image.shape
    starts, places = tables[0], tables[1]
    for r in range(filter_height):
        for s in range(filter_width):
            for c in range(depth):
                q = (r * filter_width + s) * depth + c
                pixel = r * dilation[0] * columns + s * dilation[1]
                starts[q], places[q] = pixel * channels + c, q * out_channels
    chunk, line = lines.shape[0], lines.reshape(-1)
    for n in range(chunk):
        for h in range(height):
            line[n * height + h] = (n * rows + h * stride[0]) * columns * channels
    block = max(1, BLOCK_PIXELS // max(width, 1))
    flat_image, flat_grad = image.reshape(-1), grad_out.reshape(-1)
    flat_out, no_bias = grad_weight.reshape(-1), strip[:0]
    grad_weight.fill(0)
    padded.fill(0)
    for n in range(0, x.shape[0], chunk):
        images = min(chunk, x.shape[0] - n)
        at = n * rows * columns * channels
        if padded.size > 0:
            _spread(x, n, images, padding, padded)
            at = 0
        for h in range(0, images * height, block):
            last = min(h + block, images * height)
            pixel = (n * height + h) * width
            for g in range(groups):
                for k in range(0, group, COLUMNS * simd.lanes(x)):
                    first, left = g * group + k, group - k
                    source = pixel * out_channels + first
                    _pack(flat_grad, source, out_channels, (last - h) * width, left, strip, 0)
                    _strip(
                        flat_image, at + g * depth, starts, line[h:last], width,
                        stride[1] * channels, strip, 0, _pitch(left, x), no_bias, 0,
                        flat_out, first, places, starts.size, left, True, False,
                    )  # fmt: skip


# ------------------------------------------------ few channels: planes of pixels
#
# A vector of six channels is mostly empty. Where there are few of them, images are taken apart into
# planes, one for each channel, and a vector holds neighbouring pixels. A plane has its zeros around
# it, and its rows follow on each other: then a tap lies equally far from all output pixels, so that
# a tile of (k, pixels) needs no tables. It runs over the ends of rows, too; what it finds there is
# thrown away. There is little of it: the zeros after a row, and those below an image, are the ones
# before the next. With a stride each phase of the pixels has planes of its own (see above).


@njit
def _apart(x, first, count, stride, offset, planes, rows, pitch):
    """planes[c, phase, i, h', w'] = x[first + i, h, w, c] for i < count.

    h + offset = h' stride + phase, and likewise for w. A plane has `rows` x `pitch` pixels an
    image.
    """
    _, height, width, channels = x.shape
    area, phases = planes.shape[1], stride[0] * stride[1]
    flat, out = x.reshape(-1), planes.reshape(-1)
    for phase in range(phases):
        top, down = _phase_rows(phase // stride[1], stride[0], offset[0], height)
        left, across = _phase_rows(phase % stride[1], stride[1], offset[1], width)
        row, column = (top + offset[0]) // stride[0], (left + offset[1]) // stride[1]
        step = stride[1] * channels
        for i in range(count):
            at = (((first + i) * height + top) * width + left) * channels
            to = phase * area + (i * rows + row) * pitch + column
            for _ in range(down):
                if step == 1:
                    _copy_run(flat, at, out, to, across)
                else:
                    _row_apart(flat, at, step, across, channels, out, to, phases * area)
                at += stride[0] * width * channels
                to += pitch


@njit
def _row_apart(x, at, step, count, channels, out, to, apart):
    """out[to + c apart + j] = x[at + j step + c] for j < count and c < channels."""
    for c in range(0, channels, ROWS):
        acc, left = simd.tile(out, ROWS, 1), channels - c
        places = simd.tile_steps(acc, to + c * apart, apart, left)
        for j in range(0, count, simd.lanes(out)):
            acc = simd.tile_load_turned(acc, x, at + j * step + c, step, count - j, left)
            simd.tile_store(acc, out, places, j, left, count - j)


@njit
def _plane_places(images, extents, first, step, inside, rows, pitch, channels, places):
    """Write down where a plane's pixels lie in images of these extents, of `channels` each.

    Pixel (h, w) lies at first + step (h, w), if that is inside; other pixels get the place of the
    last one before them, which is written later.
    """
    place = 0
    for i in range(images):
        for h in range(rows):
            start = ((i * extents[0] + first[0] + h * step[0]) * extents[1] + first[1]) * channels
            count = inside[1] if h < inside[0] else 0
            for w in range(pitch):
                if w < count:
                    place = start + w * step[1] * channels
                places[(i * rows + h) * pitch + w] = place
    places[images * rows * pitch :].fill(place)


@njit
def _convolve_planes(
    planes, taps, terms, weight, apart, bias, ones, relu, out, at_out, places, count, channels
):
    """out[at_out + places[q] + k] = bias[k]
    + sum_t planes[taps[0, t] + q] weight[taps[1, t] + k apart], t < terms,

    for q < count and k < channels, from the last q to the first: a place that several share is the
    first one's.
    """
    step = COLUMNS * simd.lanes(out)
    for q in range((count - 1) // step * step, -1, -step):  # `places` goes on to a whole tile
        for k in range(0, channels, WIDE_ROWS):
            acc = simd.tile(out, WIDE_ROWS, COLUMNS)
            here = simd.tile_steps(acc, k * apart, apart, channels - k)
            for t in range(terms):
                acc = simd.tile_fma(acc, weight, here, taps[1, t], planes, taps[0, t] + q)
            if bias.size > 0:
                here = simd.tile_steps(acc, k, 1, channels - k)
                acc = simd.tile_fma(acc, bias, here, 0, ones, 0)
            if relu:
                acc = simd.tile_maximum(acc, 0)
            simd.tile_store_turned(acc, out, places, q, at_out + k, channels - k)


@njit
def _images_of(planes, rows, pitch):
    """Return how many images of this size planes hold: at their end there is room for a tile, and
    for the zeros after the last image.
    """
    return (planes.shape[1] - COLUMNS * simd.lanes(planes)) // (rows * pitch)


@njit
def _pixels_of(images, extents, rows, pitch):
    """Return how many pixels of a plane there are up to the last that is one of the images'."""
    height, width = extents
    return ((images - 1) * rows + height - 1) * pitch + width if height * width > 0 else 0


@njit
def _line(extent, before, total, places):
    """Return how far it is from a line of `extent` elements to the next, with zeros around them.

    `before` zeros come before it, and all after it, which make up `total`, are before the next one,
    too. From each line as many `places` start.
    """
    return max(extent + max(before, total - extent - before), places)


@njit
def _plane_extents(x, stride, padding, extents, planes):
    """Return how many images planes of x hold, and the rows and the pixels of a row of each.

    An output image has `extents`.
    """
    rows = (x.shape[1] + 2 * padding[0] + stride[0] - 1) // stride[0]
    pitch = (x.shape[2] + 2 * padding[1] + stride[1] - 1) // stride[1]
    if stride == (1, 1):
        rows = _line(x.shape[1], padding[0], rows, extents[0])
        pitch = _line(x.shape[2], padding[1], pitch, extents[1])
    return _images_of(planes, rows, pitch), rows, pitch


@njit
def planar_forward(
    x, weight, bias, bank, stride, padding, dilation, groups, relu, out, planes, places, taps, ones
):
    """out = what `conv2d_forward` gives, for few output channels. No bank is needed, no groups."""
    filter_height, filter_width, depth, out_channels = weight.shape
    _, height, width, _ = out.shape
    images, rows, pitch = _plane_extents(x, stride, padding, (height, width), planes)
    area, phases, t = planes.shape[1], stride[0] * stride[1], 0
    for r in range(filter_height):
        for s in range(filter_width):
            h, w = r * dilation[0], s * dilation[1]
            phase = h % stride[0] * stride[1] + w % stride[1]
            for c in range(depth):
                plane = (c * phases + phase) * area
                taps[0, t] = plane + h // stride[0] * pitch + w // stride[1]
                taps[1, t] = t * out_channels
                t += 1
    planes.fill(0)
    ones.fill(1)
    for n in range(0, x.shape[0], images):
        count = min(images, x.shape[0] - n)
        if n == 0 or count < images:
            extents = height, width
            _plane_places(
                count, extents, (0, 0), (1, 1), extents, rows, pitch, out_channels, places
            )
        _apart(x, n, count, stride, padding, planes, rows, pitch)
        _convolve_planes(
            planes.reshape(-1), taps, t, weight.reshape(-1), 1, bias, ones, relu,
            out.reshape(-1), n * height * width * out_channels, places,
            _pixels_of(count, (height, width), rows, pitch), out_channels,
        )  # fmt: skip


@njit
def _seen(extent, kernel, stride, padding, dilation):
    """Return how many rows of grad_out, zeros around it included, an image's pixels see."""
    last = (extent - 1 + padding) // stride - padding // stride
    return last + 1 + (kernel - 1) * dilation // stride


@njit
def planar_backward_input(
    grad_out, weight, bank, stride, padding, dilation, groups, grad_x, planes, places, taps, ones
):
    """grad_x = what `conv2d_backward_input` gives, for few input channels and moderate padding.

    With a stride, the pixels of a phase are one output.
    """
    filter_height, filter_width, depth, out_channels = weight.shape
    kernel, extents = (filter_height, filter_width), grad_x.shape[1:3]
    height, width = extents
    offset = _first_seen(kernel, stride, padding, dilation)
    down, across = (height - 1) // stride[0] + 1, (width - 1) // stride[1] + 1
    rows = _seen(height, kernel[0], stride[0], padding[0], dilation[0])
    pitch = _seen(width, kernel[1], stride[1], padding[1], dilation[1])
    rows = _line(grad_out.shape[1], offset[0], rows, down)
    pitch = _line(grad_out.shape[2], offset[1], pitch, across)
    images, area, phases = _images_of(planes, rows, pitch), planes.shape[1], stride[0] * stride[1]
    planes.fill(0)
    for n in range(0, grad_x.shape[0], images):
        count = min(images, grad_x.shape[0] - n)
        _apart(grad_out, n, count, (1, 1), offset, planes, rows, pitch)
        for number in range(phases):
            phase = number // stride[1], number % stride[1]
            top, down = _phase_rows(phase[0], stride[0], padding[0], height)
            left, across = _phase_rows(phase[1], stride[1], padding[1], width)
            if phases > 1 or n == 0 or count < images:
                _plane_places(
                    count, extents, (top, left), stride, (down, across), rows, pitch, depth, places
                )
            row = (top + padding[0]) // stride[0] - padding[0] // stride[0]
            column = (left + padding[1]) // stride[1] - padding[1] // stride[1]
            runs, _ = _phase_taps(phase, kernel, stride, dilation, False, 1, pitch, taps)
            # Each tap (r, s) is one for every k.
            for t in range(runs - 1, -1, -1):
                plane, tap = taps[0, t] + row * pitch + column, taps[1, t] * depth * out_channels
                for k in range(out_channels):
                    taps[0, t * out_channels + k] = plane + k * area
                    taps[1, t * out_channels + k] = tap + k
            _convolve_planes(
                planes.reshape(-1), taps, runs * out_channels, weight.reshape(-1), out_channels,
                bank[:0], ones, False, grad_x.reshape(-1), n * height * width * depth, places,
                _pixels_of(count, (down, across), rows, pitch), depth,
            )  # fmt: skip


SUMS = 3  # vectors of sums in a row of a tile: with few output channels, half of them


@njit
def planar_backward_weight(
    x, grad_out, stride, padding, dilation, groups, grad_weight, planes, grads, sums, tables
):
    """grad_weight = what `conv2d_backward_weight` gives, for few output channels.

    The rows of a tile are (r, s, c), its columns k; each lane sums over pixels of its own, and all
    lanes are added in the end.
    """
    filter_height, filter_width, depth, out_channels = grad_weight.shape
    _, height, width, _ = grad_out.shape
    images, rows, pitch = _plane_extents(x, stride, padding, (height, width), planes)
    area, phases, q = planes.shape[1], stride[0] * stride[1], 0
    starts, parts, to = tables[0], tables[1], tables[2]
    lanes = simd.lanes(x)
    across = -(-out_channels // SUMS) * SUMS * lanes
    for r in range(filter_height):
        for s in range(filter_width):
            h, w = r * dilation[0], s * dilation[1]
            phase = h % stride[0] * stride[1] + w % stride[1]
            for c in range(depth):
                plane = (c * phases + phase) * area
                starts[q] = plane + h // stride[0] * pitch + w // stride[1]
                parts[q], to[q] = q * across, q * out_channels
                q += 1
    flat, flat_grads = planes.reshape(-1), grads.reshape(-1)
    planes.fill(0)
    grads.fill(0)
    sums.fill(0)
    for n in range(0, x.shape[0], images):
        count = min(images, x.shape[0] - n)
        _apart(x, n, count, stride, padding, planes, rows, pitch)
        _apart(grad_out, n, count, (1, 1), (0, 0), grads, rows, pitch)
        for q in range(0, starts.size, WIDE_ROWS):
            left = starts.size - q
            for k in range(0, out_channels, SUMS):
                acc = simd.tile(x, WIDE_ROWS, SUMS)
                here = simd.tile_rows(acc, starts, q, left)
                part = simd.tile_rows(acc, parts, q, left)
                acc = simd.tile_load(acc, sums, part, k * lanes, left, SUMS * lanes)
                for i in range(count):
                    for h in range(i * rows, i * rows + height):
                        at, last = h * pitch, h * pitch + width
                        for p in range(at, last, lanes):
                            acc = simd.tile_fma_terms(
                                acc, flat, here, p, flat_grads, k * area + p, area, last - p
                            )
                simd.tile_store(acc, sums, part, k * lanes, left, SUMS * lanes)
    for q in range(0, starts.size, WIDE_ROWS):
        left = starts.size - q
        for k in range(0, out_channels, SUMS):
            acc = simd.tile(x, WIDE_ROWS, SUMS)
            part = simd.tile_rows(acc, parts, q, left)
            acc = simd.tile_load(acc, sums, part, k * lanes, left, SUMS * lanes)
            here = simd.tile_rows(acc, to, q, left)
            simd.tile_store_sums(acc, grad_weight.reshape(-1), here, k, left, out_channels - k)


# ------------------------------------------------- depthwise: a filter a channel
#
# Channels do not mix: a step multiplies a vector of neighbouring channels of an input pixel by the
# same channels of a filter tap, and a tile holds them for ROWS output pixels.


PAIR = 2  # vectors of channels


@njit
def _depthwise(
    image, at_image, starts, taps, weight, filters, bias, relu, out, at_out, places, count, channels
):
    """out[places[q] + c] = bias[c] + sum_t image[starts[q] + taps[t] + c] weight[filters[t] + c]

    for q < count and all c.
    """
    for c in range(0, channels, PAIR * simd.lanes(out)):
        width = channels - c
        for q in range(0, count, ROWS):
            left = count - q
            acc = simd.tile(out, ROWS, PAIR)
            here = simd.tile_rows(acc, starts, q, left)
            for t in range(taps.size):
                at, tap = at_image + taps[t] + c, filters[t] + c
                if width >= PAIR * simd.lanes(out):
                    acc = simd.tile_fma_rows(acc, image, here, at, weight, tap)
                else:
                    acc = simd.tile_fma_rows(acc, image, here, at, weight, tap, width)
            if bias.size > 0:
                acc = simd.tile_add(acc, bias, c, width)
            if relu:
                acc = simd.tile_maximum(acc, 0)
            to = simd.tile_rows(acc, places, q, left)
            simd.tile_store(acc, out, to, at_out + c, left, width)


@njit
def depthwise_forward(
    x, weight, bias, bank, stride, padding, dilation, groups, relu, out, padded, pixels, taps
):
    """out[n, h, w, c] = bias[c]
    + sum_{r,s} x[n, h stride + r dilation - padding, w ... + s ... - ..., c] weight[r, s, 0, c].

    `conv2d_forward` with as many groups as channels. An empty bias adds nothing; no bank is needed.
    """
    filter_height, filter_width, _, channels = weight.shape
    _, height, width, _ = out.shape
    image = padded if padded.size > 0 else x
    _, rows, columns, _ = image.shape
    for r in range(filter_height):
        for s in range(filter_width):
            t = r * filter_width + s
            taps[0, t] = (r * dilation[0] * columns + s * dilation[1]) * channels
            taps[1, t] = t * channels
    chunk = pixels.shape[1]
    _pixels((height, width), stride, image.shape, channels, pixels)
    padded.fill(0)
    for n in range(0, x.shape[0], chunk):
        images = min(chunk, x.shape[0] - n)
        at = n * rows * columns * channels
        if padded.size > 0:
            _spread(x, n, images, padding, padded)
            at = 0
        _depthwise(
            image, at, pixels[0].reshape(-1), taps[0], weight, taps[1], bias, relu, out,
            n * height * width * channels, pixels[1].reshape(-1), images * height * width, channels,
        )  # fmt: skip


@njit
def depthwise_backward_input(
    grad_out, weight, bank, stride, padding, dilation, groups, grad_x, spread, pixels, taps
):
    """grad_x[n, h, w, c] = sum of grad_out[n, i, j, c] weight[r, s, 0, c] over all r, s where
    i stride + r dilation - padding = h, and likewise for j and w. See `conv2d_backward_input`.
    """
    kernel = weight.shape[:2]
    _, height, width, channels = grad_x.shape
    image = spread if spread.size > 0 else grad_out
    _, rows, columns, _ = image.shape
    offset = _first_seen(kernel, stride, padding, dilation)
    chunk, no_bias = pixels.shape[1], weight.reshape(-1)[:0]
    starts, places = pixels[0].reshape(-1), pixels[1].reshape(-1)
    _phase_pixels(stride, padding, image.shape, channels, grad_x.shape, pixels)
    spread.fill(0)
    for n in range(0, grad_x.shape[0], chunk):
        images = min(chunk, grad_x.shape[0] - n)
        at, first = n * rows * columns * channels, 0
        if spread.size > 0:
            _spread(grad_out, n, images, offset, spread)
            at = 0
        for number in range(stride[0] * stride[1]):
            phase = number // stride[1], number % stride[1]
            count = _phase_size(phase, stride, padding, (height, width))
            runs, _ = _phase_taps(phase, kernel, stride, dilation, False, channels, columns, taps)
            _depthwise(
                image, at, starts[first:], taps[0, :runs], weight, taps[1], no_bias, False, grad_x,
                n * height * width * channels, places[first:], images * count, channels,
            )  # fmt: skip
            first += chunk * count


FILTER_ROWS = 5  # of a tile that holds a depthwise filter: 3 x 3 taps are two such tiles


@njit
def depthwise_backward_weight(
    x, grad_out, stride, padding, dilation, groups, grad_weight, padded, pixels, taps
):
    """grad_weight[r, s, 0, c]
    = sum_{n,h,w} x[n, h stride + r dilation - padding, w ..., c] grad_out[n, h, w, c].

    The rows of a tile are filter taps (r, s).
    """
    filter_height, filter_width, _, channels = grad_weight.shape
    _, height, width, _ = grad_out.shape
    image = padded if padded.size > 0 else x
    _, rows, columns, _ = image.shape
    for r in range(filter_height):
        for s in range(filter_width):
            t = r * filter_width + s
            taps[0, t] = (r * dilation[0] * columns + s * dilation[1]) * channels
            taps[1, t] = t * channels
    chunk, count = pixels.shape[1], taps.shape[1]
    _pixels((height, width), stride, image.shape, channels, pixels)
    starts, places = pixels[0].reshape(-1), pixels[1].reshape(-1)
    grad_weight.fill(0)
    padded.fill(0)
    for n in range(0, x.shape[0], chunk):
        images = min(chunk, x.shape[0] - n)
        at, at_grad = n * rows * columns * channels, n * height * width * channels
        if padded.size > 0:
            _spread(x, n, images, padding, padded)
            at = 0
        for c in range(0, channels, PAIR * simd.lanes(x)):
            for t in range(0, count, FILTER_ROWS):
                left, wide = count - t, channels - c
                acc = simd.tile(x, FILTER_ROWS, PAIR)
                to = simd.tile_rows(acc, taps[1], t, left)
                acc = simd.tile_load(acc, grad_weight, to, c, left, wide)
                here = simd.tile_rows(acc, taps[0], t, left)
                for q in range(images * height * width):
                    pixel, grad = at + starts[q] + c, at_grad + places[q] + c
                    if wide >= PAIR * simd.lanes(x):
                        acc = simd.tile_fma_rows(acc, image, here, pixel, grad_out, grad)
                    else:
                        acc = simd.tile_fma_rows(acc, image, here, pixel, grad_out, grad, wide)
                simd.tile_store(acc, grad_weight, to, c, left, wide)


# ------------------------------------------------------ Winograd's convolution
#
# Of a 3 x 3 filter and stride 1, a tile of 4 x 4 outputs needs 144 products a channel, and 36 do:
# F(4 x 4, 3 x 3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016).
# Out of d, 6 x 6 inputs, and g, the filter, come y = A^T [(G g G^T) * (B^T d B)] A, with
#
#         4  0 -5  0  1  0           1/4    0     0           1  0  0  0
#         0 -4 -4  1  1  0          -1/6  -1/6  -1/6          1  1  1  1
#   B^T = 0  4 -4 -1  1  0     G =  -1/6   1/6  -1/6     A =  1 -1  1 -1
#         0 -2 -1  2  1  0          1/24  1/12   1/6          1  2  4  8
#         0  2 -1 -2  1  0          1/24 -1/12   1/6          1 -2  4 -8
#         0  4  0 -5  0  1            0     0     1           0  0  0  1
#
# The product in the middle is 36 matrix products, of (tile, c) by (c, k), one for each place of the
# 6 x 6: these are the 36 *planes*. y is linear in g, so the gradient of g runs the same steps
# backwards: G^T [sum over tiles of (A dy A^T) * (B^T d B)] G.
#
# Tiles are walked a few at a time, so that their planes stay in cache. A vector holds channels. The
# larger numbers in B and A cost about two more bits of rounding than the plain sum.

PLANES = 36


@njit
def _to_planes(d0, d1, d2, d3, d4, d5):
    """B^T d."""
    even, odd = simd.fma(d2, -4, d4), simd.fma(d1, -4, d3)
    even2, odd2 = d4 - d2, d3 - d1
    return (
        simd.fma(d0, 4, simd.fma(d2, -5, d4)),
        even + odd,
        even - odd,
        simd.fma(odd2, 2, even2),
        simd.fma(odd2, -2, even2),
        simd.fma(d1, 4, simd.fma(d3, -5, d5)),
    )


@njit
def _from_planes(m0, m1, m2, m3, m4, m5):
    """A^T m."""
    sum1, difference1 = m1 + m2, m1 - m2
    sum2, difference2 = m3 + m4, m3 - m4
    return (
        m0 + sum1 + sum2,
        simd.fma(difference2, 2, difference1),
        simd.fma(sum2, 4, sum1),
        simd.fma(difference2, 8, difference1) + m5,
    )


@njit
def _filter_planes(g0, g1, g2):
    """G g."""
    ends, ends4 = (g0 + g2) * (-1 / 6), simd.fma(g0, 1 / 24, g2 * (1 / 6))
    return (
        g0 * (1 / 4),
        simd.fma(g1, -1 / 6, ends),
        simd.fma(g1, 1 / 6, ends),
        simd.fma(g1, 1 / 12, ends4),
        simd.fma(g1, -1 / 12, ends4),
        g2,
    )


@njit
def _grad_planes(y0, y1, y2, y3):
    """A y."""
    even, odd = y0 + y2, y1 + y3
    even2, odd2 = simd.fma(y2, 4, y0), simd.fma(y3, 4, y1)
    return (
        y0,
        even + odd,
        even - odd,
        simd.fma(odd2, 2, even2),
        simd.fma(odd2, -2, even2),
        y3,
    )


@njit
def _from_filter_planes(u0, u1, u2, u3, u4, u5):
    """G^T u."""
    sum1, difference1 = (u1 + u2) * (-1 / 6), (u2 - u1) * (1 / 6)
    sum2, difference2 = u3 + u4, u3 - u4
    return (
        simd.fma(u0, 1 / 4, simd.fma(sum2, 1 / 24, sum1)),
        simd.fma(difference2, 1 / 12, difference1),
        simd.fma(sum2, 1 / 6, sum1) + u5,
    )


@njit
def _put(out, at, step, vectors):
    """Store vectors `step` elements apart."""
    for i in range(len(vectors)):
        simd.store(out, at + i * step, vectors[i])


@njit
def winograd_bank(bank, depth, columns, planes, line):
    """planes = G g G^T of each filter: 36 banks with rows c, from one with rows (r, s, c).

    `line` has room for 36 vectors, as in the kernels below.
    """
    lanes = simd.lanes(bank)
    plane, at = planes.size // PLANES, 0
    for k in range(0, columns, COLUMNS * lanes):
        strip = depth * _pitch(columns - k, bank)
        for p in range(0, strip, lanes):
            tap = 9 * at + p
            for s in range(3):
                g0, g1 = simd.load(bank, tap + s * strip), simd.load(bank, tap + (3 + s) * strip)
                g2 = simd.load(bank, tap + (6 + s) * strip)
                _put(line, s * lanes, 3 * lanes, _filter_planes(g0, g1, g2))
            for i in range(6):
                g0, g1 = simd.load(line, 3 * i * lanes), simd.load(line, (3 * i + 1) * lanes)
                u = _filter_planes(g0, g1, simd.load(line, (3 * i + 2) * lanes))
                _put(planes, 6 * i * plane + at + p, plane, u)
        at += strip
    for i in range(PLANES):
        simd.store(planes, i * plane + at, simd.splat(0, planes))  # between planes


@njit
def _six(x, at, step):
    """Return six vectors that start `step` elements apart."""
    return (
        simd.load(x, at),
        simd.load(x, at + step),
        simd.load(x, at + 2 * step),
        simd.load(x, at + 3 * step),
        simd.load(x, at + 4 * step),
        simd.load(x, at + 5 * step),
    )


@njit
def _pixel(x, n, h, w, c):
    """Return a vector of channels of a pixel: zeros outside of the image and past the channels."""
    _, height, width, channels = x.shape
    inside = 0 <= h < height and 0 <= w < width
    return simd.load(
        x, ((n * height + h) * width + w) * channels + c, channels - c if inside else 0
    )


@njit
def _tile_corner(tile, extents):
    """Return the image that a tile of 4 x 4 outputs is in, and its first row and column."""
    down, across = (extents[0] + 3) // 4, (extents[1] + 3) // 4
    return tile // (down * across), tile // across % down * 4, tile % across * 4


@njit
def _next_corner(n, top, left, extents):
    """Return where the next tile is: as `_tile_corner`, without its slow divisions."""
    left += 4
    if left >= extents[1]:
        left, top = 0, top + 4
    if top >= extents[0]:
        n, top = n + 1, 0
    return n, top, left


@njit
def _input_planes(x, first, tiles, extents, padding, line, planes):
    """planes[i, tile, c] = (B^T d B)[i], with d the inputs that a tile of outputs sees."""
    lanes, pitch = simd.lanes(x), planes.shape[1]
    _, height, width, channels = x.shape
    depth = _padded_width(channels, x)
    n, top, left = _tile_corner(first, extents)
    for tile in range(tiles):
        h, w = top - padding[0], left - padding[1]
        inside = h >= 0 and w >= 0 and h + 6 <= height and w + 6 <= width
        corner = ((n * height + h) * width + w) * channels
        for c in range(0, channels, lanes):
            for j in range(6):
                if inside and channels - c >= lanes:
                    d0, d1, d2, d3, d4, d5 = _six(x, corner + j * channels + c, width * channels)
                else:
                    d0, d1 = _pixel(x, n, h, w + j, c), _pixel(x, n, h + 1, w + j, c)
                    d2, d3 = _pixel(x, n, h + 2, w + j, c), _pixel(x, n, h + 3, w + j, c)
                    d4, d5 = _pixel(x, n, h + 4, w + j, c), _pixel(x, n, h + 5, w + j, c)
                _put(line, j * lanes, 6 * lanes, _to_planes(d0, d1, d2, d3, d4, d5))
            for i in range(6):
                d0, d1, d2, d3, d4, d5 = _six(line, 6 * i * lanes, lanes)
                at = 6 * i * pitch + tile * depth + c
                _put(planes, at, pitch, _to_planes(d0, d1, d2, d3, d4, d5))
        n, top, left = _next_corner(n, top, left, extents)


@njit
def _padded_width(channels, x):
    """Return the channels rounded up to whole vectors."""
    lanes = simd.lanes(x)
    return (channels + lanes - 1) // lanes * lanes


@njit
def _strips_width(channels, x):
    """Return how many columns channels take in strips."""
    wide = COLUMNS * simd.lanes(x)
    whole = channels // wide * wide
    return whole + _pitch(channels - whole, x) if channels > whole else whole


def _full_tiles(rows_of_tile, columns):
    """Make `_products`' loop for tiles `columns` vectors wide: all are full, so there are no masks.

    Rows lie evenly. Some past the last are computed, for which there is room.
    """

    @njit
    def tiles(a, at_a, apart, steps, bank, at_bank, out, at_out, pitch, count):
        for q in range(0, count, rows_of_tile):
            acc = simd.tile(out, rows_of_tile, columns)
            here = simd.tile_steps(acc, at_a + q * apart, apart, rows_of_tile)
            row = at_bank
            for p in range(steps):
                acc = simd.tile_fma(acc, a, here, p, bank, row)
                row += columns * simd.lanes(out)
            to = simd.tile_steps(acc, at_out + q * pitch, pitch, rows_of_tile)
            simd.tile_store(acc, out, to, 0, rows_of_tile, columns * simd.lanes(out))

    return tiles


FULL_ROWS = 2 * WIDE_ROWS  # of narrow tiles; room for rows is a multiple of it
_full_wide_tiles, _full_narrow_tiles = _full_tiles(WIDE_ROWS, COLUMNS), _full_tiles(FULL_ROWS, 1)
_full_half_tiles = _full_tiles(FULL_ROWS, HALF_COLUMNS) if HALF_COLUMNS > 1 else _full_narrow_tiles


@njit
def _products(a, at_a, apart, steps, bank, at_bank, columns, out, at_out, pitch, count):
    """out[at_out + q pitch + j] = sum_p a[at_a + q apart + p] bank[p, j] for q < count and all j
    < columns. The bank is in strips.
    """
    for k in range(0, columns, COLUMNS * simd.lanes(out)):
        width = _pitch(columns - k, out)
        if width > HALF_COLUMNS * simd.lanes(out):
            _full_wide_tiles(a, at_a, apart, steps, bank, at_bank, out, at_out + k, pitch, count)
        elif width > simd.lanes(out):
            _full_half_tiles(a, at_a, apart, steps, bank, at_bank, out, at_out + k, pitch, count)
        else:
            _full_narrow_tiles(a, at_a, apart, steps, bank, at_bank, out, at_out + k, pitch, count)
        at_bank += steps * width


@njit
def _at_a_time(total, room):
    """Return how many tiles are done at a time: about the same number each time."""
    times = (total + room - 1) // max(room, 1)
    tiles = (total + times - 1) // max(times, 1)
    return max((tiles + FULL_ROWS - 1) // FULL_ROWS, 1) * FULL_ROWS


@njit
def _outputs(planes, first, tiles, bias, relu, line, out):
    """out = A^T m A, with m the planes of a tile, and the bias added; with `relu`, max(out, 0)."""
    lanes, pitch = simd.lanes(out), planes.shape[1]
    _, height, width, channels = out.shape
    group = _strips_width(channels, out)
    n, top, left = _tile_corner(first, (height, width))
    for tile in range(tiles):
        down, across = min(4, height - top), min(4, width - left)
        corner = ((n * height + top) * width + left) * channels
        for k in range(0, channels, lanes):
            count = channels - k
            for j in range(6):
                m0, m1, m2, m3, m4, m5 = _six(planes, j * pitch + tile * group + k, 6 * pitch)
                _put(line, j * lanes, 6 * lanes, _from_planes(m0, m1, m2, m3, m4, m5))
            shift = simd.splat(0, out)
            if bias.size > 0:
                shift = simd.load(bias, k, count)
            for i in range(down):
                m0, m1, m2, m3, m4, m5 = _six(line, 6 * i * lanes, lanes)
                y = _from_planes(m0, m1, m2, m3, m4, m5)
                at = corner + i * width * channels + k
                for j in range(4):
                    if j < across:
                        value = y[j] + shift
                        if relu:
                            value = vector.relu(value)
                        simd.store(out, at + j * channels, value, count)
        n, top, left = _next_corner(n, top, left, (height, width))


@njit
def _winograd(x, bias, planes, padding, relu, out, line, input_planes, output_planes):
    """Convolve images with filters of 3 x 3, stride 1, from their planes.

    The other planes are workspace, with room for as many tiles as are done at a time: a multiple of
    FULL_ROWS.
    """
    images, height, width, out_channels = out.shape
    channels, lanes = x.shape[3], simd.lanes(x)
    depth, group = _padded_width(channels, x), _strips_width(out_channels, x)
    room = (input_planes.shape[1] - lanes) // depth // FULL_ROWS * FULL_ROWS
    zero = simd.splat(0, x)
    total = images * ((height + 3) // 4) * ((width + 3) // 4)
    chunk = _at_a_time(total, room)
    for first in range(0, total, chunk):
        tiles = min(chunk, total - first)
        _input_planes(x, first, tiles, (height, width), padding, line, input_planes)
        last = (tiles + FULL_ROWS - 1) // FULL_ROWS * FULL_ROWS
        for i in range(PLANES):
            at, to = i * input_planes.shape[1], i * output_planes.shape[1]
            for q in range(at + tiles * depth, at + last * depth, lanes):
                simd.store(input_planes, q, zero)
            _products(
                input_planes.reshape(-1), at, depth, channels,
                planes, i * (planes.size // PLANES), out_channels,
                output_planes.reshape(-1), to, group, tiles,
            )  # fmt: skip
        _outputs(output_planes, first, tiles, bias, relu, line, out)


@njit
def winograd_forward(
    x, weight, bias, planes, padding, relu, out, line, input_planes, output_planes
):
    """out = what `conv2d_forward` gives for filters of 3 x 3 and stride 1, from their planes."""
    _winograd(x, bias, planes, padding, relu, out, line, input_planes, output_planes)


@njit
def winograd_backward_input(
    grad_out, weight, planes, padding, grad_x, line, input_planes, output_planes
):
    """grad_x = what `conv2d_backward_input` gives for filters of 3 x 3 and stride 1.

    The planes are those of the filter upside down. Padding makes up for the forward's.
    """
    padding = 2 - padding[0], 2 - padding[1]
    no_bias = planes[:0]
    _winograd(grad_out, no_bias, planes, padding, False, grad_x, line, input_planes, output_planes)


@njit
def _output_planes(grad_out, first, tiles, line, planes):
    """planes[i] = (A dy A^T)[i] in strips of k with rows (tile), with dy a tile of gradients."""
    _, height, width, out_channels = grad_out.shape
    extents, lanes, pitch = (height, width), simd.lanes(grad_out), planes.shape[1]
    n, top, left = _tile_corner(first, extents)
    for tile in range(tiles):
        inside = top + 4 <= height and left + 4 <= width
        corner, below = ((n * height + top) * width + left) * out_channels, width * out_channels
        for k in range(0, out_channels, lanes):
            for j in range(4):
                if inside and out_channels - k >= lanes:
                    at = corner + j * out_channels + k
                    y0, y1 = simd.load(grad_out, at), simd.load(grad_out, at + below)
                    at += 2 * below
                    y2, y3 = simd.load(grad_out, at), simd.load(grad_out, at + below)
                else:
                    w = left + j
                    y0, y1 = _pixel(grad_out, n, top, w, k), _pixel(grad_out, n, top + 1, w, k)
                    y2, y3 = _pixel(grad_out, n, top + 2, w, k), _pixel(grad_out, n, top + 3, w, k)
                _put(line, j * lanes, 4 * lanes, _grad_planes(y0, y1, y2, y3))
            strip = k - k % (COLUMNS * lanes)
            at = strip * tiles + tile * _pitch(out_channels - strip, grad_out) + k - strip
            for i in range(6):
                y0, y1 = simd.load(line, 4 * i * lanes), simd.load(line, (4 * i + 1) * lanes)
                y2, y3 = simd.load(line, (4 * i + 2) * lanes), simd.load(line, (4 * i + 3) * lanes)
                _put(planes, 6 * i * pitch + at, pitch, _grad_planes(y0, y1, y2, y3))
        n, top, left = _next_corner(n, top, left, extents)


@njit
def winograd_backward_weight(
    x, grad_out, padding, grad_weight, line, input_planes, grad_planes, sums, tables
):
    """grad_weight = what `conv2d_backward_weight` gives for filters of 3 x 3 and stride 1.

    `sums` holds its planes.
    """
    images, height, width, out_channels = grad_out.shape
    extents, channels, lanes = (height, width), x.shape[3], simd.lanes(x)
    depth, group = _padded_width(channels, x), _strips_width(out_channels, x)
    rows, places, taps = tables[0], tables[1], tables[2, :1]
    for c in range(channels):
        rows[c], places[c] = c, c * group
    taps[0] = 0
    no_bias, flat_sums = line[:0], sums.reshape(-1)
    flat_inputs, flat_grads = input_planes.reshape(-1), grad_planes.reshape(-1)
    room = (grad_planes.shape[1] - lanes) // group  # a vector is kept free: see the workspace
    total = images * ((height + 3) // 4) * ((width + 3) // 4)
    if total == 0:
        sums.fill(0)
    chunk = _at_a_time(total, room)
    for first in range(0, total, chunk):
        tiles = min(chunk, total - first)
        _input_planes(x, first, tiles, extents, padding, line, input_planes)
        _output_planes(grad_out, first, tiles, line, grad_planes)
        for i in range(PLANES):
            for k in range(0, out_channels, COLUMNS * lanes):
                pitch = _pitch(out_channels - k, x)
                _strip(
                    flat_inputs, i * input_planes.shape[1], rows, taps, tiles, depth,
                    flat_grads, i * grad_planes.shape[1] + k * tiles, pitch, no_bias, 0,
                    flat_sums, i * sums.shape[1] + k, places, channels, pitch, first > 0, False,
                )  # fmt: skip
    for c in range(channels):
        for k in range(0, out_channels, lanes):
            at, step = c * group + k, sums.shape[1]
            for j in range(6):
                m0, m1, m2, m3, m4, m5 = _six(sums, j * step + at, 6 * step)
                _put(line, j * lanes, 6 * lanes, _from_filter_planes(m0, m1, m2, m3, m4, m5))
            for r in range(3):
                m0, m1, m2, m3, m4, m5 = _six(line, 6 * r * lanes, lanes)
                g = _from_filter_planes(m0, m1, m2, m3, m4, m5)
                for s in range(3):
                    to = ((r * 3 + s) * channels + c) * out_channels + k
                    simd.store(grad_weight, to, g[s], out_channels - k)


# =================================================================== pooling
#
# Windows (r, s) slide over images (n, h, w, c); channels lie together and do not mix. A maximum
# notes where in its window it was found, r kernel_size[1] + s, as a number of x's own dtype: so
# one vector compares values and another carries their places.
#
# A strip of channels slides over a row of windows. It is two vectors wide, since most processors
# fetch lines of memory in pairs. Where one vector holds all channels the other takes the next
# window, if all windows lie inside the image and fall into pairs.


@njit
def _inside(first, kernel, extent):
    """Return the range of window rows that lie in the image, for a window from row `first` on."""
    return max(-first, 0), min(kernel, extent - first)


@njit
def _second(x, c, windows, stride, padding):
    """Return how many channels the second vector has, and where it lies from the first one on, in
    images and in outputs; and how many windows both of them take.
    """
    channels, lanes = x.shape[3], simd.lanes(x)
    if channels <= lanes and windows % 2 == 0 and padding == 0:
        return channels, stride * channels, channels, 2
    return channels - c - lanes, lanes, lanes, 1


@njit
def _load_both(x, i, n0, apart, n1):
    """Load `n0` elements of the vector at i and `n1` of the one `apart` from it."""
    return simd.load(x, i, n0), simd.load(x, i + apart, n1)


@njit
def _store_both(x, i, n0, apart, n1, a, b):
    """Store `n0` elements of the vector at i and `n1` of the one `apart` from it."""
    simd.store(x, i, a, n0)
    simd.store(x, i + apart, b, n1)


@njit
def max_pool2d_forward(x, kernel_size, stride, padding, out, index):
    """out[n, i, j, c] = max_{r,s} x[n, i stride + r - padding, j stride + s - padding, c], and
    index = the place of the first element that attains it. The first NaN wins.
    """
    _, height, width, channels = x.shape
    images, rows, columns, _ = out.shape
    for n in range(images):
        for i in range(rows):
            h = i * stride[0] - padding[0]
            top, bottom = _inside(h, kernel_size[0], height)
            for c in range(0, channels, 2 * simd.lanes(x)):
                count = channels - c
                more, apart, apart_out, step = _second(x, c, columns, stride[1], padding[1])
                for j in range(0, columns, step):
                    w = j * stride[1] - padding[1]
                    left, right = _inside(w, kernel_size[1], width)
                    at = ((n * height + h + top) * width + w + left) * channels + c
                    b0, b1 = _load_both(x, at, count, apart, more)
                    start = p0 = p1 = simd.splat(top * kernel_size[1] + left, x)
                    for _ in range(top, bottom):
                        here = start
                        for pixel in range(at, at + (right - left) * channels, channels):
                            v0, v1 = _load_both(x, pixel, count, apart, more)
                            w0, w1 = _greater(v0, b0), _greater(v1, b1)
                            b0, b1 = simd.where(w0, v0, b0), simd.where(w1, v1, b1)
                            p0, p1 = simd.where(w0, here, p0), simd.where(w1, here, p1)
                            here = here + 1
                        at += width * channels
                        start = start + kernel_size[1]
                    to = ((n * rows + i) * columns + j) * channels + c
                    _store_both(out, to, count, apart_out, more, b0, b1)
                    _store_both(index, to, count, apart_out, more, p0, p1)


@njit
def _tiled(windows, kernel, stride, padding, extent):
    """Return whether each row of an image is in one window and no more."""
    return kernel == stride and padding == 0 and windows * stride == extent


@njit
def max_pool2d_backward(grad_out, index, kernel_size, stride, padding, grad_x):
    """grad_x[n, h, w, c] = sum of grad_out[n, i, j, c] over the windows (i, j) whose index says
    that their maximum was found at (h, w).

    Each window adds its share to its pixels; where windows do not meet, it writes it.
    """
    images, height, width, channels = grad_x.shape
    _, rows, columns, _ = grad_out.shape
    alone = _tiled(rows, kernel_size[0], stride[0], padding[0], height)
    alone = alone and _tiled(columns, kernel_size[1], stride[1], padding[1], width)
    zero = simd.splat(0, grad_x)
    for n in range(images):
        if not alone:
            grad_x[n] = 0
        for i in range(rows):
            h = i * stride[0] - padding[0]
            top, bottom = _inside(h, kernel_size[0], height)
            for c in range(0, channels, 2 * simd.lanes(grad_x)):
                count = channels - c
                more, apart, apart_out, step = _second(grad_x, c, columns, stride[1], padding[1])
                for j in range(0, columns, step):
                    w = j * stride[1] - padding[1]
                    left, right = _inside(w, kernel_size[1], width)
                    at = ((n * rows + i) * columns + j) * channels + c
                    g0, g1 = _load_both(grad_out, at, count, apart_out, more)
                    p0, p1 = _load_both(index, at, count, apart_out, more)
                    to = ((n * height + h + top) * width + w + left) * channels + c
                    start = simd.splat(top * kernel_size[1] + left, grad_x)
                    for _ in range(top, bottom):
                        here = start
                        for pixel in range(to, to + (right - left) * channels, channels):
                            s0 = simd.where(p0 == here, g0, zero)
                            s1 = simd.where(p1 == here, g1, zero)
                            if not alone:
                                x0, x1 = _load_both(grad_x, pixel, count, apart, more)
                                s0, s1 = s0 + x0, s1 + x1
                            _store_both(grad_x, pixel, count, apart, more, s0, s1)
                            here = here + 1
                        to += width * channels
                        start = start + kernel_size[1]


@njit
def max_pool2d_pick(x, index, kernel_size, stride, padding, out):
    """out[n, i, j, c] = the element of x where window (i, j) found its maximum, as index says."""
    images, rows, columns, channels = out.shape
    for n in range(images):
        for i in range(rows):
            for j in range(columns):
                for c in range(channels):
                    place = int(index[n, i, j, c])
                    h = i * stride[0] - padding[0] + place // kernel_size[1]
                    w = j * stride[1] - padding[1] + place % kernel_size[1]
                    out[n, i, j, c] = x[n, h, w, c]


@njit
def avg_pool2d_forward(x, kernel_size, stride, padding, out):
    """out[n, i, j, c] = mean_{r,s} x[n, i stride + r - padding, j stride + s - padding, c], where
    padding counts as zeros.
    """
    _, height, width, channels = x.shape
    images, rows, columns, _ = out.shape
    zero = simd.splat(0, x)
    for n in range(images):
        for i in range(rows):
            h = i * stride[0] - padding[0]
            top, bottom = _inside(h, kernel_size[0], height)
            for c in range(0, channels, 2 * simd.lanes(x)):
                count = channels - c
                for j in range(columns):
                    w = j * stride[1] - padding[1]
                    left, right = _inside(w, kernel_size[1], width)
                    at = ((n * height + h + top) * width + w + left) * channels + c
                    t0 = t1 = zero
                    for _ in range(top, bottom):
                        for pixel in range(at, at + (right - left) * channels, channels):
                            v0, v1 = _load2(x, pixel, count)
                            t0, t1 = t0 + v0, t1 + v1
                        at += width * channels
                    to = ((n * rows + i) * columns + j) * channels + c
                    area = kernel_size[0] * kernel_size[1]
                    _store2(out, to, count, t0 / area, t1 / area)


@njit
def avg_pool2d_backward(grad_out, kernel_size, stride, padding, grad_x):
    """grad_x[n, h, w, c] = sum of grad_out[n, i, j, c] / area over the windows on (h, w).

    Each window adds its share to its pixels; where windows do not meet, it writes it.
    """
    images, height, width, channels = grad_x.shape
    _, rows, columns, _ = grad_out.shape
    alone = _tiled(rows, kernel_size[0], stride[0], padding[0], height)
    alone = alone and _tiled(columns, kernel_size[1], stride[1], padding[1], width)
    for n in range(images):
        if not alone:
            grad_x[n] = 0
        for i in range(rows):
            h = i * stride[0] - padding[0]
            top, bottom = _inside(h, kernel_size[0], height)
            for c in range(0, channels, 2 * simd.lanes(grad_x)):
                count = channels - c
                for j in range(columns):
                    w = j * stride[1] - padding[1]
                    left, right = _inside(w, kernel_size[1], width)
                    area = kernel_size[0] * kernel_size[1]
                    g0, g1 = _load2(grad_out, ((n * rows + i) * columns + j) * channels + c, count)
                    g0, g1 = g0 / area, g1 / area
                    to = ((n * height + h + top) * width + w + left) * channels + c
                    for _ in range(top, bottom):
                        for pixel in range(to, to + (right - left) * channels, channels):
                            s0, s1 = g0, g1
                            if not alone:
                                x0, x1 = _load2(grad_x, pixel, count)
                                s0, s1 = s0 + x0, s1 + x1
                            _store2(grad_x, pixel, count, s0, s1)
                        to += width * channels


# ============================================================ random numbers
#
# Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) mixes a key,
# the seed, with a counter, the number of the draw and of a block in it, into four random 32-bit
# words. So element i of a draw is a function of (seed, call, i) alone, whoever computes it: a
# block gives elements 4 block to 4 block + 3, or in float64, from two words each, two elements.
# `first` is the number of out's first element, a multiple of 4. A vector holds one word of several
# blocks, in 64 bits a lane, where a product of two words has room.

PHILOX_0, PHILOX_1 = 0xD2511F53, 0xCD9E8D57  # multipliers
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85  # steps of the key
WORD = 0xFFFFFFFF
WORDS = 4  # in a block


@njit
def _philox(seed, call, block):
    """Return blocks number `block`, a vector, of draw number `call`: four random words of each."""
    c0, c1 = block & WORD, (block >> 32) & WORD
    c2, c3 = simd.words(call & WORD, 0), simd.words((call >> 32) & WORD, 0)
    k0, k1 = seed & WORD, (seed >> 32) & WORD
    for _ in range(10):
        p, q = c0 * PHILOX_0, c2 * PHILOX_1
        c0, c1 = ((q >> 32) & WORD) ^ c1 ^ k0, q & WORD
        c2, c3 = ((p >> 32) & WORD) ^ c3 ^ k1, p & WORD
        k0, k1 = (k0 + WEYL_0) & WORD, (k1 + WEYL_1) & WORD
    return c0, c1, c2, c3


@njit
def _pairs(seed, call, block):
    """Return the words from number 4 block on, two in a lane, as two vectors."""
    c0, c1, c2, c3 = _philox(seed[0], call[0], simd.words(block, 1))
    c0, c2 = c0 | (c1 << 32), c2 | (c3 << 32)
    return simd.zip_low(c0, c2), simd.zip_high(c0, c2)


@njit
def random_uniform(seed, call, first, out):
    """out[i] = u[first + i], uniform in [0, 1)."""
    for i in range(0, out.size, 2 * simd.lanes(out)):
        a, b = _pairs(seed, call, (first + i) * out.itemsize // (4 * WORDS))
        _store2(out, i, out.size - i, simd.fraction(a, out), simd.fraction(b, out))


@njit
def _lane(v, lane, x):
    """Return what stands in a lane of a vector; 0 if there is no such lane."""
    numbers, zero = simd.integers(x, 0, 1), simd.splat(0, x)
    upwards = simd.where(numbers >= lane, v, zero)
    return simd.reduce_sum(simd.where(numbers >= lane + 1, zero, upwards))


@njit
def _normal_pair(u, v, out):
    """Return r cos(2 pi v) and r sin(2 pi v), with r = sqrt(-2 ln(1 - u))."""
    one, two, tau = out.dtype.type(1), out.dtype.type(2), out.dtype.type(2 * np.pi)
    radius, angle = np.sqrt(-two * np.log(one - u)), tau * v
    return radius * np.cos(angle), radius * np.sin(angle)


@njit
def random_normal(seed, call, first, out):
    """out[2j], out[2j + 1] = r cos(2 pi v), r sin(2 pi v), with r = sqrt(-2 ln(1 - u)).

    u, v = u[2j], u[2j + 1] are uniform; elements are counted from `first` (Box and Muller, 1958).
    """
    random_uniform(seed, call, first, out)
    for i in range(0, out.size - 1, 2):
        out[i], out[i + 1] = _normal_pair(out[i], out[i + 1], out)
    if out.size % 2 == 1:  # one whose pair ends outside: v comes from where u did
        last, step = out.size - 1, simd.lanes(out)
        lane = last % (2 * step) + 1
        start = last + 1 - lane
        a, b = _pairs(seed, call, (first + start) * out.itemsize // (4 * WORDS))
        v = _lane(simd.fraction(a, out), lane, out) + _lane(simd.fraction(b, out), lane - step, out)
        out[last], _ = _normal_pair(out[last], v, out)


@njit
def dropout_forward(x, seed, call, threshold, scale, first, out, mask):
    """mask[i] = w[first + i] >= threshold;  out[i] = x[i] scale if mask[i] else 0.

    w are random 32-bit words, the same ones for float32 and float64. They are compared as signed
    integers, with the upper bit turned.
    """
    chunk = simd.lanes(x) * x.itemsize // 2  # words that `_pairs` gives
    limit = threshold - 2**31
    for i in range(0, out.size, chunk):
        a, b = _pairs(seed, call, (first + i) // WORDS)
        a, b = (simd.halves(a) ^ -(2**31)) >= limit, (simd.halves(b) ^ -(2**31)) >= limit
        simd.store(mask, i, a, out.size - i)
        simd.store(mask, i + chunk // 2, b, out.size - i - chunk // 2)
        for j in range(i, min(i + chunk, out.size), simd.lanes(x)):
            n = out.size - j
            kept = simd.load_mask(mask, j, n, x)
            value = simd.where(kept, simd.load(x, j, n) * scale, simd.splat(0, x))
            simd.store(out, j, value, n)


# =================================================================== softmax
#
# x is (outer, reduce, inner), as in a reduction. The largest element is taken off first, so that
# the largest exponential is 1 and nothing overflows. A row of a few classes fits one vector and
# stays in its register: the kernel's loop does it, as a call for each row would take longer.


@njit
def _largest(x, start, count):
    """Return the largest of x[start], ..., x[start + count - 1]."""
    best = simd.load(x, start, count, -np.inf)
    for r in range(simd.lanes(x), count, simd.lanes(x)):
        value = simd.load(x, start + r, count - r, -np.inf)
        best = simd.where(value > best, value, best)
    return simd.reduce_max(best)


@njit
def _exponentials(x, start, count, shift, out):
    """out[start + r] = exp(x[start + r] - shift) for r < count; return their sum."""
    step, whole = simd.lanes(x), _whole(count, x)
    total, wide = simd.splat(0, x), simd.splat_wide(0, x)
    for r in range(0, whole, simd.WIDE * step):
        values = simd.exp(simd.load_wide(x, start + r) - shift)
        simd.store(out, start + r, values)
        wide = wide + values
    for r in range(whole, count, step):
        value = simd.exp(simd.load(x, start + r, count - r, -np.inf) - shift)
        simd.store(out, start + r, value, count - r)
        total = total + value  # lanes past the end hold exp(-inf) = 0
    return simd.reduce_sum(wide) + simd.reduce_sum(total)


@njit
def _softmax_row(x, start, count, out):
    """Softmax over neighbours; return the largest element and the sum of exponentials."""
    largest = _largest(x, start, count)
    total = _exponentials(x, start, count, largest, out)
    scale = x.dtype.type(1) / total
    for r in range(0, count, simd.lanes(x)):
        simd.store(out, start + r, simd.load(out, start + r, count - r) * scale, count - r)
    return largest, total


@njit
def _largest_and_sum(x, i, n, count, inner):
    """Return m = max_r x[i + r inner] and sum_r exp(x[i + r inner] - m), lane by lane."""
    largest, total = simd.load(x, i, n), simd.splat(0, x)
    for r in range(1, count):
        value = simd.load(x, i + r * inner, n)
        largest = simd.where(value > largest, value, largest)
    for r in range(count):
        total = total + simd.exp(simd.load(x, i + r * inner, n) - largest)
    return largest, total


@njit
def softmax_forward(x, reduce, inner, out):
    """out[o, r, i] = exp(x[o, r, i] - m) / sum_s exp(x[o, s, i] - m), with m = max_s x[o, s, i]."""
    for o in range(out.size // max(reduce * inner, 1)):
        start = o * reduce * inner
        if inner == 1 and reduce <= simd.lanes(x):
            value = simd.load(x, start, reduce, -np.inf)
            value = simd.exp(value - simd.reduce_max(value))
            simd.store(out, start, value / simd.reduce_sum(value), reduce)
        elif inner == 1:
            _softmax_row(x, start, reduce, out)
        else:
            for i in range(0, inner, simd.lanes(x)):
                n = inner - i
                largest, total = _largest_and_sum(x, start + i, n, reduce, inner)
                for r in range(reduce):
                    at = start + r * inner + i
                    value = simd.exp(simd.load(x, at, n) - largest)
                    simd.store(out, at, value / total, n)


@njit
def log_softmax_forward(x, reduce, inner, out):
    """out[o, r, i] = x[o, r, i] - m - ln sum_s exp(x[o, s, i] - m), with m = max_s x[o, s, i]."""
    for o in range(out.size // max(reduce * inner, 1)):
        start = o * reduce * inner
        if inner == 1:
            largest = _largest(x, start, reduce)
            shift = np.log(_exponentials(x, start, reduce, largest, out))
            for r in range(0, reduce, simd.lanes(x)):
                n = reduce - r
                simd.store(out, start + r, simd.load(x, start + r, n) - largest - shift, n)
        else:
            for i in range(0, inner, simd.lanes(x)):
                n = inner - i
                largest, total = _largest_and_sum(x, start + i, n, reduce, inner)
                shift = simd.log(total)
                for r in range(reduce):
                    at = start + r * inner + i
                    simd.store(out, at, simd.load(x, at, n) - largest - shift, n)


@njit
def _dot(x, y, start, count):
    """Return sum_{r < count} x[start + r] y[start + r]."""
    step, whole = simd.lanes(x), _whole(count, x)
    total, wide = simd.splat(0, x), simd.splat_wide(0, x)
    for r in range(start, start + whole, simd.WIDE * step):
        wide = simd.fma(simd.load_wide(x, r), simd.load_wide(y, r), wide)
    for r in range(whole, count, step):
        total = total + simd.load(x, start + r, count - r) * simd.load(y, start + r, count - r)
    return simd.reduce_sum(wide) + simd.reduce_sum(total)


@njit
def softmax_backward(y, grad_y, reduce, inner, out):
    """out[o, r, i] = y[o, r, i] (grad_y[o, r, i] - sum_s grad_y[o, s, i] y[o, s, i])."""
    step = simd.lanes(y)
    for start in range(0, out.size, max(reduce * inner, 1)):
        if inner == 1:
            common = _dot(y, grad_y, start, reduce)
            for r in range(0, reduce, step):
                n, at = reduce - r, start + r
                value = simd.load(y, at, n) * (simd.load(grad_y, at, n) - common)
                simd.store(out, at, value, n)
        else:
            for i in range(0, inner, step):
                n, total = inner - i, simd.splat(0, y)
                for at in range(start + i, start + reduce * inner, inner):
                    total = simd.fma(simd.load(y, at, n), simd.load(grad_y, at, n), total)
                for at in range(start + i, start + reduce * inner, inner):
                    value = simd.load(y, at, n) * (simd.load(grad_y, at, n) - total)
                    simd.store(out, at, value, n)


@njit
def log_softmax_backward(y, grad_y, reduce, inner, out):
    """out[o, r, i] = grad_y[o, r, i] - exp(y[o, r, i]) sum_s grad_y[o, s, i]."""
    step = simd.lanes(y)
    for start in range(0, out.size, max(reduce * inner, 1)):
        if inner == 1:
            common = _sum_contiguous(grad_y, start, reduce)
            for r in range(0, reduce, step):
                n, at = reduce - r, start + r
                value = simd.load(grad_y, at, n) - simd.exp(simd.load(y, at, n)) * common
                simd.store(out, at, value, n)
        else:
            for i in range(0, inner, step):
                n, total = inner - i, simd.splat(0, y)
                for at in range(start + i, start + reduce * inner, inner):
                    total = total + simd.load(grad_y, at, n)
                for at in range(start + i, start + reduce * inner, inner):
                    value = simd.load(grad_y, at, n) - simd.exp(simd.load(y, at, n)) * total
                    simd.store(out, at, value, n)


# ==================================================================== losses


@njit
def softmax_cross_entropy_forward(logits, labels, first, loss, probs, error):
    """probs[n] = softmax(logits[n]);  loss[n] = -ln probs[n, labels[n]].

    The loss is computed as ln sum_c exp(logits[n, c] - m) - (logits[n, labels[n]] - m), with
    m = max_c logits[n, c]. A label out of range leaves its position, counted from `first`.
    """
    rows, classes = logits.shape
    flat, out = logits.reshape(-1), probs.reshape(-1)
    error[0] = NO_ERROR
    for n in range(rows):
        if classes <= simd.lanes(logits):
            value = simd.load(flat, n * classes, classes, -np.inf)
            largest = simd.reduce_max(value)
            value = simd.exp(value - largest)
            total = simd.reduce_sum(value)
            simd.store(out, n * classes, value / total, classes)
        else:
            largest, total = _softmax_row(flat, n * classes, classes, out)
        label = labels[n]
        if 0 <= label < classes:
            loss[n] = np.log(total) - (logits[n, label] - largest)
        else:
            loss[n] = 0
            error[0] = min(error[0], first + n)


@njit
def softmax_cross_entropy_backward(grad_out, logits, labels, probs, out):
    """out[n, c] = grad_out[n] (probs[n, c] - (1 if c == labels[n] else 0)).

    That is grad_out[n] times the slope of loss[n] by logits[n, c].
    """
    rows, classes = logits.shape
    for n in range(rows):
        scale = grad_out[n]
        for c in range(0, classes, simd.lanes(probs)):
            at, width = n * classes + c, classes - c
            simd.store(out, at, simd.load(probs, at, width) * scale, width)
        label = labels[n]
        if 0 <= label < classes:
            out[n, label] = scale * (probs[n, label] - probs.dtype.type(1))


# ============================================================= normalisation
#
# x is (rows, channels): statistics are taken over rows, for each channel by itself. A vector
# holds neighbouring channels. With h[r, c] = (x[r, c] - mean[c]) / sqrt(var[c] + eps), the
# normalised x. Rows are taken in blocks that stay in cache, since a strip of channels uses only
# a part of each row. What makes one pass takes two vectors at a time: on a processor that fetches
# lines of memory in pairs, a strip of one line a row took half as long again.


@njit
def batch_norm_moments(x, block, mean, square):
    """mean[b, c] = mean of x[r, c] over block b of rows;  square[b, c] = sum (x - mean)^2.

    The second pass over a block finds it in cache. Exact where the textbook's E[x^2] - E[x]^2
    loses all digits, which is when the mean is large beside the deviation.
    """
    rows, channels = x.shape
    zero = simd.splat(0, x)
    for b in range(mean.shape[0]):
        first, count = b * block * channels, min(block, rows - b * block)
        for c in range(0, channels, 2 * simd.lanes(x)):
            n, start, stop = channels - c, first + c, first + count * channels
            m0 = m1 = s0 = s1 = zero
            for at in range(start, stop, channels):
                x0, x1 = _load2(x, at, n)
                m0, m1 = m0 + x0, m1 + x1
            m0, m1 = m0 / count, m1 / count
            for at in range(start, stop, channels):
                x0, x1 = _load2(x, at, n)
                x0, x1 = x0 - m0, x1 - m1
                s0, s1 = simd.fma(x0, x0, s0), simd.fma(x1, x1, s1)
            _store2(mean, b * channels + c, n, m0, m1)
            _store2(square, b * channels + c, n, s0, s1)


@njit
def batch_norm_statistics(block_mean, block_square, block, count, mean, var):
    """mean[c], var[c] of `count` rows, from those of their blocks (Chan, Golub and LeVeque, 1979):

    away = mean_b - mean;  mean += away n_b / n;  square += square_b + away^2 n_b (n - n_b) / n,
    where n counts the rows up to and with block b.
    """
    blocks, channels = block_mean.shape
    for c in range(0, channels, simd.lanes(mean)):
        width = channels - c
        center, square = simd.splat(0, mean), simd.splat(0, mean)
        for b in range(blocks):
            old, new = b * block, min(block, count - b * block)
            share = mean.dtype.type(new) / mean.dtype.type(old + new)
            away = simd.load(block_mean, b * channels + c, width) - center
            center = center + away * share
            square = square + simd.load(block_square, b * channels + c, width)
            square = square + away * away * (share * mean.dtype.type(old))
        simd.store(mean, c, center, width)
        simd.store(var, c, square / count, width)


@njit
def _rows_in_cache(channels):
    """Return how many rows to take at a time: about 4096 elements, well inside a core's L1."""
    return max(4096 // max(channels, 1), 16)


@njit
def _deviations(var, c, n, eps):
    """Return sqrt(var[c] + eps), two vectors of it."""
    a, b = _load2(var, c, n)
    return simd.sqrt(a + eps), simd.sqrt(b + eps)


@njit
def batch_norm_forward(x, weight, bias, mean, var, eps, out):
    """out[r, c] = h[r, c] weight[c] + bias[c]."""
    rows, channels = x.shape
    step = _rows_in_cache(channels)
    for block in range(0, rows, step):
        for c in range(0, channels, 2 * simd.lanes(x)):
            n = channels - c
            (m0, m1), (b0, b1) = _load2(mean, c, n), _load2(bias, c, n)
            (w0, w1), (s0, s1) = _load2(weight, c, n), _deviations(var, c, n, eps)
            w0, w1 = w0 / s0, w1 / s1
            for r in range(block, min(block + step, rows)):
                at = r * channels + c
                x0, x1 = _load2(x, at, n)
                _store2(out, at, n, simd.fma(x0 - m0, w0, b0), simd.fma(x1 - m1, w1, b1))


@njit
def batch_norm_backward_sums(x, grad_out, mean, var, eps, sums):
    """sums[0, c] = sum_r grad_out[r, c];  sums[1, c] = sum_r grad_out[r, c] h[r, c].

    These are the gradients of bias and weight.
    """
    rows, channels = x.shape
    step, zero = _rows_in_cache(channels), simd.splat(0, x)
    sums.fill(0)
    for block in range(0, rows, step):
        for c in range(0, channels, 2 * simd.lanes(x)):
            n = channels - c
            (m0, m1), (s0, s1) = _load2(mean, c, n), _deviations(var, c, n, eps)
            b0 = b1 = w0 = w1 = zero
            for r in range(block, min(block + step, rows)):
                at = r * channels + c
                (x0, x1), (g0, g1) = _load2(x, at, n), _load2(grad_out, at, n)
                b0, b1 = b0 + g0, b1 + g1
                w0, w1 = simd.fma(g0, x0 - m0, w0), simd.fma(g1, x1 - m1, w1)
            (by_b0, by_b1), (by_w0, by_w1) = _load2(sums, c, n), _load2(sums, channels + c, n)
            _store2(sums, c, n, by_b0 + b0, by_b1 + b1)
            _store2(sums, channels + c, n, by_w0 + w0 / s0, by_w1 + w1 / s1)


@njit
def batch_norm_backward_input(x, weight, grad_out, mean, var, sums, count, eps, grad_x):
    """grad_x[r, c] = s[c] (g[r, c] - (sums[0, c] + h[r, c] sums[1, c]) / count).

    s = weight / sqrt(var + eps) and g = grad_out; count is the number of rows of the whole.
    """
    rows, channels = x.shape
    step = _rows_in_cache(channels)
    for block in range(0, rows, step):
        for c in range(0, channels, 2 * simd.lanes(x)):
            n = channels - c
            (m0, m1), (s0, s1) = _load2(mean, c, n), _deviations(var, c, n, eps)
            (b0, b1), (h0, h1) = _load2(sums, c, n), _load2(sums, channels + c, n)
            w0, w1 = _load2(weight, c, n)
            w0, w1, b0, b1 = w0 / s0, w1 / s1, b0 / count, b1 / count
            h0, h1 = h0 / (s0 * count), h1 / (s1 * count)
            for r in range(block, min(block + step, rows)):
                at = r * channels + c
                (x0, x1), (g0, g1) = _load2(x, at, n), _load2(grad_out, at, n)
                x0, x1 = g0 - b0 - (x0 - m0) * h0, g1 - b1 - (x1 - m1) * h1
                _store2(grad_x, at, n, w0 * x0, w1 * x1)


@njit
def batch_norm_update(running_mean, running_var, mean, var, momentum, unbias, out_mean, out_var):
    """running += momentum (batch - running), for means and, times `unbias`, for variances."""
    for c in range(0, mean.size, simd.lanes(mean)):
        n = mean.size - c
        old_mean, old_var = simd.load(running_mean, c, n), simd.load(running_var, c, n)
        new_mean, new_var = simd.load(mean, c, n), simd.load(var, c, n) * unbias
        simd.store(out_mean, c, old_mean + (new_mean - old_mean) * momentum, n)
        simd.store(out_var, c, old_var + (new_var - old_var) * momentum, n)


# ================================================================= embedding


@njit
def embedding_forward(weight, indices, first, out, error):
    """out[n, f] = weight[indices[n], f].

    An index out of range leaves its position, counted from `first`.
    """
    rows, features = weight.shape
    error[0] = NO_ERROR
    for n in range(indices.size):
        row = indices[n]
        inside = 0 <= row < rows
        for f in range(features):
            out[n, f] = weight[row, f] if inside else weight.dtype.type(0)
        if not inside:
            error[0] = min(error[0], first + n)


@njit
def embedding_backward(grad_out, indices, first, grad_weight, start, order):
    """grad_weight[w, f] = sum_{n: indices[n] = first + w} grad_out[n, f].

    A stable counting sort brings the positions n with one index together: `order` lists those of
    row w from start[w] to start[w + 1]. Sums run in blocks, as in a reduction.
    """
    rows, features = grad_weight.shape
    for w in range(rows + 1):
        start[w] = 0
    for n in range(indices.size):
        if 0 <= indices[n] - first < rows:
            start[indices[n] - first + 1] += 1
    for w in range(rows):
        start[w + 1] += start[w]
    for n in range(indices.size):
        if 0 <= indices[n] - first < rows:
            w = indices[n] - first
            order[start[w]] = n
            start[w] += 1  # so in the end it is where the next row starts
    for w in range(rows):
        begin, end = start[w - 1] if w > 0 else 0, start[w]
        for f in range(0, features, simd.lanes(grad_out)):
            left = features - f
            total = simd.splat(grad_out.dtype.type(0), grad_out)
            for block in range(begin, end, BLOCK):
                acc = simd.splat(grad_out.dtype.type(0), grad_out)
                for p in range(block, min(block + BLOCK, end)):
                    acc = acc + simd.load(grad_out, order[p] * features + f, left)
                total = total + acc
            simd.store(grad_weight, w * features + f, total, left)
