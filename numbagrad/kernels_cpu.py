"""The CPU kernels: sequential functions that Numba compiles, one or a few for each op.

How to read one
---------------
Arguments come in the order inputs, parameters, outputs, workspace. Arrays are contiguous; outputs
are overwritten and hold garbage before. A kernel knows nothing of threads: it runs on a *shard*,
some rows of the whole, and the op's ``split`` (in ``ops/``) says how the whole is cut. The CUDA
kernel of the same name does the same work in ``kernels_cuda.py``.

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
    """Return how many of `count` elements lie in blocks of four vectors; none of integers."""
    step = simd.lanes(x)
    return count - count % (4 * step) if step > 1 else 0


@njit
def _load4(x, i):
    """Load four neighbouring vectors."""
    step = simd.lanes(x)
    a, b = simd.load(x, i), simd.load(x, i + step)
    return a, b, simd.load(x, i + 2 * step), simd.load(x, i + 3 * step)


@njit
def _store4(x, i, a, b, c, d, step):
    """Store four neighbouring vectors of `step` lanes."""
    simd.store(x, i, a)
    simd.store(x, i + step, b)
    simd.store(x, i + 2 * step, c)
    simd.store(x, i + 3 * step, d)


@njit
def _map1(f, x, out, *parameters):
    """out[i] = f(x[i], *parameters)."""
    step, whole = simd.lanes(x), _whole(x.size, x)
    for i in range(0, whole, 4 * step):
        a, b, c, d = _load4(x, i)
        a, b = f(a, *parameters), f(b, *parameters)
        c, d = f(c, *parameters), f(d, *parameters)
        _store4(out, i, a, b, c, d, step)
    for i in range(whole, x.size, step):
        n = x.size - i
        simd.store(out, i, f(simd.load(x, i, n), *parameters), n)


@njit
def _map_alike(f, x, y, out, *parameters):
    """out[i] = f(x[i], y[i], *parameters)."""
    step, whole = simd.lanes(x), _whole(x.size, x)
    for i in range(0, whole, 4 * step):
        a, b, c, d = _load4(x, i)
        e, g, h, k = _load4(y, i)
        a, b = f(a, e, *parameters), f(b, g, *parameters)
        c, d = f(c, h, *parameters), f(d, k, *parameters)
        _store4(out, i, a, b, c, d, step)
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
def relu_forward(x, out):
    """out[i] = max(x[i], 0)."""
    _map1(vector.relu, x, out)


@njit
def relu_backward(x, grad_out, out):
    """out[i] = grad_out[i] if x[i] > 0 else 0."""
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


# ================================================================= reduction
#
# Every reduction sees x as (outer, reduce, inner): the reduced axes lie together in the middle.
# Sums run in blocks: a long chain of float32 additions would lose small addends.

BLOCK = 256
SHORT = 16  # vectors that are added up in one chain


@njit
def sum_forward(x, reduce, inner, out):
    """out[o, i] = sum_r x[o, r, i]."""
    for o in range(out.size // max(inner, 1)):
        if inner > 1:
            _sum_rows(x, o * reduce * inner, reduce, inner, out, o * inner)
        elif reduce <= SHORT * simd.lanes(x):
            out[o] = _sum_short(x, o * reduce, reduce)
        else:
            out[o] = _sum_contiguous(x, o * reduce, reduce)


@njit
def _element(i, n, x):
    """Return the vector at i."""
    return simd.load(x, i, n)


@njit
def _chains(f, start, stride, count, zero, *parameters):
    """sum_{r < count} f(start + r stride, *parameters).

    An addition waits for the one before it; of four chains, each has time for that.
    """
    a = b = c = d = zero
    whole = count - count % 4
    for r in range(0, whole, 4):
        i = start + r * stride
        a = a + f(i, *parameters)
        b = b + f(i + stride, *parameters)
        c = c + f(i + 2 * stride, *parameters)
        d = d + f(i + 3 * stride, *parameters)
    for r in range(whole, count):
        a = a + f(start + r * stride, *parameters)
    return (a + b) + (c + d)


@njit
def _sum_short(x, start, count):
    """Return the sum of x[start], ..., x[start + count - 1], a few vectors."""
    total = simd.splat(0, x)
    for r in range(0, count, simd.lanes(x)):
        total = total + simd.load(x, start + r, count - r)
    return simd.reduce_sum(total)


@njit
def _sum_contiguous(x, start, count):
    """Return the sum of x[start], ..., x[start + count - 1]."""
    step = simd.lanes(x)
    total = zero = simd.splat(0, x)
    for block in range(0, count, BLOCK * step):
        vectors = min(BLOCK, (count - block) // step)
        total = total + _chains(_element, start + block, step, vectors, zero, step, x)
    tail = count % step
    if tail > 0:
        total = total + simd.load(x, start + count - tail, tail)
    return simd.reduce_sum(total)


@njit
def _sum_rows(x, start, count, inner, out, at):
    """out[at + i] = sum_{r < count} x[start + r inner + i], for i < inner.

    One block of rows after another, so that it stays in cache while strips of it are added up.
    """
    zero = simd.splat(0, x)
    for block in range(0, max(count, 1), BLOCK):
        rows = min(BLOCK, count - block)
        for i in range(0, inner, simd.lanes(x)):
            n = inner - i
            total = _chains(_element, start + block * inner + i, inner, rows, zero, n, x)
            if block > 0:
                total = total + simd.load(out, at + i, n)
            simd.store(out, at + i, total, n)


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

ROWS, COLUMNS = simd.TILE_ROWS, simd.TILE_COLUMNS


@njit
def _transpose_into(x, at, rows, columns, out, to):
    """out[to + j rows + i] = x[at + i columns + j]: a matrix turned."""
    for i in range(rows):
        for j in range(columns):
            out[to + j * rows + i] = x[at + i * columns + j]


@njit
def _product(a, at_a, row_a, step_a, b, at_b, step_b, out, at, m, n, k):
    """out[i, j] = sum_p a[i, p] b[p, j] by register tiles.

    The strides of a are free, a row of b lies together. One column strip of b after another, so
    that it stays in cache.
    """
    width = COLUMNS * simd.lanes(out)
    for j in range(0, n, width):
        for i in range(0, m, ROWS):
            acc = simd.tile(out, ROWS, COLUMNS)
            corner = at_a + i * row_a
            for p in range(k):
                acc = simd.tile_fma(
                    acc, a, corner + p * step_a, row_a, m - i, b, at_b + p * step_b + j, n - j
                )
            simd.tile_store(acc, out, at + i * n + j, n, m - i, n - j)


@njit
def matmul_forward(a, b, transpose_a, transpose_b, n, k, width_a, first, m, out, turned):
    """out[w, i, j] = sum_p a[w, i, p] b[w, p, j], each operand as it is or transposed.

    All arrays are flat. Matrix number w of a is m x k, or k x width_a transposed, of which columns
    `first` to first + m are taken: a shard's rows of the product. Each of b is k x n, or n x k
    transposed. A single matrix serves all of out's. `turned` holds a transposed b made straight.
    """
    row_a, step_a = (1, width_a) if transpose_a else (width_a, 1)
    for which in range(out.size // max(m * n, 1)):
        at_a = first * row_a + (which * m * k if a.size > m * k else 0)
        at_b = which * k * n if b.size > k * n else 0
        at = which * m * n
        if transpose_b:
            if which == 0 or b.size > k * n:
                _transpose_into(b, at_b, n, k, turned, 0)
            _product(a, at_a, row_a, step_a, turned, 0, n, out, at, m, n, k)
        else:
            _product(a, at_a, row_a, step_a, b, at_b, n, out, at, m, n, k)


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
                    total += simd.load(grad_out, source + i, inner - i)
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

    Nesterov's step looks ahead: out = param - lr (g + momentum v).
    """
    rate = param.dtype.type(lr[0])
    for i in range(0, param.size, simd.lanes(param)):
        n = param.size - i
        p = simd.load(param, i, n)
        g = simd.load(grad, i, n) + weight_decay * p
        v = momentum * simd.load(velocity, i, n) + g
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
        m += rest1 * (g - m)
        s = simd.load(square, i, n)
        s += rest2 * (g * g - s)
        simd.store(new_mean, i, m, n)
        simd.store(new_square, i, s, n)
        simd.store(out, i, kept * p - m_scale * m / (simd.sqrt(s * s_scale) + eps), n)


