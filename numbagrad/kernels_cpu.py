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
from .jit import njit


@njit
def _const(x, value):
    return value  # beside a vector, a scalar takes the vector's dtype


vector = formulas.bind({**vars(simd), "const": _const}, njit)


# ================================================================ elementwise
#
# Three loops serve all elementwise ops. With one operand everything is contiguous. With two or
# three, broadcasting: `layout` holds the collapsed shape in its first row and the strides of each
# operand, in elements, in the next ones. A stride of 0 repeats an operand along that dimension.


@njit
def _map1(f, x, out):
    """out[i] = f(x[i])."""
    for i in range(0, x.size, simd.lanes(x)):
        n = x.size - i
        simd.store(out, i, f(simd.load(x, i, n)), n)


@njit
def _offset(row, layout, operand):
    """Return where row number `row` of a broadcast operand starts."""
    offset = 0
    for axis in range(layout.shape[1] - 2, -1, -1):
        offset += row % layout[0, axis] * layout[operand, axis]
        row //= layout[0, axis]
    return offset


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
def _map3(f, x, y, parameter, layout, out):
    """out[row, j] = f(x[row, j], y[row, j], parameter), for two operands of one shape."""
    for i in range(0, x.size, simd.lanes(x)):
        n = x.size - i
        simd.store(out, i, f(simd.load(x, i, n), simd.load(y, i, n), parameter), n)


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
    for i in range(0, x.size, simd.lanes(x)):
        n = x.size - i
        simd.store(out, i, vector.relu_backward(simd.load(x, i, n), simd.load(grad_out, i, n)), n)


@njit
def leaky_relu_forward(x, slope, out):
    """out[i] = x[i] if x[i] > 0 else slope x[i]."""
    for i in range(0, x.size, simd.lanes(x)):
        n = x.size - i
        simd.store(out, i, vector.leaky_relu(simd.load(x, i, n), slope), n)


@njit
def leaky_relu_backward(x, grad_out, slope, out):
    """out[i] = grad_out[i] if x[i] > 0 else slope grad_out[i]."""
    _map3(vector.leaky_relu_backward, x, grad_out, slope, None, out)


@njit
def gelu_forward(x, out):
    """out[i] = x[i] Phi(x[i]), Phi the normal distribution function."""
    _map1(vector.gelu, x, out)


# ================================================================= reduction
#
# Every reduction sees x as (outer, reduce, inner): the reduced axes lie together in the middle.
# Sums run in blocks: a long chain of float32 additions would lose small addends.

BLOCK = 256


@njit
def sum_forward(x, reduce, inner, out):
    """out[o, i] = sum_r x[o, r, i]."""
    for o in range(out.size // inner):
        if inner == 1:
            out[o] = _sum_contiguous(x, o * reduce, reduce)
        else:
            _sum_rows(x, o * reduce * inner, reduce, inner, out, o * inner)


@njit
def _sum_contiguous(x, start, count):
    total = simd.splat(x.dtype.type(0), x)
    step = simd.lanes(x)
    for block in range(0, count, BLOCK * step):
        stop = min(block + BLOCK * step, count)
        acc = simd.splat(x.dtype.type(0), x)
        for r in range(block, stop, step):
            acc += simd.load(x, start + r, stop - r)
        total += acc
    return simd.reduce_sum(total)


@njit
def _sum_rows(x, start, count, inner, out, at):
    for i in range(0, inner, simd.lanes(x)):
        n = inner - i
        total = simd.splat(x.dtype.type(0), x)
        for block in range(0, count, BLOCK):
            acc = simd.splat(x.dtype.type(0), x)
            for r in range(block, min(block + BLOCK, count)):
                acc += simd.load(x, start + r * inner + i, n)
            total += acc
        simd.store(out, at + i, total, n)


@njit
def max_forward(x, reduce, inner, out, index):
    """out[o, i] = max_r x[o, r, i] and the first r that attains it; the first NaN wins."""
    for o in range(out.size // inner):
        for i in range(inner):
            out[o * inner + i] = x[o * reduce * inner + i]
            index[o * inner + i] = 0
        for r in range(1, reduce):
            for i in range(inner):
                value = x[(o * reduce + r) * inner + i]
                best = out[o * inner + i]
                if value > best or (value != value and best == best):
                    out[o * inner + i] = value
                    index[o * inner + i] = r


@njit
def min_forward(x, reduce, inner, out, index):
    """out[o, i] = min_r x[o, r, i] and the first r that attains it; the first NaN wins."""
    for o in range(out.size // inner):
        for i in range(inner):
            out[o * inner + i] = x[o * reduce * inner + i]
            index[o * inner + i] = 0
        for r in range(1, reduce):
            for i in range(inner):
                value = x[(o * reduce + r) * inner + i]
                best = out[o * inner + i]
                if value < best or (value != value and best == best):
                    out[o * inner + i] = value
                    index[o * inner + i] = r


@njit
def pick_forward(x, index, reduce, inner, out):
    """out[o, i] = x[o, index[o, i], i]: what a maximum found."""
    for o in range(out.size // inner):
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
def transpose_into(x, at, rows, columns, out, to):
    """out[to + j rows + i] = x[at + i columns + j]: a matrix turned."""
    for i in range(rows):
        for j in range(columns):
            out[to + j * rows + i] = x[at + i * columns + j]


@njit
def _product(a, at_a, row_a, step_a, b, at_b, step_b, out, at, m, n, k):
    """out[i, j] = sum_p a[i, p] b[p, j] by register tiles; a's strides are free, b's rows lie
    together. One column strip of b after another, so that it stays in cache."""
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
def matmul_forward(a, b, transpose_a, transpose_b, first, out, turned):
    """out[b, i, j] = sum_p a[b, i, p] b[b, p, j], each operand as it is or transposed.

    `a` is (batch, m, k), or (batch, k, m) transposed; `b` is (batch, k, n), or (batch, n, k). A
    batch of 1 serves all of out's. `first` is the row of the whole product that out starts with,
    where only some rows are asked for. `turned` holds a transposed b made straight (k, n).
    """
    batch, m, n = out.shape
    k = a.shape[1] if transpose_a else a.shape[2]
    total = a.shape[2] if transpose_a else a.shape[1]  # rows of the whole product
    row_a, step_a = (1, total) if transpose_a else (k, 1)
    for which in range(batch):
        at_a = (which * total * k if a.shape[0] > 1 else 0) + first * row_a
        at_b = which * k * n if b.shape[0] > 1 else 0
        at = which * m * n
        if transpose_b:
            if which == 0 or b.shape[0] > 1:
                transpose_into(b.reshape(-1), at_b, n, k, turned, 0)
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