# =============================================================== convolution
#
# Images are (n, h, w, c), weights (r, s, c, k). A register tile holds ROWS neighbouring pixels of
# an output row by COLUMNS vectors of output channels. One step multiplies one input value of each
# of these pixels by a row of the weight; nothing is unfolded or packed. Without dilation and
# groups, (s, c) lies in one run in both the image and the weight, which keeps the inner loop long
# even for the 1 or 3 channels of a first layer. Padding is a copy of one image in workspace.
#
# A number written in a call has a type of its own in Numba, and the callee would be compiled once
# more for it; `np.int64(1)` has the type of all the other numbers.


@njit
def _spread(x, n, step, offset, out):
    """out[0, h step + offset, w step + offset, c] = x[n, h, w, c], where that is inside."""
    _, height, width, depth = x.shape
    _, rows, columns, _ = out.shape
    first = max(0, -(offset[1] // step[1]))  # the columns from here ...
    last = min(width, (columns - 1 - offset[1]) // step[1] + 1)  # ... to here land inside
    pieces, length = last - first, depth
    if step[1] == 1:
        pieces, length = min(1, pieces), pieces * depth
    for h in range(height):
        row = h * step[0] + offset[0]
        if 0 <= row < rows:
            for w in range(first, first + pieces):
                at = ((n * height + h) * width + w) * depth
                to = (row * columns + w * step[1] + offset[1]) * depth
                for c in range(0, length, simd.lanes(x)):
                    simd.store(out, to + c, simd.load(x, at + c, length - c), length - c)


@njit
def _convolve(image, i, weight, bias, stride, dilation, groups, out, n):
    """out[n, h, w, k] = bias[k]
    + sum_{r,s,c} image[i, h stride + r dilation, w stride + s dilation, c] weight[r, s, c, k].

    This is one image, padded already. An empty bias adds nothing.
    """
    _, rows, columns, channels = image.shape
    filter_height, filter_width, depth, out_channels = weight.shape
    _, height, width, _ = out.shape
    group = out_channels // groups
    runs, length = filter_width, depth
    if dilation[1] == 1 and groups == 1:
        runs, length = 1, filter_width * depth
    step = stride[1] * channels
    for g in range(groups):
        for k in range(0, group, COLUMNS * simd.lanes(out)):
            first, count = g * group + k, group - k
            for h in range(height):
                for w in range(0, width, ROWS):
                    acc = simd.tile(out, ROWS, COLUMNS)
                    for r in range(filter_height):
                        row = (i * rows + h * stride[0] + r * dilation[0]) * columns
                        for s in range(runs):
                            at = (row + w * stride[1] + s * dilation[1]) * channels + g * depth
                            tap = (r * filter_width + s) * depth
                            for c in range(length):
                                acc = simd.tile_fma(
                                    acc, image, at + c, step, width - w,
                                    weight, (tap + c) * out_channels + first, count,
                                )  # fmt: skip
                    if bias.size > 0:
                        acc = simd.tile_add(acc, bias, first, count)
                    pixel = (n * height + h) * width + w
                    to = pixel * out_channels + first
                    simd.tile_store(acc, out, to, out_channels, width - w, count)


@njit
def conv2d_forward(x, weight, bias, stride, padding, dilation, groups, out, padded):
    """out[n, h, w, k] = bias[k]
    + sum_{r,s,c} x[n, h stride + r dilation - padding, w ... + s ... - ..., c] weight[r, s, c, k].

    With groups, channel k sees only the c of its group. An empty bias adds nothing.
    """
    image = padded if padded.size > 0 else x
    padded.fill(0)
    for n in range(x.shape[0]):
        i = n
        if padded.size > 0:
            _spread(x, n, (np.int64(1), np.int64(1)), padding, padded)
            i = 0
        _convolve(image, i, weight, bias, stride, dilation, groups, out, n)


@njit
def conv2d_backward_input(
    grad_out, weight, stride, padding, dilation, groups, grad_x, turned, spread
):
    """grad_x[n, h, w, c] = sum of grad_out[n, i, j, k] weight[r, s, c, k] over all r, s, k where
    i stride + r dilation - padding = h, and likewise for j and w.

    That is a convolution: of grad_out, its pixels `stride` apart, with the filter upside down.
    """
    filter_height, filter_width, depth, _ = weight.shape
    group = turned.shape[2]
    for r in range(filter_height):
        for s in range(filter_width):
            for c in range(turned.shape[3]):
                for k in range(group):
                    value = weight[r, s, c % depth, c // depth * group + k]
                    turned[filter_height - 1 - r, filter_width - 1 - s, k, c] = value
    offset = (
        (filter_height - 1) * dilation[0] - padding[0],
        (filter_width - 1) * dilation[1] - padding[1],
    )
    no_bias = turned.reshape(-1)[:0]
    zero, one = np.int64(0), np.int64(1)
    spread.fill(0)
    for n in range(grad_out.shape[0]):
        _spread(grad_out, n, stride, offset, spread)
        _convolve(spread, zero, turned, no_bias, (one, one), dilation, groups, grad_x, n)


@njit
def conv2d_backward_weight(x, grad_out, stride, padding, dilation, groups, grad_weight, padded):
    """grad_weight[r, s, c, k]
    = sum_{n,h,w} x[n, h stride + r dilation - padding, w ..., c] grad_out[n, h, w, k].

    A tile is ROWS of (s, c) by COLUMNS vectors of k.
    """
    filter_height, filter_width, depth, out_channels = grad_weight.shape
    _, height, width, _ = grad_out.shape
    group = out_channels // groups
    runs, length = filter_width, depth
    if dilation[1] == 1 and groups == 1:
        runs, length = 1, filter_width * depth
    image = padded if padded.size > 0 else x
    _, rows, columns, channels = image.shape
    grad_weight.fill(0)
    padded.fill(0)
    for n in range(x.shape[0]):
        i = n
        if padded.size > 0:
            _spread(x, n, (np.int64(1), np.int64(1)), padding, padded)
            i = 0
        for g in range(groups):
            for k in range(0, group, COLUMNS * simd.lanes(x)):
                first, count = g * group + k, group - k
                for r in range(filter_height):
                    for s in range(runs):
                        for c in range(0, length, ROWS):
                            tap = (r * filter_width + s) * depth + c
                            to = tap * out_channels + first
                            acc = simd.tile(x, ROWS, COLUMNS)
                            acc = simd.tile_load(
                                acc, grad_weight, to, out_channels, length - c, count
                            )
                            for h in range(height):
                                row = (i * rows + h * stride[0] + r * dilation[0]) * columns
                                at = (row + s * dilation[1]) * channels + g * depth + c
                                pixel = (n * height + h) * width
                                for w in range(width):
                                    acc = simd.tile_fma(
                                        acc, image, at + w * stride[1] * channels, 1, length - c,
                                        grad_out, (pixel + w) * out_channels + first, count,
                                    )  # fmt: skip
                            simd.tile_store(acc, grad_weight, to, out_channels, length - c, count)


# =================================================================== pooling
#
# Windows (r, s) slide over images (n, h, w, c); channels lie together and do not mix. A maximum
# notes where in its window it was found, r kernel_size[1] + s, as a number of x's own dtype: so
# one vector compares values and another carries their places.
#
# Windows that tile the image run at half of memory speed or more from about 16 channels on. With 6,
# a vector holds one pixel and ten idle lanes: the pixels, not the bytes, take the time, down to an
# eighth of memory speed where windows overlap and are added up.


@njit
def _inside(first, kernel, extent):
    """Return the range of window rows that lie in the image, for a window from row `first` on."""
    return max(-first, 0), min(kernel, extent - first)


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
            for j in range(columns):
                w = j * stride[1] - padding[1]
                left, right = _inside(w, kernel_size[1], width)
                to = ((n * rows + i) * columns + j) * channels
                for c in range(0, channels, simd.lanes(x)):
                    count = channels - c
                    at = ((n * height + h + top) * width + w + left) * channels + c
                    best = simd.load(x, at, count)
                    place = simd.splat(top * kernel_size[1] + left, x)
                    for r in range(top, bottom):
                        at = ((n * height + h + r) * width + w) * channels + c
                        here = simd.splat(r * kernel_size[1] + left, x)
                        for s in range(left, right):
                            value = simd.load(x, at + s * channels, count)
                            wins = _greater(value, best)
                            best = simd.where(wins, value, best)
                            place = simd.where(wins, here, place)
                            here += 1
                    simd.store(out, to + c, best, count)
                    simd.store(index, to + c, place, count)


@njit
def _tiled(windows, kernel, stride, extent):
    """Return whether each row of an image is in one window and no more."""
    return kernel == stride and windows * stride == extent


@njit
def max_pool2d_backward(grad_out, index, kernel_size, stride, padding, grad_x):
    """grad_x[n, h, w, c] = sum of grad_out[n, i, j, c] over the windows (i, j) whose index says
    that their maximum was found at (h, w).

    Each window adds its share to its pixels; where windows do not meet, it writes it.
    """
    images, height, width, channels = grad_x.shape
    _, rows, columns, _ = grad_out.shape
    alone = _tiled(rows, kernel_size[0], stride[0], height)
    alone = alone and _tiled(columns, kernel_size[1], stride[1], width)
    zero = simd.splat(0, grad_x)
    for n in range(images):
        if not alone:
            grad_x[n] = 0
        for i in range(rows):
            h = i * stride[0] - padding[0]
            top, bottom = _inside(h, kernel_size[0], height)
            for j in range(columns):
                w = j * stride[1] - padding[1]
                left, right = _inside(w, kernel_size[1], width)
                at = ((n * rows + i) * columns + j) * channels
                for c in range(0, channels, simd.lanes(grad_x)):
                    count = channels - c
                    grad = simd.load(grad_out, at + c, count)
                    place = simd.load(index, at + c, count)
                    for r in range(top, bottom):
                        to = ((n * height + h + r) * width + w) * channels + c
                        here = simd.splat(r * kernel_size[1] + left, grad_x)
                        for s in range(left, right):
                            share = simd.where(place == here, grad, zero)
                            if not alone:
                                share += simd.load(grad_x, to + s * channels, count)
                            simd.store(grad_x, to + s * channels, share, count)
                            here += 1


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
    for n in range(images):
        for i in range(rows):
            h = i * stride[0] - padding[0]
            top, bottom = _inside(h, kernel_size[0], height)
            for j in range(columns):
                w = j * stride[1] - padding[1]
                left, right = _inside(w, kernel_size[1], width)
                to = ((n * rows + i) * columns + j) * channels
                for c in range(0, channels, simd.lanes(x)):
                    count = channels - c
                    acc = simd.splat(0, x)
                    for r in range(top, bottom):
                        at = ((n * height + h + r) * width + w) * channels + c
                        for s in range(left, right):
                            acc += simd.load(x, at + s * channels, count)
                    mean = acc / (kernel_size[0] * kernel_size[1])
                    simd.store(out, to + c, mean, count)


@njit
def avg_pool2d_backward(grad_out, kernel_size, stride, padding, grad_x):
    """grad_x[n, h, w, c] = sum of grad_out[n, i, j, c] / area over the windows on (h, w).

    Each window adds its share to its pixels; where windows do not meet, it writes it.
    """
    images, height, width, channels = grad_x.shape
    _, rows, columns, _ = grad_out.shape
    alone = _tiled(rows, kernel_size[0], stride[0], height)
    alone = alone and _tiled(columns, kernel_size[1], stride[1], width)
    for n in range(images):
        if not alone:
            grad_x[n] = 0
        for i in range(rows):
            h = i * stride[0] - padding[0]
            top, bottom = _inside(h, kernel_size[0], height)
            for j in range(columns):
                w = j * stride[1] - padding[1]
                left, right = _inside(w, kernel_size[1], width)
                at = ((n * rows + i) * columns + j) * channels
                for c in range(0, channels, simd.lanes(grad_x)):
                    count = channels - c
                    share = simd.load(grad_out, at + c, count)
                    share = share / (kernel_size[0] * kernel_size[1])
                    for r in range(top, bottom):
                        to = ((n * height + h + r) * width + w) * channels + c
                        for s in range(left, right):
                            total = share
                            if not alone:
                                total = total + simd.load(grad_x, to + s * channels, count)
                            simd.store(grad_x, to + s * channels, total, count)


# ============================================================ random numbers
#
# Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) mixes a key,
# the seed, with a counter, the number of the draw and of a block in it, into four random 32-bit
# words. So element i of a draw is a function of (seed, call, i) alone, whoever computes it: a
# block gives elements 4 block to 4 block + 3, or in float64, from two words each, two elements.
# `first` is the number of out's first element. Words are held in uint64, where they can't wrap.
# Blocks are drawn one by one, at a tenth of memory speed or less: ten rounds of two multiplications
# to 64 bits each, for which `simd` has no vectors.

PHILOX_0, PHILOX_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)  # multipliers
WEYL_0, WEYL_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)  # steps of the key
WORD, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
WORDS = 4  # in a block


@njit
def _philox(seed, call, block):
    """Return block number `block` of draw number `call`: four random 32-bit words."""
    c0, c1, c2, c3 = block & WORD, block >> HALF, call & WORD, call >> HALF
    k0, k1 = seed & WORD, seed >> HALF
    for _ in range(10):
        p, q = c0 * PHILOX_0, c2 * PHILOX_1
        c0, c1, c2, c3 = (q >> HALF) ^ c1 ^ k0, q & WORD, (p >> HALF) ^ c3 ^ k1, p & WORD
        k0, k1 = (k0 + WEYL_0) & WORD, (k1 + WEYL_1) & WORD
    return c0, c1, c2, c3


@njit
def _uniform(words, k, out):
    """Return number k of a block, in [0, 1): as many random bits as a number of out's dtype has."""
    if out.itemsize == 4:
        return out.dtype.type(np.int64(words[k]) >> 8) * out.dtype.type(2.0**-24)
    bits = np.int64(words[2 * k]) << 21 | np.int64(words[2 * k + 1]) >> 11
    return out.dtype.type(bits) * out.dtype.type(2.0**-53)


@njit
def random_uniform(seed, call, first, out):
    """out[i] = u[first + i], uniform in [0, 1)."""
    each = 4 * WORDS // out.itemsize
    for block in range(first // each, (first + out.size + each - 1) // each):
        words = _philox(np.uint64(seed[0]), np.uint64(call[0]), np.uint64(block))
        for k in range(each):
            i = block * each + k - first
            if 0 <= i < out.size:
                out[i] = _uniform(words, k, out)


@njit
def random_normal(seed, call, first, out):
    """out[2j], out[2j + 1] = r cos(2 pi v), r sin(2 pi v), with r = sqrt(-2 ln(1 - u)).

    u, v = u[2j], u[2j + 1] are uniform; elements are counted from `first` (Box and Muller, 1958).
    """
    each = 4 * WORDS // out.itemsize
    one, two, tau = out.dtype.type(1), out.dtype.type(2), out.dtype.type(2 * np.pi)
    for block in range(first // each, (first + out.size + each - 1) // each):
        words = _philox(np.uint64(seed[0]), np.uint64(call[0]), np.uint64(block))
        for k in range(0, each, 2):
            radius = np.sqrt(-two * np.log(one - _uniform(words, k, out)))
            angle = tau * _uniform(words, k + 1, out)
            i = block * each + k - first
            if 0 <= i < out.size:
                out[i] = radius * np.cos(angle)
            if 0 <= i + 1 < out.size:
                out[i + 1] = radius * np.sin(angle)


@njit
def dropout_forward(x, seed, call, threshold, scale, first, out, mask):
    """mask[i] = w[first + i] >= threshold;  out[i] = x[i] scale if mask[i] else 0.

    w are random 32-bit words, the same ones for float32 and float64.
    """
    for block in range(first // WORDS, (first + out.size + WORDS - 1) // WORDS):
        words = _philox(np.uint64(seed[0]), np.uint64(call[0]), np.uint64(block))
        for k in range(WORDS):
            i = block * WORDS + k - first
            if 0 <= i < out.size:
                mask[i] = np.int64(words[k]) >= threshold
                out[i] = x[i] * scale if mask[i] else x.dtype.type(0)


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
    total = simd.splat(0, x)
    for r in range(0, whole, 4 * step):
        a, b, c, d = _load4(x, start + r)
        a, b = simd.exp(a - shift), simd.exp(b - shift)
        c, d = simd.exp(c - shift), simd.exp(d - shift)
        _store4(out, start + r, a, b, c, d, step)
        total = total + ((a + b) + (c + d))
    for r in range(whole, count, step):
        value = simd.exp(simd.load(x, start + r, count - r, -np.inf) - shift)
        simd.store(out, start + r, value, count - r)
        total = total + value  # lanes past the end hold exp(-inf) = 0
    return simd.reduce_sum(total)


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
# a part of each row.


@njit
def _deviation(i, n, x, center):
    """Return (x[i] - center)^2 for the vector at i."""
    away = simd.load(x, i, n) - center
    return away * away


@njit
def batch_norm_moments(x, block, mean, square):
    """mean[b, c] = mean of x[r, c] over block b of rows;  square[b, c] = sum (x - mean)^2.

    The second pass over a block finds it in cache. Exact where the textbook's E[x^2] - E[x]^2
    loses all digits, which is when the mean is large beside the deviation.
    """
    rows, channels = x.shape
    zero = simd.splat(0, x)
    for b in range(mean.shape[0]):
        count = min(block, rows - b * block)
        for c in range(0, channels, simd.lanes(x)):
            n, at = channels - c, b * block * channels + c
            center = _chains(_element, at, channels, count, zero, n, x) / count
            simd.store(mean, b * channels + c, center, n)
            total = _chains(_deviation, at, channels, count, zero, n, x, center)
            simd.store(square, b * channels + c, total, n)


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
    return max(4096 // channels, 16)


@njit
def batch_norm_forward(x, weight, bias, mean, var, eps, out):
    """out[r, c] = h[r, c] weight[c] + bias[c]."""
    rows, channels = x.shape
    step = _rows_in_cache(channels)
    for block in range(0, rows, step):
        for c in range(0, channels, simd.lanes(x)):
            n = channels - c
            center, shift = simd.load(mean, c, n), simd.load(bias, c, n)
            scale = simd.load(weight, c, n) / simd.sqrt(simd.load(var, c, n) + eps)
            for r in range(block, min(block + step, rows)):
                at = r * channels + c
                away = simd.load(x, at, n) - center
                simd.store(out, at, simd.fma(away, scale, shift), n)


@njit
def batch_norm_backward_sums(x, grad_out, mean, var, eps, sums):
    """sums[0, c] = sum_r grad_out[r, c];  sums[1, c] = sum_r grad_out[r, c] h[r, c].

    These are the gradients of bias and weight.
    """
    rows, channels = x.shape
    step = _rows_in_cache(channels)
    sums.fill(0)
    for block in range(0, rows, step):
        for c in range(0, channels, simd.lanes(x)):
            n = channels - c
            center, rstd = simd.load(mean, c, n), 1 / simd.sqrt(simd.load(var, c, n) + eps)
            by_bias = by_weight = simd.splat(0, x)
            for r in range(block, min(block + step, rows)):
                g = simd.load(grad_out, r * channels + c, n)
                away = simd.load(x, r * channels + c, n) - center
                by_bias = by_bias + g
                by_weight = simd.fma(g, away, by_weight)
            simd.store(sums, c, simd.load(sums, c, n) + by_bias, n)
            total = simd.fma(by_weight, rstd, simd.load(sums, channels + c, n))
            simd.store(sums, channels + c, total, n)


@njit
def batch_norm_backward_input(x, weight, grad_out, mean, var, sums, count, eps, grad_x):
    """grad_x[r, c] = s[c] (g[r, c] - (sums[0, c] + h[r, c] sums[1, c]) / count).

    s = weight / sqrt(var + eps) and g = grad_out; count is the number of rows of the whole.
    """
    rows, channels = x.shape
    step = _rows_in_cache(channels)
    for block in range(0, rows, step):
        for c in range(0, channels, simd.lanes(x)):
            n = channels - c
            center, constant = simd.load(mean, c, n), simd.load(sums, c, n) / count
            spread = simd.sqrt(simd.load(var, c, n) + eps)
            scale = simd.load(weight, c, n) / spread
            slope = simd.load(sums, channels + c, n) / (spread * count)
            for r in range(block, min(block + step, rows)):
                at = r * channels + c
                g, away = simd.load(grad_out, at, n), simd.load(x, at, n) - center
                simd.store(grad_x, at, scale * (g - constant - away * slope), n)


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
                    acc += simd.load(grad_out, order[p] * features + f, left)
                total += acc
            simd.store(grad_weight, w * features + f, total, left)
