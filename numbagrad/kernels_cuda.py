"""The CUDA kernels: what one GPU thread does, beside the launcher that starts many of it.

How to read one
---------------
``_add_forward`` is the kernel: every thread runs it, and ``cuda.grid(1)`` tells a thread its
number. ``add_forward`` is its launcher: it has the name and the parameters of the CPU kernel in
``kernels_cpu.py``, and a last one, the stream. Threads come in blocks of a fixed size, so the last
block has some to spare: hence ``if i < out.size``.

Arrays are contiguous; outputs are overwritten and hold garbage before. A thread owns what it
writes and gathers what it needs: no float atomics, so results are the same every time.

float32 and float64 go through one text: ``x.dtype.type(0)`` is a zero of the right kind, where a
bare ``0.0`` would turn float32 arithmetic into float64, 64 times as slow on many GPUs.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np

from . import formulas
from .cuda_support import (
    ALIGNMENT,
    BLOCK,
    LANES,
    SIMULATOR,
    TWO_BLOCKS,
    commit_copies,
    constant,
    copy4_async,
    copy_async,
    cuda,
    erf,
    exp,
    expm1,
    fma,
    is_aligned,
    launch,
    load4,
    log,
    pow,
    shuffle_xor,
    sqrt,
    store4,
    tanh,
    wait_for_copies,
)
from .errors import NO_ERROR

device = cuda.jit(device=True)  # a function that kernels call


def _launch_flat(kernel, size, stream, *args):
    """Start ``size`` threads, rounded up to whole blocks."""
    launch(kernel, -(-size // BLOCK), BLOCK, stream, *args)


@device
def _const(x, value):
    return type(x)(value)


@device
def _where(condition, x, y):
    return x if condition else y


@device
def _maximum(x, y):
    return x if x > y or x != x else y  # x != x: NaN wins


@device
def _minimum(x, y):
    return x if x < y or x != x else y


scalar = formulas.bind(
    {
        "const": _const,
        "where": _where,
        "maximum": _maximum,
        "minimum": _minimum,
        "sqrt": sqrt,
        "exp": exp,
        "log": log,
        "tanh": tanh,
        "erf": erf,
        "power": pow,
    },
    device,
)


# ================================================================ elementwise
#
# One thread per element of `out`. Where operands broadcast, `layout` holds the collapsed shape in
# its first row and the strides of each operand, in elements, in the next ones. A stride of 0
# repeats an operand along that dimension.


@device
def _offset(index, layout, operand):
    """Return where element number `index` of the result lies in a broadcast operand."""
    offset = 0
    for axis in range(layout.shape[1] - 1, 0, -1):
        offset += index % layout[0, axis] * layout[operand, axis]
        index //= layout[0, axis]
    return offset + index * layout[operand, 0]


@device
def _pair(x, y, layout, i):
    """Return what two operands hold for element number i of the result."""
    return x[_offset(i, layout, 1)], y[_offset(i, layout, 2)]


@cuda.jit
def _add_forward(x, y, layout, out):
    """out[i] = x[i] + y[i]."""
    i = cuda.grid(1)
    if i < out.size:
        a, b = _pair(x, y, layout, i)
        out[i] = scalar.add(a, b)


def add_forward(x, y, layout, out, stream):
    """Start a thread per element."""
    _launch_flat(_add_forward, out.size, stream, x, y, constant(layout), out)


@cuda.jit
def _subtract_forward(x, y, layout, out):
    """out[i] = x[i] - y[i]."""
    i = cuda.grid(1)
    if i < out.size:
        a, b = _pair(x, y, layout, i)
        out[i] = scalar.subtract(a, b)


def subtract_forward(x, y, layout, out, stream):
    """Start a thread per element."""
    _launch_flat(_subtract_forward, out.size, stream, x, y, constant(layout), out)


@cuda.jit
def _multiply_forward(x, y, layout, out):
    """out[i] = x[i] y[i]."""
    i = cuda.grid(1)
    if i < out.size:
        a, b = _pair(x, y, layout, i)
        out[i] = scalar.multiply(a, b)


def multiply_forward(x, y, layout, out, stream):
    """Start a thread per element."""
    _launch_flat(_multiply_forward, out.size, stream, x, y, constant(layout), out)


@cuda.jit
def _divide_forward(x, y, layout, out):
    """out[i] = x[i] / y[i]."""
    i = cuda.grid(1)
    if i < out.size:
        a, b = _pair(x, y, layout, i)
        out[i] = scalar.divide(a, b)


def divide_forward(x, y, layout, out, stream):
    """Start a thread per element."""
    _launch_flat(_divide_forward, out.size, stream, x, y, constant(layout), out)


@cuda.jit
def _pow_forward(x, y, layout, out):
    """out[i] = x[i] ** y[i]."""
    i = cuda.grid(1)
    if i < out.size:
        a, b = _pair(x, y, layout, i)
        out[i] = scalar.raised(a, b)


def pow_forward(x, y, layout, out, stream):
    """Start a thread per element."""
    _launch_flat(_pow_forward, out.size, stream, x, y, constant(layout), out)


@cuda.jit
def _maximum_forward(x, y, layout, out):
    """out[i] = max(x[i], y[i]); NaN if either is."""
    i = cuda.grid(1)
    if i < out.size:
        a, b = _pair(x, y, layout, i)
        out[i] = scalar.larger(a, b)


def maximum_forward(x, y, layout, out, stream):
    """Start a thread per element."""
    _launch_flat(_maximum_forward, out.size, stream, x, y, constant(layout), out)


@cuda.jit
def _minimum_forward(x, y, layout, out):
    """out[i] = min(x[i], y[i]); NaN if either is."""
    i = cuda.grid(1)
    if i < out.size:
        a, b = _pair(x, y, layout, i)
        out[i] = scalar.smaller(a, b)


def minimum_forward(x, y, layout, out, stream):
    """Start a thread per element."""
    _launch_flat(_minimum_forward, out.size, stream, x, y, constant(layout), out)


@cuda.jit
def _equal_forward(x, y, layout, out):
    """out[i] = x[i] == y[i]."""
    i = cuda.grid(1)
    if i < out.size:
        a, b = _pair(x, y, layout, i)
        out[i] = scalar.equal(a, b)


def equal_forward(x, y, layout, out, stream):
    """Start a thread per element."""
    _launch_flat(_equal_forward, out.size, stream, x, y, constant(layout), out)


@cuda.jit
def _not_equal_forward(x, y, layout, out):
    """out[i] = x[i] != y[i]."""
    i = cuda.grid(1)
    if i < out.size:
        a, b = _pair(x, y, layout, i)
        out[i] = scalar.not_equal(a, b)


def not_equal_forward(x, y, layout, out, stream):
    """Start a thread per element."""
    _launch_flat(_not_equal_forward, out.size, stream, x, y, constant(layout), out)


@cuda.jit
def _less_forward(x, y, layout, out):
    """out[i] = x[i] < y[i]."""
    i = cuda.grid(1)
    if i < out.size:
        a, b = _pair(x, y, layout, i)
        out[i] = scalar.less(a, b)


def less_forward(x, y, layout, out, stream):
    """Start a thread per element."""
    _launch_flat(_less_forward, out.size, stream, x, y, constant(layout), out)


@cuda.jit
def _less_equal_forward(x, y, layout, out):
    """out[i] = x[i] <= y[i]."""
    i = cuda.grid(1)
    if i < out.size:
        a, b = _pair(x, y, layout, i)
        out[i] = scalar.less_equal(a, b)


def less_equal_forward(x, y, layout, out, stream):
    """Start a thread per element."""
    _launch_flat(_less_equal_forward, out.size, stream, x, y, constant(layout), out)


@cuda.jit
def _greater_forward(x, y, layout, out):
    """out[i] = x[i] > y[i]."""
    i = cuda.grid(1)
    if i < out.size:
        a, b = _pair(x, y, layout, i)
        out[i] = scalar.greater(a, b)


def greater_forward(x, y, layout, out, stream):
    """Start a thread per element."""
    _launch_flat(_greater_forward, out.size, stream, x, y, constant(layout), out)


@cuda.jit
def _greater_equal_forward(x, y, layout, out):
    """out[i] = x[i] >= y[i]."""
    i = cuda.grid(1)
    if i < out.size:
        a, b = _pair(x, y, layout, i)
        out[i] = scalar.greater_equal(a, b)


def greater_equal_forward(x, y, layout, out, stream):
    """Start a thread per element."""
    _launch_flat(_greater_equal_forward, out.size, stream, x, y, constant(layout), out)


@cuda.jit
def _logical_and_forward(x, y, layout, out):
    """out[i] = x[i] and y[i]."""
    i = cuda.grid(1)
    if i < out.size:
        a, b = _pair(x, y, layout, i)
        out[i] = scalar.logical_and(a, b)


def logical_and_forward(x, y, layout, out, stream):
    """Start a thread per element."""
    _launch_flat(_logical_and_forward, out.size, stream, x, y, constant(layout), out)


@cuda.jit
def _logical_or_forward(x, y, layout, out):
    """out[i] = x[i] or y[i]."""
    i = cuda.grid(1)
    if i < out.size:
        a, b = _pair(x, y, layout, i)
        out[i] = scalar.logical_or(a, b)


def logical_or_forward(x, y, layout, out, stream):
    """Start a thread per element."""
    _launch_flat(_logical_or_forward, out.size, stream, x, y, constant(layout), out)


@cuda.jit
def _logical_xor_forward(x, y, layout, out):
    """out[i] = x[i] != y[i]."""
    i = cuda.grid(1)
    if i < out.size:
        a, b = _pair(x, y, layout, i)
        out[i] = scalar.logical_xor(a, b)


def logical_xor_forward(x, y, layout, out, stream):
    """Start a thread per element."""
    _launch_flat(_logical_xor_forward, out.size, stream, x, y, constant(layout), out)


@cuda.jit
def _logical_not_forward(x, out):
    """out[i] = not x[i]."""
    i = cuda.grid(1)
    if i < out.size:
        out[i] = scalar.logical_not(x[i])


def logical_not_forward(x, out, stream):
    """Start a thread per element."""
    _launch_flat(_logical_not_forward, out.size, stream, x, out)


@cuda.jit
def _where_forward(condition, x, y, layout, out):
    """out[i] = x[i] if condition[i] else y[i]."""
    i = cuda.grid(1)
    if i < out.size:
        if condition[_offset(i, layout, 1)]:
            out[i] = x[_offset(i, layout, 2)]
        else:
            out[i] = y[_offset(i, layout, 3)]


def where_forward(condition, x, y, layout, out, stream):
    """Start a thread per element."""
    _launch_flat(_where_forward, out.size, stream, condition, x, y, constant(layout), out)


@cuda.jit
def _broadcast_to_forward(x, layout, out):
    """out[i] = x[i], repeated along the dimensions where x has stride 0."""
    i = cuda.grid(1)
    if i < out.size:
        out[i] = x[_offset(i, layout, 1)]


def broadcast_to_forward(x, layout, out, stream):
    """Start a thread per element."""
    _launch_flat(_broadcast_to_forward, out.size, stream, x, constant(layout), out)


@cuda.jit
def _cast_forward(x, out):
    """out[i] = x[i] in out's dtype; floats become integers by dropping their fraction."""
    i = cuda.grid(1)
    if i < out.size:
        out[i] = out.dtype.type(x[i])


def cast_forward(x, out, stream):
    """Start a thread per element."""
    _launch_flat(_cast_forward, out.size, stream, x, out)


@cuda.jit
def _copy_forward(x, out):
    """out[i] = x[i]."""
    i = cuda.grid(1)
    if i < out.size:
        out[i] = x[i]


def copy_forward(x, out, stream):
    """Start a thread per element."""
    _launch_flat(_copy_forward, out.size, stream, x, out)


@cuda.jit
def _negative_forward(x, out):
    """out[i] = -x[i]."""
    i = cuda.grid(1)
    if i < out.size:
        out[i] = scalar.negative(x[i])


def negative_forward(x, out, stream):
    """Start a thread per element."""
    _launch_flat(_negative_forward, out.size, stream, x, out)


@cuda.jit
def _abs_forward(x, out):
    """out[i] = |x[i]|."""
    i = cuda.grid(1)
    if i < out.size:
        out[i] = scalar.absolute(x[i])


def abs_forward(x, out, stream):
    """Start a thread per element."""
    _launch_flat(_abs_forward, out.size, stream, x, out)


@cuda.jit
def _exp_forward(x, out):
    """out[i] = exp(x[i])."""
    i = cuda.grid(1)
    if i < out.size:
        out[i] = scalar.exponential(x[i])


def exp_forward(x, out, stream):
    """Start a thread per element."""
    _launch_flat(_exp_forward, out.size, stream, x, out)


@cuda.jit
def _log_forward(x, out):
    """out[i] = ln x[i]."""
    i = cuda.grid(1)
    if i < out.size:
        out[i] = scalar.logarithm(x[i])


def log_forward(x, out, stream):
    """Start a thread per element."""
    _launch_flat(_log_forward, out.size, stream, x, out)


@cuda.jit
def _sqrt_forward(x, out):
    """out[i] = sqrt(x[i])."""
    i = cuda.grid(1)
    if i < out.size:
        out[i] = scalar.square_root(x[i])


def sqrt_forward(x, out, stream):
    """Start a thread per element."""
    _launch_flat(_sqrt_forward, out.size, stream, x, out)


@cuda.jit
def _tanh_forward(x, out):
    """out[i] = tanh(x[i])."""
    i = cuda.grid(1)
    if i < out.size:
        out[i] = scalar.hyperbolic_tangent(x[i])


def tanh_forward(x, out, stream):
    """Start a thread per element."""
    _launch_flat(_tanh_forward, out.size, stream, x, out)


@cuda.jit
def _erf_forward(x, out):
    """out[i] = erf(x[i])."""
    i = cuda.grid(1)
    if i < out.size:
        out[i] = scalar.error_function(x[i])


def erf_forward(x, out, stream):
    """Start a thread per element."""
    _launch_flat(_erf_forward, out.size, stream, x, out)


@cuda.jit
def _sigmoid_forward(x, out):
    """out[i] = 1 / (1 + exp(-x[i]))."""
    i = cuda.grid(1)
    if i < out.size:
        out[i] = scalar.sigmoid(x[i])


def sigmoid_forward(x, out, stream):
    """Start a thread per element."""
    _launch_flat(_sigmoid_forward, out.size, stream, x, out)


@cuda.jit
def _tanh_backward(x, grad_out, out):
    """out[i] = grad_out[i] (1 - x[i]^2), where x is what tanh gave."""
    i = cuda.grid(1)
    if i < out.size:
        out[i] = scalar.tanh_backward(x[i], grad_out[i])


def tanh_backward(x, grad_out, out, stream):
    """Start a thread per element."""
    _launch_flat(_tanh_backward, out.size, stream, x, grad_out, out)


@cuda.jit
def _sigmoid_backward(x, grad_out, out):
    """out[i] = grad_out[i] x[i] (1 - x[i]), where x is what the sigmoid gave."""
    i = cuda.grid(1)
    if i < out.size:
        out[i] = scalar.sigmoid_backward(x[i], grad_out[i])


def sigmoid_backward(x, grad_out, out, stream):
    """Start a thread per element."""
    _launch_flat(_sigmoid_backward, out.size, stream, x, grad_out, out)


@cuda.jit
def _relu_forward(x, out):
    """out[i] = max(x[i], 0)."""
    i = cuda.grid(1)
    if i < out.size:
        out[i] = scalar.relu(x[i])


def relu_forward(x, out, stream):
    """Start a thread per element."""
    _launch_flat(_relu_forward, out.size, stream, x, out)


@cuda.jit
def _relu_backward(x, grad_out, out):
    """out[i] = grad_out[i] if x[i] > 0 else 0; x may be what relu gave, too."""
    i = cuda.grid(1)
    if i < out.size:
        out[i] = scalar.relu_backward(x[i], grad_out[i])


def relu_backward(x, grad_out, out, stream):
    """Start a thread per element."""
    _launch_flat(_relu_backward, out.size, stream, x, grad_out, out)


@cuda.jit
def _leaky_relu_forward(x, slope, out):
    """out[i] = x[i] if x[i] > 0 else slope x[i]."""
    i = cuda.grid(1)
    if i < out.size:
        out[i] = scalar.leaky_relu(x[i], slope)


def leaky_relu_forward(x, slope, out, stream):
    """Start a thread per element."""
    _launch_flat(_leaky_relu_forward, out.size, stream, x, slope, out)


@cuda.jit
def _leaky_relu_backward(x, grad_out, slope, out):
    """out[i] = grad_out[i] if x[i] > 0 else slope grad_out[i]."""
    i = cuda.grid(1)
    if i < out.size:
        out[i] = scalar.leaky_relu_backward(x[i], grad_out[i], slope)


def leaky_relu_backward(x, grad_out, slope, out, stream):
    """Start a thread per element."""
    _launch_flat(_leaky_relu_backward, out.size, stream, x, grad_out, slope, out)


@cuda.jit
def _gelu_forward(x, out):
    """out[i] = x[i] Phi(x[i]), Phi the normal distribution function."""
    i = cuda.grid(1)
    if i < out.size:
        out[i] = scalar.gelu(x[i])


def gelu_forward(x, out, stream):
    """Start a thread per element."""
    _launch_flat(_gelu_forward, out.size, stream, x, out)


@cuda.jit
def _gelu_backward(x, grad_out, out):
    """out[i] = grad_out[i] (Phi(x[i]) + x[i] phi(x[i])), phi the normal density."""
    i = cuda.grid(1)
    if i < out.size:
        out[i] = scalar.gelu_backward(x[i], grad_out[i])


def gelu_backward(x, grad_out, out, stream):
    """Start a thread per element."""
    _launch_flat(_gelu_backward, out.size, stream, x, grad_out, out)


# ================================================================= reduction
#
# Every reduction sees x as (outer, reduce, inner): the reduced axes lie together in the middle.

CHAIN = 64  # longest chain of additions: in float32 a longer one would lose small addends
WARPS = BLOCK // LANES  # in a block
LONG_ROW = 32 * LANES  # longer ones are shared by a block of threads, shorter ones by a warp


def _width(columns):
    """Return how many columns a block of a sum owns: a power of two, at most a warp."""
    width = 1
    while width < columns and width < min(LANES, BLOCK):
        width *= 2
    return width


def _team(reduce, inner):
    """Return how many threads share a reduction: a power of two up to a warp, or else a block.

    Where elements of a row are not neighbours (inner > 1), those of neighbouring rows are: then
    each thread has a row of its own.
    """
    if inner > 1:
        return 1
    if reduce > LONG_ROW:
        return BLOCK
    team = 1
    while team < min(reduce, LANES):
        team *= 2
    return team


@device
def _row(reduce, inner, team, size):
    """Return where this thread starts in its row, where the row stops, and the step between.

    A row is what lies along r for one (o, i). A thread without a row has one of no elements.
    """
    j, lane = divmod(cuda.grid(1), team)
    start = j // inner * reduce * inner + j % inner
    stop = start + reduce * inner if start < size else start
    return start + lane * inner, stop, team * inner


@device
def _sum_over_lanes(value, team):
    """Return, to all threads of a team of at most a warp, the sum of their values.

    Pairs are added, then pairs of pairs, and so on: all threads get the same bits.
    """
    step = 1
    while step < team:
        value += shuffle_xor(value, step)
        step *= 2
    return value


@device
def _add_up(partial, total, width):
    """Return, to each of the first `width` threads, the sum of `total` over every width-th thread.

    `partial` is shared memory, one number per thread: the totals are added as a tree.
    """
    thread = cuda.threadIdx.x
    partial[thread] = total
    cuda.syncthreads()
    half = BLOCK // 2
    while half >= width:
        if thread < half:
            partial[thread] += partial[thread + half]
        cuda.syncthreads()
        half //= 2
    return partial[thread]


@cuda.jit
def _sum_forward(x, reduce, inner, scale, pieces, width, out):
    """out[p, o, i] = scale sum_r x[o, r, i] over the rows r of piece p.

    A block owns `width` neighbouring outputs of one p and o: `width` threads side by side read
    neighbouring elements of a row, and the block's rows of threads share the additions.
    """
    partial = cuda.shared.array(BLOCK, x.dtype)
    thread, rows = cuda.threadIdx.x, BLOCK // width
    blocks = (inner + width - 1) // width
    piece_o, strip = divmod(cuda.blockIdx.x, blocks)
    p, o = divmod(piece_o, out.size // (inner * pieces))
    i = strip * width + thread % width
    first, last = p * reduce // pieces, (p + 1) * reduce // pieces
    total = x.dtype.type(0)
    if i < inner:
        for start in range(first + thread // width, last, rows * CHAIN):
            chain = x.dtype.type(0)
            for r in range(start, min(start + rows * CHAIN, last), rows):
                chain += x[(o * reduce + r) * inner + i]
            total += chain
    total = _add_up(partial, total, width)
    if thread < width and i < inner:
        out[piece_o * inner + i] = scale * total


@cuda.jit
def _sum_rows(x, reduce, inner, team, scale, out):
    """out[o, i] = scale sum_r x[o, r, i], where a team of threads, at most a warp, shares a row."""
    start, stop, step = _row(reduce, inner, team, x.size)
    total = x.dtype.type(0)
    for at in range(start, stop, step):
        total += x[at]
    total = _sum_over_lanes(total, team)
    j, lane = divmod(cuda.grid(1), team)
    if lane == 0 and j < out.size:
        out[j] = scale * total


def _launch_sum(x, reduce, inner, scale, pieces, out, stream):
    """Start a team per row where rows are short; else blocks that share them."""
    team = _team(reduce, inner)
    if pieces == 1 and (team <= LANES if inner == 1 else reduce <= CHAIN):
        _launch_flat(_sum_rows, out.size * team, stream, x, reduce, inner, team, scale, out)
        return
    width = _width(inner)
    grid = out.size // max(inner, 1) * -(-inner // width)
    launch(_sum_forward, grid, BLOCK, stream, x, reduce, inner, scale, pieces, width, out)


def sum_forward(x, reduce, inner, scale, out, parts, stream):
    """Start what adds up, and if there are pieces, what adds these up."""
    pieces = parts.size // max(out.size, 1)
    if pieces > 1:
        _launch_sum(x, reduce, inner, x.dtype.type(1), pieces, parts, stream)
        x, reduce, inner = parts, pieces, out.size
    _launch_sum(x, reduce, inner, scale, 1, out, stream)


@cuda.jit
def _sum_backward(grad_out, reduce, inner, scale, out):
    """out[o, r, i] = scale grad_out[o, i]."""
    j = cuda.grid(1)
    if j < out.size:
        out[j] = scale * grad_out[j // (reduce * inner) * inner + j % inner]


def sum_backward(grad_out, reduce, inner, scale, out, stream):
    """Start a thread per element."""
    _launch_flat(_sum_backward, out.size, stream, grad_out, reduce, inner, scale, out)


@cuda.jit
def _max_forward(x, reduce, inner, out, index):
    """out[o, i] = max_r x[o, r, i] and the first r that attains it; the first NaN wins."""
    j = cuda.grid(1)
    if j < out.size:
        start = j // inner * reduce * inner + j % inner
        best, where = x[start], 0
        for r in range(1, reduce):
            value = x[start + r * inner]
            if value > best or (value != value and best == best):
                best, where = value, r
        out[j] = best
        index[j] = where


def max_forward(x, reduce, inner, out, index, stream):
    """Start a thread per output."""
    _launch_flat(_max_forward, out.size, stream, x, reduce, inner, out, index)


@cuda.jit
def _min_forward(x, reduce, inner, out, index):
    """out[o, i] = min_r x[o, r, i] and the first r that attains it; the first NaN wins."""
    j = cuda.grid(1)
    if j < out.size:
        start = j // inner * reduce * inner + j % inner
        best, where = x[start], 0
        for r in range(1, reduce):
            value = x[start + r * inner]
            if value < best or (value != value and best == best):
                best, where = value, r
        out[j] = best
        index[j] = where


def min_forward(x, reduce, inner, out, index, stream):
    """Start a thread per output."""
    _launch_flat(_min_forward, out.size, stream, x, reduce, inner, out, index)


@cuda.jit
def _pick_forward(x, index, reduce, inner, out):
    """out[o, i] = x[o, index[o, i], i]: what a maximum found."""
    j = cuda.grid(1)
    if j < out.size:
        o, i = j // inner, j % inner
        out[j] = x[(o * reduce + index[j]) * inner + i]


def pick_forward(x, index, reduce, inner, out, stream):
    """Start a thread per output."""
    _launch_flat(_pick_forward, out.size, stream, x, index, reduce, inner, out)


@cuda.jit
def _place_forward(x, index, reduce, inner, out):
    """out[o, r, i] = x[o, i] if r == index[o, i] else 0: the gradient of `pick`."""
    j = cuda.grid(1)
    if j < out.size:
        o, r, i = j // inner // reduce, j // inner % reduce, j % inner
        hit = index[o * inner + i] == r
        out[j] = x[o * inner + i] if hit else x.dtype.type(0)


def place_forward(x, index, reduce, inner, out, stream):
    """Start a thread per output."""
    _launch_flat(_place_forward, out.size, stream, x, index, reduce, inner, out)


# ============================================================ matrix product
#
# A block of threads owns a tile of the result and keeps it in registers, 8 x 8 or 4 x 4 of it in
# each thread. The block walks along the sum in steps: tile_a[k, i] and tile_b[k, j] hold a step of
# both operands in shared memory, k outermost whichever way they lie in global memory. There is room
# for two steps: while one is multiplied, the next is on its way. Behind the one barrier of a step
# its numbers have come, and nobody reads what is now overwritten.
#
# Why 8 x 8: for each k a thread reads 16 numbers, in four loads of 16 bytes, and multiplies 64
# times. The 32 threads of a warp lie 4 x 8: together, a load of a reads 64 bytes and a load of b
# 128, side by side, so that each is one wavefront without bank conflicts. That is 4 wavefronts for
# 64 FFMA of a warp; a multiprocessor does one wavefront and four FFMA a clock, so 16 clocks of
# shared memory go with 64 of arithmetic, or 32 if the halves of a warp are served one by one. 4 x 4
# reads twice as much: it is for results so small that large tiles would leave multiprocessors idle.


class Tile(NamedTuple):
    """What a block of threads computes at a time."""

    rows: int
    columns: int
    depth: int  # of a step along the sum
    thread_rows: int  # that a thread owns: 4, or 8 in two groups of 4
    thread_columns: int

    @property
    def threads(self):
        """How many threads a block has."""
        return self.rows // self.thread_rows * (self.columns // self.thread_columns)


# Convolutions also keep track of pixels and taps: a large tile would leave too few registers.
if SIMULATOR:
    LARGE, MIDDLE = Tile(16, 16, 4, 8, 8), Tile(16, 8, 4, 8, 4)
    SMALL, NARROW = Tile(8, 8, 4, 4, 4), Tile(16, 4, 4, 4, 4)
else:
    LARGE, MIDDLE = Tile(128, 128, 8, 8, 8), Tile(128, 64, 8, 8, 4)
    SMALL, NARROW = Tile(64, 64, 8, 4, 4), Tile(128, 32, 8, 4, 4)
MULTIPROCESSORS = 2 if SIMULATOR else 132  # of an H100
PADDING = 4  # columns more than a tile has: else copies that turn it would fall on few banks


def _tile_for(rows, columns, count, dtype, largest=LARGE):
    """Choose the tile for `count` results of rows x columns.

    Narrow results have a tile of their own. Else the largest tile, if it gives every multiprocessor
    a block; in float64 it would need twice the registers there are.
    """
    if columns <= NARROW.columns:
        return NARROW
    blocks = -(-rows // largest.rows) * -(-columns // largest.columns) * count
    return largest if blocks >= MULTIPROCESSORS and dtype.itemsize == 4 else SMALL


def _tile_functions(tile, kind_a, kind_b):
    """Return what the threads of a block do with a tile: find their place, copy, multiply, store.

    Sizes are constants of the functions: loops over them unroll, and `acc` stays in registers.
    """
    rows, columns, depth, thread_rows, thread_columns = tile
    threads = tile.threads
    half_rows, half_columns = rows // 2, columns // 2
    pitch_a, pitch_b = rows + PADDING, columns + PADDING
    across = columns // thread_columns  # threads side by side
    lanes = min(across, 8)  # of them in a warp, which is lanes wide and 4 high
    warps = across // lanes

    @device
    def tile_of_block(height, width):
        """Return the first row and column of this block's tile, and the number of its matrix.

        Matrices have height x width elements.
        """
        high, wide = (height + rows - 1) // rows, (width + columns - 1) // columns  # in tiles
        block = cuda.blockIdx.x
        return block // wide % high * rows, block % wide * columns, block // (wide * high)

    @device
    def place():
        """Return the first row and column of this thread in the tile."""
        t = cuda.threadIdx.x
        lane, warp = t % (4 * lanes), t // (4 * lanes)
        row = warp // warps * 4 + lane // lanes
        return row * 4, (warp % warps * lanes + lane % lanes) * 4

    @device
    def clear(acc):
        for i in range(thread_rows):
            for j in range(thread_columns):
                acc[i, j] = 0

    @device
    def multiply_once(tile_a, first_a, tile_b, first_b, acc):
        """acc[i, j] += tile_a[i] tile_b[j], for this thread's i and j."""
        a = cuda.local.array(thread_rows, tile_a.dtype)
        b = cuda.local.array(thread_columns, tile_b.dtype)
        for h in range(thread_rows // 4):
            at = first_a + h * half_rows
            a[4 * h], a[4 * h + 1], a[4 * h + 2], a[4 * h + 3] = load4(tile_a, at)
        for h in range(thread_columns // 4):
            at = first_b + h * half_columns
            b[4 * h], b[4 * h + 1], b[4 * h + 2], b[4 * h + 3] = load4(tile_b, at)
        for i in range(thread_rows):
            for j in range(thread_columns):
                acc[i, j] = fma(a[i], b[j], acc[i, j])

    @device
    def multiply(tile_a, first_a, tile_b, first_b, acc):
        """acc[i, j] += sum_k tile_a[k, i] tile_b[k, j]."""
        for k in range(0, depth, 2):  # two by hand: the compiler unrolls no body of 64 FFMA
            a, b = first_a + k * pitch_a, first_b + k * pitch_b
            multiply_once(tile_a, a, tile_b, b, acc)
            multiply_once(tile_a, a + pitch_a, tile_b, b + pitch_b, acc)

    @device
    def finished(value, relu):
        return scalar.relu(value) if relu else value

    @device
    def store(
        acc, i, j, bias, has_bias, first_bias, relu, out, first, step, count_i, count_j, is_wide
    ):  # fmt: skip
        """out[first + i step + j] = acc[i, j] + bias[j], or max(that, 0), for i < count_i and
        j < count_j.
        """
        i, j = np.int32(i), np.int32(j)
        for q in range(thread_columns):
            column = np.int32(j + q % 4 + q // 4 * half_columns)
            if has_bias and column < count_j:
                shift = bias[np.uint64(first_bias + column)]
                for p in range(thread_rows):
                    acc[p, q] += shift
        for p in range(thread_rows):
            row = np.int32(i + p % 4 + p // 4 * half_rows)
            if row < count_i:
                at = first + row * step + j
                for h in range(thread_columns // 4):
                    column = np.int32(j + h * half_columns)
                    if is_wide:
                        if column < count_j:
                            four = (
                                finished(acc[p, 4 * h], relu),
                                finished(acc[p, 4 * h + 1], relu),
                                finished(acc[p, 4 * h + 2], relu),
                                finished(acc[p, 4 * h + 3], relu),
                            )
                            store4(out, at + h * half_columns, four)
                    else:
                        for q in range(4):
                            if column + q < count_j:
                                value = finished(acc[p, 4 * h + q], relu)
                                out[np.uint64(at + h * half_columns + q)] = value

    copy_a = _copying(kind_a, rows, depth, pitch_a, threads)
    copy_b = _copying(kind_b, columns, depth, pitch_b, threads)
    return tile_of_block, place, clear, copy_a, copy_b, multiply, store


ALONG, ACROSS, WIDE = range(3)  # how an operand lies: see _copying


def _copying(kind, extent, depth, pitch, threads):
    """Return the function that starts to copy a step of a matrix to shared memory.

    Neighbours in global memory are neighbours along the sum (ALONG), or rows of a or columns of b
    (ACROSS), of which four at a time are copied if all is aligned (WIDE). Threads side by side copy
    neighbours.
    """
    each = -(-extent * depth // threads)

    @device
    def copy_along(tile, to, source, first, step, count, rest):
        """tile[to + k pitch + i] = source[first + i step + k], or 0 from i = count, k = rest on."""
        t = np.int32(cuda.threadIdx.x)
        i, k = np.int32(t // depth), np.int32(t % depth)
        for e in range(each):
            row = np.int32(i + e * (threads // depth))
            if row < extent:
                inside = 1 if row < count and k < rest else 0
                copy_async(tile, to + k * pitch + row, source, first + row * step + k, inside)

    @device
    def copy_across(tile, to, source, first, step, count, rest):
        """tile[to + k pitch + i] = source[first + i + k step], or 0 from i = count, k = rest on."""
        t = np.int32(cuda.threadIdx.x)
        for e in range(each):
            i, k = np.int32((t + e * threads) % extent), np.int32((t + e * threads) // extent)
            if k < depth:
                inside = 1 if i < count and k < rest else 0
                copy_async(tile, to + k * pitch + i, source, first + k * step + i, inside)

    groups = extent // 4

    @device
    def copy_wide(tile, to, source, first, step, count, rest):
        """tile[to + k pitch + i] = source[first + i + k step], or 0 from i = count, k = rest on."""
        t = np.int32(cuda.threadIdx.x)
        for e in range(-(-groups * depth // threads)):
            i = np.int32((t + e * threads) % groups * 4)
            k = np.int32((t + e * threads) // groups)
            if k < depth:
                inside = max(0, min(4, count - i)) if k < rest else 0
                copy4_async(tile, to + k * pitch + i, source, first + k * step + i, inside)

    return (copy_along, copy_across, copy_wide)[kind]


@cache
def _matmul_forward(tile, kind_a, kind_b):
    """Return the kernel for a tile and two kinds of operands."""
    rows, columns, depth, thread_rows, thread_columns = tile
    step_a, step_b = depth * (rows + PADDING), depth * (columns + PADDING)
    size_a, size_b = 2 * step_a, 2 * step_b
    functions = _tile_functions(tile, kind_a, kind_b)
    tile_of_block, place, clear, copy_a, copy_b, multiply, store = functions

    @cuda.jit(**TWO_BLOCKS)
    def _matmul_forward(
        a, b, bias, relu, n, k, width_a, first, m, left, width, pieces, is_wide, out
    ):  # fmt: skip
        """out[w, i, j] = bias[j] + sum_p a[w, i, p] b[w, p, j], each matrix as it is or transposed.

        A block owns a tile of out. With several pieces it sums over one of these parts of p, and
        `out` holds (pieces, w, i, j). Of the n columns, `left` to left + width are written.
        """
        tile_a = cuda.shared.array(size_a, a.dtype, alignment=ALIGNMENT)
        tile_b = cuda.shared.array(size_b, a.dtype, alignment=ALIGNMENT)
        acc = cuda.local.array((thread_rows, thread_columns), a.dtype)
        i, j = place()
        top, side, matrix = tile_of_block(m, width)
        batch = out.size // (m * n) // pieces
        which, piece = matrix % batch, matrix // batch
        steps = (k + depth - 1) // depth
        step, last = piece * steps // pieces, (piece + 1) * steps // pieces
        width_b = k if kind_b == ALONG else n
        next_a = depth if kind_a == ALONG else depth * width_a
        next_b = depth if kind_b == ALONG else depth * width_b
        at_a = step * next_a + ((first + top) * width_a if kind_a == ALONG else first + top)
        at_b = step * next_b + ((left + side) * width_b if kind_b == ALONG else left + side)
        if a.size > m * k:
            at_a += which * m * k
        if b.size > k * n:
            at_b += which * k * n
        count_i, count_j = np.int32(m - top), np.int32(width - side)
        clear(acc)
        rest = np.int32(k - step * depth)  # of the sum, when the next step is copied
        half = np.int32(0)
        for now in range(np.int32(step - 1), np.int32(last)):
            wait_for_copies(0)
            cuda.syncthreads()
            if now + 1 < last:
                copy_a(tile_a, half * step_a, a, at_a, width_a, count_i, rest)
                copy_b(tile_b, half * step_b, b, at_b, width_b, count_j, rest)
                commit_copies()
                at_a += next_a
                at_b += next_b
                rest = np.int32(rest - depth)
            half = np.int32(1 - half)
            if now >= step:
                multiply(tile_a, half * step_a + i, tile_b, half * step_b + j, acc)
        at = (matrix * m + top) * n + left + side
        has_bias = bias.size > 0 and pieces == 1
        store(acc, i, j, bias, has_bias, left + side, relu, out, at, n, count_i, count_j, is_wide)

    return _matmul_forward


@cuda.jit
def _add_pieces(parts, bias, has_bias, relu, out):
    """out[i] = bias[i mod bias.size] + sum_p parts[p, i], in the order of the pieces.

    With `relu`, max(that, 0).
    """
    i = cuda.grid(1)
    if i < out.size:
        total = parts[i]
        for at in range(out.size + i, parts.size, out.size):
            total += parts[at]
        if has_bias:
            total += bias[i % bias.size]
        out[i] = scalar.relu(total) if relu else total


def matmul_forward(
    a, b, bias, transpose_a, transpose_b, relu, n, k, width_a, first, m, left, columns, out,
    parts, stream,
):  # fmt: skip
    """Start a block of threads per tile of `out`, or with room for parts, of each part."""
    if not out.size:
        return
    pieces = max(parts.size // out.size, 1)
    count = out.size // (m * n) * pieces
    tile = _tile_for(m, columns, count, out.dtype)
    blocks = -(-m // tile.rows) * -(-columns // tile.columns) * count
    # What is copied or stored four at a time: with the rows' width, all rows are aligned.
    wide_a, wide_b = (width_a | first) % 4 == 0, (n | left) % 4 == 0
    kind_a = (WIDE if wide_a and is_aligned(a) else ACROSS) if transpose_a else ALONG
    kind_b = ALONG if transpose_b else WIDE if wide_b and is_aligned(b) else ACROSS
    kernel = _matmul_forward(tile, kind_a, kind_b)
    target = out if pieces == 1 else parts
    is_wide = wide_b and columns % 4 == 0 and is_aligned(target)
    shape = n, k, width_a, first, m, left, columns, pieces, is_wide
    args = a, b, bias, relu and pieces == 1, *shape, target
    launch(kernel, blocks, tile.threads, stream, *args)
    if pieces > 1:
        _launch_flat(_add_pieces, out.size, stream, parts, bias, bias.size > 0, relu, out)


# =================================================================== shaping


@cuda.jit
def _permute_dims_forward(x, layout, first, out):
    """out[i0, i1, ...] = x at the permuted indices, for out's rows from number `first` on.

    `layout` holds out's shape, then for each of its axes the stride along it in x.
    """
    i = cuda.grid(1)
    if i < out.size:
        width = layout[0, layout.shape[1] - 1]
        out[i] = x[_offset(first * width + i, layout, 1)]


def permute_dims_forward(x, layout, first, out, stream):
    """Start a thread per element."""
    _launch_flat(_permute_dims_forward, out.size, stream, x, constant(layout), first, out)


@cuda.jit
def _slice_forward(x, layout, start, first, out):
    """out[i0, i1, ...] = x[start0 + i0 step0, start1 + i1 step1, ...]."""
    i = cuda.grid(1)
    if i < out.size:
        out[i] = x[start + _offset(first * layout[0, layout.shape[1] - 1] + i, layout, 1)]


def slice_forward(x, layout, start, first, out, stream):
    """Start a thread per element."""
    _launch_flat(_slice_forward, out.size, stream, x, constant(layout), start, first, out)


@device
def _place_in_slice(index, layout):
    """Return where in value the element number `index` of out comes from, or -1."""
    source = 0
    for axis in range(layout.shape[1] - 1, -1, -1):
        moved = index % layout[0, axis] - layout[1, axis]
        k = moved // layout[2, axis]
        if k * layout[2, axis] != moved or k < 0 or k >= layout[3, axis]:
            return -1
        source += k * layout[4, axis]
        index //= layout[0, axis]
    return source


@cuda.jit
def _set_slice_forward(x, value, layout, first, out):
    """out[i0, ...] = value[k0, ...] if i = start + k step along every axis, else x[i0, ...]."""
    i = cuda.grid(1)
    if i < out.size:
        source = _place_in_slice(first * layout[0, layout.shape[1] - 1] + i, layout)
        if source >= 0:
            out[i] = value[source]
        else:
            out[i] = x[i if x.size > 1 else 0]


def set_slice_forward(x, value, layout, first, out, stream):
    """Start a thread per element."""
    _launch_flat(_set_slice_forward, out.size, stream, x, value, constant(layout), first, out)


@cuda.jit
def _concat_forward(x, y, width_x, width_y, out):
    """out[o, i] = x[o, i] for i < width_x, then y[o, i - width_x]."""
    n = cuda.grid(1)
    if n < out.size:
        o, i = divmod(n, width_x + width_y)
        if i < width_x:
            out[n] = x[o * width_x + i]
        else:
            out[n] = y[o * width_y + i - width_x]


def concat_forward(x, y, width_x, width_y, out, stream):
    """Start a thread per element."""
    _launch_flat(_concat_forward, out.size, stream, x, y, width_x, width_y, out)


# ================================================================== indexing
#
# An array is seen as (outer, rows, inner) and indexed along its rows. Index r < 0 means rows + r.
# One block looks whether every index is in range. The kernel proper passes over those that are
# not: kernels go on until the host hears of an error, and no second one should follow from it.


@cuda.jit
def _check_range(values, low, high, first, error):
    """error[0] = the least first + n with values[n] not in low, ..., high - 1; else NO_ERROR."""
    if cuda.threadIdx.x == 0:
        error[0] = NO_ERROR
    cuda.syncthreads()
    for n in range(cuda.threadIdx.x, values.size, cuda.blockDim.x):
        if values[n] < low or values[n] >= high:
            cuda.atomic.min(error, 0, first + n)


@cuda.jit
def _take_forward(x, indices, rows, inner, out):
    """out[o, n, i] = x[o, indices[n], i]."""
    at = cuda.grid(1)
    if at < out.size:
        outer_n, i = divmod(at, inner)
        o, n = divmod(outer_n, indices.size)
        row = indices[n] + (rows if indices[n] < 0 else 0)
        if 0 <= row < rows:
            out[at] = x[(o * rows + row) * inner + i]


def take_forward(x, indices, rows, inner, first, out, error, stream):
    """Start one block to check the indices, then a thread per element."""
    launch(_check_range, 1, BLOCK, stream, indices, -rows, rows, first, error)
    _launch_flat(_take_forward, out.size, stream, x, indices, rows, inner, out)


@cuda.jit
def _take_backward(grad_out, indices, rows, inner, first, count, out):
    """out[o, r, i] = the sum of grad_out[o, n, i] over the n with indices[n] == first + r.

    Each thread looks through all indices, so that a sum always runs in the same order.
    """
    at = cuda.grid(1)
    if at < out.size:
        outer_r, i = divmod(at, inner)
        o, r = divmod(outer_r, count)
        total = out.dtype.type(0)
        for n in range(indices.size):
            row = indices[n] + (rows if indices[n] < 0 else 0)
            if row == first + r:
                total += grad_out[(o * indices.size + n) * inner + i]
        out[at] = total


def take_backward(grad_out, indices, rows, inner, first, count, out, stream):
    """Start a thread per element."""
    _launch_flat(
        _take_backward, out.size, stream, grad_out, indices, rows, inner, first, count, out
    )


@cuda.jit
def _ravel_index_forward(high, low, rows, out):
    """out[n] = high[n] rows + low[n]: one index for a pair, with low counted from the front."""
    n = cuda.grid(1)
    if n < out.size:
        row = low[n] + (rows if low[n] < 0 else 0)
        out[n] = high[n] * rows + row if 0 <= row < rows else 0


def ravel_index_forward(high, low, rows, first, out, error, stream):
    """Start one block to check the indices, then a thread per pair."""
    launch(_check_range, 1, BLOCK, stream, low, -rows, rows, first, error)
    _launch_flat(_ravel_index_forward, out.size, stream, high, low, rows, out)


@cuda.jit
def _last_writer_forward(indices, rows, first, out):
    """out[r] = the last n with indices[n] == first + r, or -1 if there is none."""
    r = cuda.grid(1)
    if r < out.size:
        last = -1
        for n in range(indices.size):
            row = indices[n] + (rows if indices[n] < 0 else 0)
            if row == first + r:
                last = n
        out[r] = last


def last_writer_forward(indices, rows, first, out, error, stream):
    """Start one block to check the indices, then a thread per row."""
    launch(_check_range, 1, BLOCK, stream, indices, -rows, rows, 0, error)
    _launch_flat(_last_writer_forward, out.size, stream, indices, rows, first, out)


# ============================================================== optimisation
#
# One thread per element of a parameter: it reads and writes the element, its gradient and its
# moments. `lr` and `steps` hold one number each, read when the kernel runs. Outputs may be the
# inputs of the same name.


@cuda.jit
def _count_forward(steps, out):
    """out[i] = steps[i] + 1."""
    i = cuda.grid(1)
    if i < out.size:
        out[i] = steps[i] + 1


def count_forward(steps, out, stream):
    """Start a thread per element."""
    _launch_flat(_count_forward, out.size, stream, steps, out)


@cuda.jit
def _sgd_update(param, grad, lr, weight_decay, out):
    """g = grad + weight_decay param;  out = param - lr g."""
    i = cuda.grid(1)
    if i < out.size:
        p = param[i]
        g = grad[i] + weight_decay * p
        out[i] = p - param.dtype.type(lr[0]) * g


def sgd_update(param, grad, lr, weight_decay, out, stream):
    """Start a thread per element."""
    _launch_flat(_sgd_update, out.size, stream, param, grad, lr, weight_decay, out)


@cuda.jit
def _momentum_update(
    param, grad, velocity, lr, weight_decay, momentum, nesterov, out, new_velocity
):
    """out = param - lr v, or Nesterov's param - lr (g + momentum v).

    v = momentum velocity + g, with g = grad + weight_decay param. A tiny v becomes 0.
    """
    i = cuda.grid(1)
    if i < out.size:
        p = param[i]
        g = grad[i] + weight_decay * p
        v = scalar.settled(momentum * velocity[i] + g)
        new_velocity[i] = v
        step = g + momentum * v if nesterov else v
        out[i] = p - param.dtype.type(lr[0]) * step


def momentum_update(
    param, grad, velocity, lr, weight_decay, momentum, nesterov, out, new_velocity, stream
):
    """Start a thread per element."""
    args = param, grad, velocity, lr, weight_decay, momentum, nesterov, out, new_velocity
    _launch_flat(_momentum_update, out.size, stream, *args)


@cuda.jit
def _adam_update(
    param, grad, mean, square, lr, steps,
    rest1, rest2, log1, log2, eps, l2, decay,
    out, new_mean, new_square,
):  # fmt: skip
    """Adam (Kingma and Ba, 2015), with t = steps, rest = 1 - beta, log = ln(beta):

    g = grad + l2 param;  m = mean + rest1 (g - mean);  s = square + rest2 (g^2 - square)
    out = (1 - lr decay) param - lr m / (1 - beta1^t) / (sqrt(s / (1 - beta2^t)) + eps)
    Tiny m and s become 0.
    """
    i = cuda.grid(1)
    if i < out.size:
        number = param.dtype.type
        t = number(steps[0])
        rate = number(lr[0])
        p = param[i]
        g = grad[i] + l2 * p
        m = scalar.settled(mean[i] + rest1 * (g - mean[i]))
        s = scalar.settled(square[i] + rest2 * (g * g - square[i]))
        new_mean[i] = m
        new_square[i] = s
        m_hat = m / -expm1(t * log1)
        s_hat = s / -expm1(t * log2)
        out[i] = (number(1) - rate * decay) * p - rate * m_hat / (sqrt(s_hat) + eps)


def adam_update(
    param, grad, mean, square, lr, steps,
    rest1, rest2, log1, log2, eps, l2, decay,
    out, new_mean, new_square, stream,
):  # fmt: skip
    """Start a thread per element."""
    args = param, grad, mean, square, lr, steps, rest1, rest2, log1, log2, eps, l2, decay
    _launch_flat(_adam_update, out.size, stream, *args, out, new_mean, new_square)


# =============================================================== convolution
#
# Images are (n, h, w, c), weights (r, s, c, k). A convolution is a product of matrices: a row for
# each output pixel, a column for each output channel, a sum over the taps (r, s, c) of the filters.
# The kernels work in the tiles of the matrix product, but copy to them from where the pixels lie:
# the matrix of patches is never stored. Where a row's patch starts is kept in shared memory; the
# threads follow the taps by themselves, adding and carrying, since dividing takes long. Groups are
# products of their own. Groups of one channel are too narrow for tiles: there, one thread owns one
# element of the result and gathers all that goes into it.

OUTSIDE = 1 << 29  # a row or column of pixels that is in no image, and twice as much is not either


def _copying_patches(tile, is_spread):
    """Return the function that starts to copy a tap of each pixel of a tile to shared memory."""
    rows, _, depth, _, _ = tile
    threads, pitch = tile.threads, tile.rows + PADDING
    each = -(-rows * depth // threads)

    @device
    def copy(tile_a, to, image, row_at, row_h, row_w, h, w, c, extents, channels, spread, rest):
        """tile[to + k pitch + i] = image[row_h[i] + h, row_w[i] + w, c], 0 outside the image.

        The tap (h, w, c) is that of this thread's k. In a spread image there are zeros between
        pixels: they are `spread` apart.
        """
        t = np.int32(cuda.threadIdx.x)
        k = np.int32(t % depth)
        for e in range(each):
            i = np.uint32(t // depth + e * (threads // depth))
            if i < rows:
                y, x = np.int32(row_h[i] + h), np.int32(row_w[i] + w)
                inside = y >= 0 and x >= 0 and k < rest
                if is_spread:
                    inside = inside and y % spread[0] == 0 and x % spread[1] == 0
                    y, x = np.int32(y // spread[0]), np.int32(x // spread[1])
                inside = inside and y < extents[0] and x < extents[1]
                at = row_at[i] + np.int32(np.int32(y * np.int32(extents[1]) + x) * channels + c)
                copy_async(tile_a, to + k * pitch + i, image, at, 1 if inside else 0)

    return copy


@cache
def _convolution(tile, kind_b, is_spread):
    """Return the kernel that computes a tile at a time.

    A weight that lies ALONG the sum is turned: the sum runs over its last axis, and columns are
    channels of its third.
    """
    rows, columns, depth, thread_rows, thread_columns = tile
    threads = tile.threads
    step_a, step_b = depth * (rows + PADDING), depth * (columns + PADDING)
    size_a, size_b = 2 * step_a, 2 * step_b
    tile_of_block, place, clear, _, copy_b, multiply, store = _tile_functions(tile, ALONG, kind_b)
    copy_a = _copying_patches(tile, is_spread)

    @cuda.jit(**TWO_BLOCKS)
    def _convolution(
        image, weight, bias, relu, extents, window, scale, shift, dilation, spread,
        each, width, groups, places, pieces, is_wide, out,
    ):  # fmt: skip
        """out[p, k] = bias[k] + sum_{r,s,c} image[row(p) + r dilation, ..., c] weight[r, s, c, k].

        A block owns a tile of a group's pixels p and channels k. With several pieces it sums over
        one of these parts of the taps, and `out` holds (pieces, p, k). Of each group, a tap has
        `each` channels, and an output pixel `width`. Pixel h of `places` looks from h scale + shift
        on.
        """
        tile_a = cuda.shared.array(size_a, image.dtype, alignment=ALIGNMENT)
        tile_b = cuda.shared.array(size_b, image.dtype, alignment=ALIGNMENT)
        row_at = cuda.shared.array(rows, np.int64)
        row_h = cuda.shared.array(rows, np.int32)
        row_w = cuda.shared.array(rows, np.int32)
        acc = cuda.local.array((thread_rows, thread_columns), image.dtype)
        i, j = place()
        channels, out_channels = groups * each, groups * width
        pixels = out.size // (pieces * out_channels)
        top, side, matrix = tile_of_block(pixels, width)
        group, piece = matrix % groups, matrix // groups
        for row in range(cuda.threadIdx.x, rows, threads):
            pixel = top + row
            n = pixel // (places[0] * places[1])
            row_at[row] = n * extents[0] * extents[1] * channels + group * each
            row_h[row] = pixel // places[1] % places[0] * scale[0] + shift[0]
            row_w[row] = pixel % places[1] * scale[1] + shift[1]
            if pixel >= pixels:
                row_h[row] = -OUTSIDE
        clear(acc)
        taps = window[0] * window[1] * each
        steps = (taps + depth - 1) // depth
        step, last = piece * steps // pieces, (piece + 1) * steps // pieces
        k = cuda.threadIdx.x % depth
        tap = step * depth + k  # of this thread: r, s, c
        c, tap = np.int32(tap % max(each, 1)), tap // max(each, 1)
        r, s = np.int32(tap // window[1]), np.int32(tap % window[1])
        if kind_b == ALONG:
            row_b, first_b = groups * each, side * groups * each + group * each
        else:
            row_b, first_b = out_channels, group * width + side + step * depth * out_channels
        count_j = np.int32(width - side)
        rest = np.int32(taps - step * depth)
        half = np.int32(0)
        for now in range(np.int32(step - 1), np.int32(last)):
            wait_for_copies(0)
            cuda.syncthreads()
            if now + 1 < last:
                h, w = np.int32(r * dilation[0]), np.int32(s * dilation[1])
                to_a, to_b = half * step_a, half * step_b
                copy_a(
                    tile_a, to_a, image, row_at, row_h, row_w,
                    h, w, c, extents, channels, spread, rest,
                )  # fmt: skip
                at_b = first_b
                if kind_b == ALONG:
                    at_b += (r * window[1] + s) * width * row_b + c - k
                copy_b(tile_b, to_b, weight, at_b, row_b, count_j, rest)
                commit_copies()
                if kind_b != ALONG:
                    first_b += depth * row_b
                rest = np.int32(rest - depth)
                c = np.int32(c + depth)
                while c >= each:
                    c = np.int32(c - each)
                    s = np.int32(s + 1)
                    if s == window[1]:
                        s, r = np.int32(0), np.int32(r + 1)
            half = np.int32(1 - half)
            if now >= step:
                multiply(tile_a, half * step_a + i, tile_b, half * step_b + j, acc)
        first = (piece * pixels + top) * out_channels + group * width + side
        count_i = np.int32(min(pixels - top, rows))
        at, has_bias = group * width + side, bias.size > 0 and pieces == 1
        store(
            acc, i, j, bias, has_bias, at, relu,
            out, first, out_channels, count_i, count_j, is_wide,
        )  # fmt: skip

    return _convolution


def _convolve(image, weight, bias, relu, geometry, is_turned, groups, out, parts, stream):
    """Start a block of threads per tile of `out`, or with room for parts, of each part."""
    pieces = max(parts.size // out.size, 1)
    each, width = image.shape[3] // groups, out.shape[3] // groups
    pixels = out.size // out.shape[3]
    tile = _tile_for(pixels, width, groups * pieces, out.dtype, MIDDLE)
    blocks = -(-pixels // tile.rows) * -(-width // tile.columns) * groups * pieces
    target = out.reshape((out.size,)) if pieces == 1 else parts
    wide_b = width % 4 == 0 and is_aligned(weight)
    kernel = _convolution(
        tile, ALONG if is_turned else WIDE if wide_b else ACROSS, geometry[-1] != (1, 1)
    )
    args = image.reshape((image.size,)), weight.reshape((weight.size,))
    args += (bias, relu and pieces == 1, tuple(image.shape[1:3]), tuple(weight.shape[:2]))
    args += (*geometry, each, width, groups, tuple(out.shape[1:3]), pieces)
    is_wide = width % 4 == 0 and is_aligned(target)
    launch(kernel, blocks, tile.threads, stream, *args, is_wide, target)
    if pieces > 1:
        flat = out.reshape((out.size,))
        _launch_flat(_add_pieces, out.size, stream, parts, bias, bias.size > 0, relu, flat)


@cuda.jit
def _depthwise_forward(x, weight, bias, stride, padding, dilation, groups, relu, out):
    """out[n, h, w, k] = bias[k]
    + sum_{r,s,c} x[n, h stride + r dilation - padding, w ... + s ... - ..., c] weight[r, s, c, k].
    """
    _, rows, columns, _ = x.shape
    filter_height, filter_width, depth, _ = weight.shape
    _, height, width, out_channels = out.shape
    i = cuda.grid(1)
    if i < out.size:
        k = i % out_channels
        w = i // out_channels % width
        h = i // (out_channels * width) % height
        n = i // (out_channels * width * height)
        first = k // (out_channels // groups) * depth  # of the channels that k sees
        acc = x.dtype.type(0)
        for r in range(filter_height):
            row = h * stride[0] + r * dilation[0] - padding[0]
            if 0 <= row < rows:
                for s in range(filter_width):
                    column = w * stride[1] + s * dilation[1] - padding[1]
                    if 0 <= column < columns:
                        for c in range(depth):
                            acc += x[n, row, column, first + c] * weight[r, s, c, k]
        if bias.size > 0:
            acc += bias[k]
        out[n, h, w, k] = scalar.relu(acc) if relu else acc


def _conv2d_forward(tile, kind_b):
    """out[n, h, w, k] = bias[k]
    + sum_{r,s,c} x[n, h stride + r dilation - padding, w ... + s ... - ..., c] weight[r, s, c, k].
    """
    return _convolution(tile, kind_b, False)


def conv2d_forward(
    x, weight, bias, bank, stride, padding, dilation, groups, relu, out, parts, stream
):
    """Start a block per tile of pixels and channels; per output, in groups of one channel."""
    if not out.size:
        return
    if weight.shape[2] == 1 and groups > 1:
        args = x, weight, bias, stride, padding, dilation, groups, relu, out
        _launch_flat(_depthwise_forward, out.size, stream, *args)
        return
    geometry = stride, (-padding[0], -padding[1]), dilation, (1, 1)
    _convolve(x, weight, bias, relu, geometry, False, groups, out, parts, stream)


@cuda.jit
def _depthwise_backward_input(grad_out, weight, stride, padding, dilation, groups, grad_x):
    """grad_x[n, h, w, c] = sum of grad_out[n, i, j, k] weight[r, s, c, k] over all r, s, k where
    i stride + r dilation - padding = h, and likewise for j and w.
    """
    _, rows, columns, out_channels = grad_out.shape
    filter_height, filter_width, depth, _ = weight.shape
    _, height, width, channels = grad_x.shape
    p = cuda.grid(1)
    if p < grad_x.size:
        c = p % channels
        w = p // channels % width
        h = p // (channels * width) % height
        n = p // (channels * width * height)
        group = out_channels // groups
        first = c // depth * group  # of the output channels that see c
        acc = grad_x.dtype.type(0)
        for r in range(filter_height):
            i = h + padding[0] - r * dilation[0]
            if 0 <= i < rows * stride[0] and i % stride[0] == 0:
                for s in range(filter_width):
                    j = w + padding[1] - s * dilation[1]
                    if 0 <= j < columns * stride[1] and j % stride[1] == 0:
                        for k in range(first, first + group):
                            grad = grad_out[n, i // stride[0], j // stride[1], k]
                            acc += grad * weight[r, s, c % depth, k]
        grad_x[n, h, w, c] = acc


def _conv2d_backward_input(tile, is_spread):
    """grad_x[n, h, w, c] = sum of grad_out[n, i, j, k] weight[r, s, c, k] over all r, s, k where
    i stride + r dilation - padding = h, and likewise for j and w.
    """
    return _convolution(tile, ALONG, is_spread)


def conv2d_backward_input(
    grad_out, weight, bank, stride, padding, dilation, groups, grad_x, parts, stream
):
    """Start a block per tile of pixels and channels; per input, in groups of one channel.

    It is a convolution of grad_out, with zeros between pixels if there is a stride, and the taps
    run backwards.
    """
    if not grad_x.size:
        return
    if weight.shape[2] == 1 and groups > 1:
        args = grad_out, weight, stride, padding, dilation, groups, grad_x
        _launch_flat(_depthwise_backward_input, grad_x.size, stream, *args)
        return
    geometry = (1, 1), padding, (-dilation[0], -dilation[1]), stride
    _convolve(grad_out, weight, bank, False, geometry, True, groups, grad_x, parts, stream)


@cache
def _conv2d_backward_weight(tile, kind_b):
    """Return the kernel that computes a tile of taps and output channels at a time."""
    rows, columns, depth, thread_rows, thread_columns = tile
    threads, pitch = tile.threads, tile.rows + PADDING
    step_a, step_b = depth * (rows + PADDING), depth * (columns + PADDING)
    size_a, size_b = 2 * step_a, 2 * step_b
    size_pixels = 2 * depth
    tile_of_block, place, clear, _, copy_b, multiply, store = _tile_functions(tile, ACROSS, kind_b)

    @device
    def find_pixels(step, end, extents, channels, places, stride, padding, at, h, w):
        """Note where the pixels of a step look, in one of two halves of the tables."""
        k = cuda.threadIdx.x
        if k < depth:
            pixel = step * depth + k
            n = pixel // (places[0] * places[1])
            slot = step % 2 * depth + k
            y = pixel // places[1] % places[0] * stride[0] - padding[0]
            x = pixel % places[1] * stride[1] - padding[1]
            at[slot] = ((n * extents[0] + y) * extents[1] + x) * channels
            h[slot] = y if pixel < end else OUTSIDE
            w[slot] = x

    @device
    def copy_a(tile_a, to, x, tap_at, tap_h, tap_w, at, h, w, slot, extents):
        """tile[to + k pitch + i] = x at the pixel k of the step and the tap i, 0 outside."""
        t = np.int32(cuda.threadIdx.x)
        for e in range(-(-rows * depth // threads)):
            i, k = np.uint32((t + e * threads) % rows), np.uint32((t + e * threads) // rows)
            if k < depth:
                pixel = np.uint64(slot + k)
                y, z = np.int32(h[pixel] + tap_h[i]), np.int32(w[pixel] + tap_w[i])
                inside = 0 <= y < extents[0] and 0 <= z < extents[1]
                from_x = at[pixel] + tap_at[i]
                copy_async(tile_a, to + k * pitch + i, x, from_x, 1 if inside else 0)

    @cuda.jit(**TWO_BLOCKS)
    def _conv2d_backward_weight(
        x, grad_out, extents, window, places, stride, padding, dilation,
        each, width, groups, pixels, pieces, is_wide, out,
    ):  # fmt: skip
        """grad_weight[r, s, c, k]
        = sum_{n,h,w} x[n, h stride + r dilation - padding, w ..., c] grad_out[n, h, w, k].

        A block owns a tile of a group's (r, s, c) and k. With several pieces it sums over one of
        these parts of the pixels, and `out` holds (pieces, r, s, c, k).
        """
        tile_a = cuda.shared.array(size_a, x.dtype, alignment=ALIGNMENT)
        tile_b = cuda.shared.array(size_b, x.dtype, alignment=ALIGNMENT)
        tap_at = cuda.shared.array(rows, np.int64)
        tap_h = cuda.shared.array(rows, np.int32)
        tap_w = cuda.shared.array(rows, np.int32)
        at = cuda.shared.array(size_pixels, np.int64)
        h = cuda.shared.array(size_pixels, np.int32)
        w = cuda.shared.array(size_pixels, np.int32)
        acc = cuda.local.array((thread_rows, thread_columns), x.dtype)
        i, j = place()
        channels, out_channels = groups * each, groups * width
        taps = window[0] * window[1] * each
        top, side, matrix = tile_of_block(taps, width)
        group, piece = matrix % groups, matrix // groups
        for row in range(cuda.threadIdx.x, rows, threads):
            tap = top + row
            y = tap // (each * window[1]) * dilation[0]
            z = tap // each % window[1] * dilation[1]
            tap_at[row] = (y * extents[1] + z) * channels + group * each + tap % each
            tap_h[row] = y if tap < taps else OUTSIDE
            tap_w[row] = z
        clear(acc)
        steps = (pixels + depth - 1) // depth
        step, last = piece * steps // pieces, (piece + 1) * steps // pieces
        at_b = step * depth * out_channels + group * width + side
        count_j = np.int32(width - side)
        rest = np.int32(min(pixels - step * depth, OUTSIDE))
        half = np.int32(0)
        find_pixels(step, pixels, extents, channels, places, stride, padding, at, h, w)
        for now in range(np.int32(step - 1), np.int32(last)):
            wait_for_copies(0)
            cuda.syncthreads()
            if now + 1 < last:
                slot = (now + 1) % 2 * depth
                to_a, to_b = half * step_a, half * step_b
                copy_a(tile_a, to_a, x, tap_at, tap_h, tap_w, at, h, w, slot, extents)
                copy_b(tile_b, to_b, grad_out, at_b, out_channels, count_j, rest)
                commit_copies()
                # The other half of the tables was last read before the barrier.
                find_pixels(now + 2, pixels, extents, channels, places, stride, padding, at, h, w)
                at_b += depth * out_channels
                rest = np.int32(rest - depth)
            half = np.int32(1 - half)
            if now >= step:
                multiply(tile_a, half * step_a + i, tile_b, half * step_b + j, acc)
        first = (piece * taps + top) * out_channels + group * width + side
        count_i = np.int32(taps - top)
        store(acc, i, j, out, False, 0, False, out, first, out_channels, count_i, count_j, is_wide)

    return _conv2d_backward_weight


@cuda.jit
def _depthwise_backward_weight(
    x, grad_out, stride, padding, dilation, groups, pieces, grad_weight, out
):
    """grad_weight[r, s, c, k]
    = sum_{n,h,w} x[n, h stride + r dilation - padding, w ..., c] grad_out[n, h, w, k].

    `out` holds (pieces, r, s, c, k): each piece sums over one of these parts of the images.
    """
    images, rows, columns, _ = x.shape
    _, height, width, out_channels = grad_out.shape
    _, filter_width, depth, _ = grad_weight.shape
    place = cuda.grid(1)
    if place < out.size:
        i, piece = place % grad_weight.size, place // grad_weight.size
        k = i % out_channels
        c = i // out_channels % depth
        s = i // (out_channels * depth) % filter_width
        r = i // (out_channels * depth * filter_width)
        channel = k // (out_channels // groups) * depth + c
        acc = x.dtype.type(0)
        for n in range(piece * images // pieces, (piece + 1) * images // pieces):
            for h in range(height):
                row = h * stride[0] + r * dilation[0] - padding[0]
                if 0 <= row < rows:
                    for w in range(width):
                        column = w * stride[1] + s * dilation[1] - padding[1]
                        if 0 <= column < columns:
                            acc += x[n, row, column, channel] * grad_out[n, h, w, k]
        out[place] = acc


def conv2d_backward_weight(
    x, grad_out, stride, padding, dilation, groups, grad_weight, parts, stream
):
    """Start a block per tile of taps and channels; per weight, in groups of one channel."""
    if not grad_weight.size:
        return
    size = grad_weight.size
    pieces = max(parts.size // size, 1)
    flat = grad_weight.reshape((size,))
    target = flat if pieces == 1 else parts
    *window, each, out_channels = grad_weight.shape
    if each == 1 and groups > 1:
        args = x, grad_out, stride, padding, dilation, groups, pieces, grad_weight, target
        _launch_flat(_depthwise_backward_weight, target.size, stream, *args)
    else:
        width, taps = out_channels // groups, math.prod(window) * each
        pixels = math.prod(grad_out.shape[:3])
        tile = _tile_for(taps, width, groups * pieces, x.dtype, MIDDLE)
        blocks = -(-taps // tile.rows) * -(-width // tile.columns) * groups * pieces
        wide_b = width % 4 == 0 and is_aligned(grad_out)
        kernel = _conv2d_backward_weight(tile, WIDE if wide_b else ACROSS)
        args = x.reshape((x.size,)), grad_out.reshape((grad_out.size,))
        args += tuple(x.shape[1:3]), tuple(window), tuple(grad_out.shape[1:3])
        args += stride, padding, dilation, each, width, groups, pixels, pieces
        is_wide = width % 4 == 0 and is_aligned(target)
        launch(kernel, blocks, tile.threads, stream, *args, is_wide, target)
    if pieces > 1:
        _launch_flat(_add_pieces, size, stream, parts, parts, False, False, flat)


# =================================================================== pooling
#
# Windows (r, s) slide over images (n, h, w, c). A maximum notes where in its window it was found,
# r kernel_size[1] + s. One thread owns one element of the result.


@device
def _inside(first, kernel, extent):
    """Return the range of window rows that lie in the image, for a window from row `first` on."""
    return max(-first, 0), min(kernel, extent - first)


@device
def _windows_over(h, kernel, stride, padding, count):
    """Return the range of windows that image row `h` is in."""
    first = (h + padding - kernel) // stride + 1
    return max(first, 0), min((h + padding) // stride + 1, count)


@cuda.jit
def _max_pool2d_forward(x, kernel_size, stride, padding, out, index):
    """out[n, i, j, c] = max_{r,s} x[n, i stride + r - padding, j stride + s - padding, c], and
    index = the place of the first element that attains it. The first NaN wins.
    """
    _, height, width, _ = x.shape
    _, rows, columns, channels = out.shape
    p = cuda.grid(1)
    if p < out.size:
        c = p % channels
        j = p // channels % columns
        i = p // (channels * columns) % rows
        n = p // (channels * columns * rows)
        h = i * stride[0] - padding[0]
        w = j * stride[1] - padding[1]
        top, bottom = _inside(h, kernel_size[0], height)
        left, right = _inside(w, kernel_size[1], width)
        best = x[n, h + top, w + left, c]
        place = top * kernel_size[1] + left
        for r in range(top, bottom):
            for s in range(left, right):
                value = x[n, h + r, w + s, c]
                if value > best or (value != value and best == best):
                    best = value
                    place = r * kernel_size[1] + s
        out[n, i, j, c] = best
        index[n, i, j, c] = x.dtype.type(place)


def max_pool2d_forward(x, kernel_size, stride, padding, out, index, stream):
    """Start a thread per output element."""
    args = x, kernel_size, stride, padding, out, index
    _launch_flat(_max_pool2d_forward, out.size, stream, *args)


@cuda.jit
def _max_pool2d_backward(grad_out, index, kernel_size, stride, padding, grad_x):
    """grad_x[n, h, w, c] = sum of grad_out[n, i, j, c] over the windows (i, j) whose index says
    that their maximum was found at (h, w).
    """
    _, rows, columns, _ = grad_out.shape
    _, height, width, channels = grad_x.shape
    p = cuda.grid(1)
    if p < grad_x.size:
        c = p % channels
        w = p // channels % width
        h = p // (channels * width) % height
        n = p // (channels * width * height)
        top, bottom = _windows_over(h, kernel_size[0], stride[0], padding[0], rows)
        left, right = _windows_over(w, kernel_size[1], stride[1], padding[1], columns)
        acc = grad_x.dtype.type(0)
        for i in range(top, bottom):
            r = h + padding[0] - i * stride[0]
            for j in range(left, right):
                s = w + padding[1] - j * stride[1]
                if index[n, i, j, c] == grad_x.dtype.type(r * kernel_size[1] + s):
                    acc += grad_out[n, i, j, c]
        grad_x[n, h, w, c] = acc


def max_pool2d_backward(grad_out, index, kernel_size, stride, padding, grad_x, stream):
    """Start a thread per input element."""
    args = grad_out, index, kernel_size, stride, padding, grad_x
    _launch_flat(_max_pool2d_backward, grad_x.size, stream, *args)


@cuda.jit
def _max_pool2d_pick(x, index, kernel_size, stride, padding, out):
    """out[n, i, j, c] = the element of x where window (i, j) found its maximum, as index says."""
    _, rows, columns, channels = out.shape
    p = cuda.grid(1)
    if p < out.size:
        c = p % channels
        j = p // channels % columns
        i = p // (channels * columns) % rows
        n = p // (channels * columns * rows)
        place = int(index[n, i, j, c])
        h = i * stride[0] - padding[0] + place // kernel_size[1]
        w = j * stride[1] - padding[1] + place % kernel_size[1]
        out[n, i, j, c] = x[n, h, w, c]


def max_pool2d_pick(x, index, kernel_size, stride, padding, out, stream):
    """Start a thread per output element."""
    args = x, index, kernel_size, stride, padding, out
    _launch_flat(_max_pool2d_pick, out.size, stream, *args)


@cuda.jit
def _avg_pool2d_forward(x, kernel_size, stride, padding, out):
    """out[n, i, j, c] = mean_{r,s} x[n, i stride + r - padding, j stride + s - padding, c], where
    padding counts as zeros.
    """
    _, height, width, _ = x.shape
    _, rows, columns, channels = out.shape
    p = cuda.grid(1)
    if p < out.size:
        c = p % channels
        j = p // channels % columns
        i = p // (channels * columns) % rows
        n = p // (channels * columns * rows)
        h = i * stride[0] - padding[0]
        w = j * stride[1] - padding[1]
        top, bottom = _inside(h, kernel_size[0], height)
        left, right = _inside(w, kernel_size[1], width)
        acc = x.dtype.type(0)
        for r in range(top, bottom):
            for s in range(left, right):
                acc += x[n, h + r, w + s, c]
        out[n, i, j, c] = acc / x.dtype.type(kernel_size[0] * kernel_size[1])


def avg_pool2d_forward(x, kernel_size, stride, padding, out, stream):
    """Start a thread per output element."""
    args = x, kernel_size, stride, padding, out
    _launch_flat(_avg_pool2d_forward, out.size, stream, *args)


@cuda.jit
def _avg_pool2d_backward(grad_out, kernel_size, stride, padding, grad_x):
    """grad_x[n, h, w, c] = sum of grad_out[n, i, j, c] / area over the windows on (h, w)."""
    _, rows, columns, _ = grad_out.shape
    _, height, width, channels = grad_x.shape
    p = cuda.grid(1)
    if p < grad_x.size:
        c = p % channels
        w = p // channels % width
        h = p // (channels * width) % height
        n = p // (channels * width * height)
        top, bottom = _windows_over(h, kernel_size[0], stride[0], padding[0], rows)
        left, right = _windows_over(w, kernel_size[1], stride[1], padding[1], columns)
        acc = grad_x.dtype.type(0)
        for i in range(top, bottom):
            for j in range(left, right):
                acc += grad_out[n, i, j, c]
        grad_x[n, h, w, c] = acc / grad_x.dtype.type(kernel_size[0] * kernel_size[1])


def avg_pool2d_backward(grad_out, kernel_size, stride, padding, grad_x, stream):
    """Start a thread per input element."""
    args = grad_out, kernel_size, stride, padding, grad_x
    _launch_flat(_avg_pool2d_backward, grad_x.size, stream, *args)


# ============================================================ random numbers
#
# Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) mixes a key,
# the seed, with a counter, the number of the draw and of a block in it, into four random 32-bit
# words. One thread per block: four elements, or in float64, from two words each, two elements.
# `first` is the number of out's first element. Words are held in uint64, where they can't wrap.

PHILOX_0, PHILOX_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)  # multipliers
WEYL_0, WEYL_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)  # steps of the key
WORD, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
WORDS = 4  # in a block


@device
def _philox(seed, call, block):
    """Return block number `block` of draw number `call`: four random 32-bit words."""
    c0, c1, c2, c3 = block & WORD, block >> HALF, call & WORD, call >> HALF
    k0, k1 = seed & WORD, seed >> HALF
    for _ in range(10):
        p, q = c0 * PHILOX_0, c2 * PHILOX_1
        c0, c1, c2, c3 = (q >> HALF) ^ c1 ^ k0, q & WORD, (p >> HALF) ^ c3 ^ k1, p & WORD
        k0, k1 = (k0 + WEYL_0) & WORD, (k1 + WEYL_1) & WORD
    return c0, c1, c2, c3


@device
def _uniform(words, k, out):
    """Return number k of a block, in [0, 1): as many random bits as a number of out's dtype has."""
    if out.itemsize == 4:
        return out.dtype.type(np.int64(words[k]) >> 8) * out.dtype.type(2.0**-24)
    bits = np.int64(words[2 * k]) << 21 | np.int64(words[2 * k + 1]) >> 11
    return out.dtype.type(bits) * out.dtype.type(2.0**-53)


@device
def _cosine_of_turns(t, out):
    """Return cos(2 pi t) for -1 < t < 1.

    It is the sine of an angle of at most a quarter turn, and that is its Taylor series. The
    library's cosine reduces huge angles in float64, which a float32 kernel must not hold.
    """
    t = -t if t < 0 else t
    turn = out.dtype.type(1)
    t = turn - t if t + t > turn else t
    angle = (out.dtype.type(0.25) - t) * out.dtype.type(2 * math.pi)
    square = angle * angle
    series = turn
    for n in range(20, 0, -2):
        series = turn - series * square / out.dtype.type(n * (n + 1))
    return angle * series


def _launch_blocks(kernel, each, first, size, stream, *args):
    """Start a thread for each block of `each` elements that first, ..., first + size - 1 touch."""
    blocks = -(-(first + size) // each) - first // each if size else 0
    _launch_flat(kernel, blocks, stream, *args)


@cuda.jit
def _random_uniform(seed, call, first, out):
    """out[i] = u[first + i], uniform in [0, 1)."""
    each = 4 * WORDS // out.itemsize
    block = first // each + cuda.grid(1)
    words = _philox(np.uint64(seed[0]), np.uint64(call[0]), np.uint64(block))
    for k in range(each):
        i = block * each + k - first
        if 0 <= i < out.size:
            out[i] = _uniform(words, k, out)


def random_uniform(seed, call, first, out, stream):
    """Start a thread per block of words."""
    each = 4 * WORDS // out.dtype.itemsize
    _launch_blocks(_random_uniform, each, first, out.size, stream, seed, call, first, out)


@cuda.jit
def _random_normal(seed, call, first, out):
    """out[2j], out[2j + 1] = r cos(2 pi v), r sin(2 pi v), with r = sqrt(-2 ln(1 - u)).

    u, v = u[2j], u[2j + 1] are uniform; elements are counted from `first` (Box and Muller, 1958).
    """
    each = 4 * WORDS // out.itemsize
    block = first // each + cuda.grid(1)
    words = _philox(np.uint64(seed[0]), np.uint64(call[0]), np.uint64(block))
    for k in range(0, each, 2):
        radius = sqrt(out.dtype.type(-2) * log(out.dtype.type(1) - _uniform(words, k, out)))
        turns = _uniform(words, k + 1, out)
        i = block * each + k - first
        if 0 <= i < out.size:
            out[i] = radius * _cosine_of_turns(turns, out)
        if 0 <= i + 1 < out.size:  # sin(a) = cos(a - pi / 2)
            out[i + 1] = radius * _cosine_of_turns(turns - out.dtype.type(0.25), out)


def random_normal(seed, call, first, out, stream):
    """Start a thread per block of words."""
    each = 4 * WORDS // out.dtype.itemsize
    _launch_blocks(_random_normal, each, first, out.size, stream, seed, call, first, out)


@cuda.jit
def _dropout_forward(x, seed, call, threshold, scale, first, out, mask):
    """mask[i] = w[first + i] >= threshold;  out[i] = x[i] scale if mask[i] else 0.

    w are random 32-bit words, the same ones for float32 and float64.
    """
    block = first // WORDS + cuda.grid(1)
    words = _philox(np.uint64(seed[0]), np.uint64(call[0]), np.uint64(block))
    for k in range(WORDS):
        i = block * WORDS + k - first
        if 0 <= i < out.size:
            keep = np.int64(words[k]) >= threshold
            mask[i] = keep
            out[i] = x[i] * scale if keep else x.dtype.type(0)


def dropout_forward(x, seed, call, threshold, scale, first, out, mask, stream):
    """Start a thread per block of words."""
    args = x, seed, call, threshold, scale, first, out, mask
    _launch_blocks(_dropout_forward, WORDS, first, out.size, stream, *args)


# =================================================================== softmax
#
# x is (outer, reduce, inner), as in a reduction. A team of threads shares a row: one thread where
# inner > 1, else up to a warp, or a block for a long row. The largest element is taken off first:
# then the largest exponential is 1 and nothing overflows. All threads meet in `_team_sum`, those
# without a row too.


@device
def _team_sum(slots, value, team):
    """Return, to all threads of a team, the sum of their values, added as a tree.

    `slots` is shared memory, one number per warp.
    """
    value = _sum_over_lanes(value, min(team, LANES))
    if team > LANES:
        cuda.syncthreads()  # until nobody reads what was there
        if cuda.threadIdx.x % LANES == 0:
            slots[cuda.threadIdx.x // LANES] = value
        cuda.syncthreads()
        value = slots[0]
        for warp in range(1, WARPS):
            value += slots[warp]
    return value


@device
def _team_max(slots, value, team):
    """Return, to all threads of a team, the largest of their values; any of them may be NaN."""
    step = 1
    while step < min(team, LANES):
        value = _maximum(value, shuffle_xor(value, step))
        step *= 2
    if team > LANES:
        cuda.syncthreads()  # until nobody reads what was there
        if cuda.threadIdx.x % LANES == 0:
            slots[cuda.threadIdx.x // LANES] = value
        cuda.syncthreads()
        value = slots[0]
        for warp in range(1, WARPS):
            value = _maximum(value, slots[warp])
    return value


@device
def _largest(slots, x, start, stop, step, team):
    """Return, to all threads of a team, the largest element of their row."""
    largest = x.dtype.type(-math.inf)
    for at in range(start, stop, step):
        largest = x[at] if x[at] > largest else largest
    return _team_max(slots, largest, team)


@device
def _sum_of_exponentials(slots, x, start, stop, step, team, shift):
    """Return, to all threads of a team, the sum of exp(x - shift) over their row."""
    total = x.dtype.type(0)
    for at in range(start, stop, step):
        total += exp(x[at] - shift)
    return _team_sum(slots, total, team)


@cuda.jit
def _softmax_forward(x, reduce, inner, team, out):
    """out[o, r, i] = exp(x[o, r, i] - m) / sum_s exp(x[o, s, i] - m), with m = max_s x[o, s, i]."""
    slots = cuda.shared.array(WARPS, x.dtype)
    start, stop, step = _row(reduce, inner, team, out.size)
    largest = _largest(slots, x, start, stop, step, team)
    total = _sum_of_exponentials(slots, x, start, stop, step, team, largest)
    for at in range(start, stop, step):
        out[at] = exp(x[at] - largest) / total


def softmax_forward(x, reduce, inner, out, stream):
    """Start a team per row."""
    team = _team(reduce, inner)
    threads = out.size // max(reduce, 1) * team
    _launch_flat(_softmax_forward, threads, stream, x, reduce, inner, team, out)


@cuda.jit
def _log_softmax_forward(x, reduce, inner, team, out):
    """out[o, r, i] = x[o, r, i] - m - ln sum_s exp(x[o, s, i] - m), with m = max_s x[o, s, i]."""
    slots = cuda.shared.array(WARPS, x.dtype)
    start, stop, step = _row(reduce, inner, team, out.size)
    largest = _largest(slots, x, start, stop, step, team)
    shift = log(_sum_of_exponentials(slots, x, start, stop, step, team, largest))
    for at in range(start, stop, step):
        out[at] = x[at] - largest - shift


def log_softmax_forward(x, reduce, inner, out, stream):
    """Start a team per row."""
    team = _team(reduce, inner)
    threads = out.size // max(reduce, 1) * team
    _launch_flat(_log_softmax_forward, threads, stream, x, reduce, inner, team, out)


@cuda.jit
def _softmax_backward(y, grad_y, reduce, inner, team, out):
    """out[o, r, i] = y[o, r, i] (grad_y[o, r, i] - sum_s grad_y[o, s, i] y[o, s, i])."""
    slots = cuda.shared.array(WARPS, y.dtype)
    start, stop, step = _row(reduce, inner, team, out.size)
    total = y.dtype.type(0)
    for at in range(start, stop, step):
        total += grad_y[at] * y[at]
    total = _team_sum(slots, total, team)
    for at in range(start, stop, step):
        out[at] = y[at] * (grad_y[at] - total)


def softmax_backward(y, grad_y, reduce, inner, out, stream):
    """Start a team per row."""
    team = _team(reduce, inner)
    threads = out.size // max(reduce, 1) * team
    _launch_flat(_softmax_backward, threads, stream, y, grad_y, reduce, inner, team, out)


@cuda.jit
def _log_softmax_backward(y, grad_y, reduce, inner, team, out):
    """out[o, r, i] = grad_y[o, r, i] - exp(y[o, r, i]) sum_s grad_y[o, s, i]."""
    slots = cuda.shared.array(WARPS, y.dtype)
    start, stop, step = _row(reduce, inner, team, out.size)
    total = y.dtype.type(0)
    for at in range(start, stop, step):
        total += grad_y[at]
    total = _team_sum(slots, total, team)
    for at in range(start, stop, step):
        out[at] = grad_y[at] - exp(y[at]) * total


def log_softmax_backward(y, grad_y, reduce, inner, out, stream):
    """Start a team per row."""
    team = _team(reduce, inner)
    threads = out.size // max(reduce, 1) * team
    _launch_flat(_log_softmax_backward, threads, stream, y, grad_y, reduce, inner, team, out)


# ==================================================================== losses


@cuda.jit
def _softmax_cross_entropy_forward(logits, labels, team, loss, probs):
    """probs[n] = softmax(logits[n]);  loss[n] = -ln probs[n, labels[n]].

    A team of threads shares a row. The loss is computed as ln sum_c exp(logits[n, c] - m) -
    (logits[n, labels[n]] - m), with m = max_c logits[n, c].
    """
    slots = cuda.shared.array(WARPS, logits.dtype)
    rows, classes = loss.size, logits.size // loss.size
    start, stop, step = _row(classes, 1, team, logits.size)
    largest = _largest(slots, logits, start, stop, step, team)
    total = _sum_of_exponentials(slots, logits, start, stop, step, team, largest)
    for at in range(start, stop, step):
        probs[at] = exp(logits[at] - largest) / total
    n, lane = divmod(cuda.grid(1), team)
    if lane == 0 and n < rows:
        label = labels[n]
        if 0 <= label < classes:
            loss[n] = log(total) - (logits[n * classes + label] - largest)
        else:
            loss[n] = logits.dtype.type(0)


def softmax_cross_entropy_forward(logits, labels, first, loss, probs, error, stream):
    """Start one block to check the labels, then a team per row."""
    rows, classes = logits.shape
    launch(_check_range, 1, BLOCK, stream, labels, 0, classes, first, error)
    team = _team(classes, 1)
    flat_logits, flat_probs = (a.reshape((a.size,)) for a in (logits, probs))
    args = flat_logits, labels, team, loss, flat_probs
    _launch_flat(_softmax_cross_entropy_forward, rows * team, stream, *args)


@cuda.jit
def _softmax_cross_entropy_backward(grad_out, labels, probs, out):
    """out[n, c] = grad_out[n] (probs[n, c] - (1 if c == labels[n] else 0))."""
    i = cuda.grid(1)
    if i < out.size:
        n, c = divmod(i, out.shape[1])
        hit = out.dtype.type(1) if labels[n] == c else out.dtype.type(0)
        out[n, c] = grad_out[n] * (probs[n, c] - hit)


def softmax_cross_entropy_backward(grad_out, logits, labels, probs, out, stream):
    """Start a thread per element."""
    args = grad_out, labels, probs, out
    _launch_flat(_softmax_cross_entropy_backward, out.size, stream, *args)


# ============================================================= normalisation
#
# x is (rows, channels): statistics are taken over rows, for each channel by itself, with
# h[r, c] = (x[r, c] - mean[c]) / sqrt(var[c] + eps), the normalised x. A block sums `width`
# neighbouring channels, as a block of the sum does.


STRIP = 2 if SIMULATOR else 8  # channels of a block that joins statistics: 32 bytes side by side
EACH = 8  # rows in which a thread owns its channel


@cuda.jit
def _batch_norm_moments(x, block, width, mean, square):
    """mean[b, c] = mean of x[r, c] over block b of rows;  square[b, c] = sum (x - mean)^2.

    A CUDA block owns `width` channels of one block of rows.
    """
    partial = cuda.shared.array(BLOCK, x.dtype)
    rows, channels = x.shape
    strips = -(-channels // width)
    b, strip = divmod(cuda.blockIdx.x, strips)
    thread, step = cuda.threadIdx.x, BLOCK // width
    c = strip * width + thread % width
    first, last = b * block, min((b + 1) * block, rows)
    total = x.dtype.type(0)
    if c < channels:
        for r in range(first + thread // width, last, step):
            total += x[r, c]
    _add_up(partial, total, width)
    center = partial[thread % width] / x.dtype.type(last - first)
    cuda.syncthreads()
    total = x.dtype.type(0)
    if c < channels:
        for r in range(first + thread // width, last, step):
            total += (x[r, c] - center) * (x[r, c] - center)
    total = _add_up(partial, total, width)
    if thread < width and c < channels:
        mean[b, c] = center
        square[b, c] = total


def batch_norm_moments(x, block, mean, square, stream):
    """Start a block per block of rows and `width` channels."""
    blocks, channels = mean.shape
    width = _width(channels)
    grid = blocks * -(-channels // width)
    launch(_batch_norm_moments, grid, BLOCK, stream, x, block, width, mean, square)


@device
def _joined(count, mean, square, other_count, other_mean, other_square):
    """Return count, mean and squares of two sets as one (Chan, Golub and LeVeque, 1979).

    n = n_a + n_b;  away = mean_b - mean_a;
    mean = mean_a + away n_b / n;  square = square_a + square_b + away^2 n_a n_b / n
    """
    total = count + other_count
    share = other_count / max(total, type(total)(1))
    away = other_mean - mean
    return total, mean + away * share, square + other_square + away * away * share * count


@cuda.jit
def _batch_norm_statistics(block_mean, block_square, block, count, mean, var):
    """mean[c], var[c] of `count` rows, from those of their blocks of rows.

    A CUDA block owns STRIP channels. Its rows of threads share the blocks, and what they found is
    joined as a tree.
    """
    counts = cuda.shared.array(BLOCK, mean.dtype)
    means = cuda.shared.array(BLOCK, mean.dtype)
    squares = cuda.shared.array(BLOCK, mean.dtype)
    thread = cuda.threadIdx.x
    c = cuda.blockIdx.x * STRIP + thread % STRIP
    zero = mean.dtype.type(0)
    found, center, square = zero, zero, zero
    if c < mean.size:
        for b in range(thread // STRIP, block_mean.shape[0], BLOCK // STRIP):
            rows = mean.dtype.type(min(block, count - b * block))
            found, center, square = _joined(
                found, center, square, rows, block_mean[b, c], block_square[b, c]
            )
    counts[thread], means[thread], squares[thread] = found, center, square
    cuda.syncthreads()
    half = BLOCK // 2
    while half >= STRIP:
        if thread < half:
            other = thread + half
            counts[thread], means[thread], squares[thread] = _joined(
                counts[thread], means[thread], squares[thread],
                counts[other], means[other], squares[other],
            )  # fmt: skip
        cuda.syncthreads()
        half //= 2
    if thread < STRIP and c < mean.size:
        mean[c] = means[thread]
        var[c] = squares[thread] / mean.dtype.type(count)


def batch_norm_statistics(block_mean, block_square, block, count, mean, var, stream):
    """Start a block per STRIP channels."""
    args = block_mean, block_square, block, count, mean, var
    launch(_batch_norm_statistics, -(-mean.size // STRIP), BLOCK, stream, *args)


def _launch_down(kernel, x, stream, *args):
    """Start threads that own a channel each, in every so many-th row: `step` elements lie between.

    So what depends on the channel alone is worked out once, and nobody divides for each element.
    The kernel is given `step` before its output.
    """
    rows, channels = x.shape
    step = channels * -(-rows // EACH)
    _launch_flat(kernel, step, stream, *args[:-1], step, args[-1])


@cuda.jit
def _batch_norm_forward(x, weight, bias, mean, var, eps, step, out):
    """out[r, c] = h[r, c] weight[c] + bias[c]."""
    i = cuda.grid(1)
    if i < step:
        c = i % mean.size
        scale = weight[c] / sqrt(var[c] + eps)
        center, shift = mean[c], bias[c]
        for at in range(i, out.size, step):
            out[at] = (x[at] - center) * scale + shift


def batch_norm_forward(x, weight, bias, mean, var, eps, out, stream):
    """Start a thread per channel and EACH rows."""
    args = x.reshape((x.size,)), weight, bias, mean, var, eps, out.reshape((out.size,))
    _launch_down(_batch_norm_forward, x, stream, *args)


@cuda.jit
def _batch_norm_backward_sums(x, grad_out, mean, var, eps, pieces, width, sums):
    """sums[p, 0, c] = sum_r grad_out[r, c];  sums[p, 1, c] = sum_r grad_out[r, c] h[r, c].

    A block owns `width` channels of the rows of piece p.
    """
    partial = cuda.shared.array(BLOCK, x.dtype)
    rows, channels = x.shape
    p, strip = divmod(cuda.blockIdx.x, (channels + width - 1) // width)
    thread, step = cuda.threadIdx.x, BLOCK // width
    c = strip * width + thread % width
    first, last = p * rows // pieces, (p + 1) * rows // pieces
    by_bias, by_weight = x.dtype.type(0), x.dtype.type(0)
    if c < channels:
        for start in range(first + thread // width, last, step * CHAIN):
            total, product = x.dtype.type(0), x.dtype.type(0)
            for r in range(start, min(start + step * CHAIN, last), step):
                total += grad_out[r, c]
                product += grad_out[r, c] * (x[r, c] - mean[c])
            by_bias += total
            by_weight += product
    by_bias = _add_up(partial, by_bias, width)
    cuda.syncthreads()
    by_weight = _add_up(partial, by_weight, width)
    if thread < width and c < channels:
        at = 2 * p * channels + c
        sums[at] = by_bias
        sums[at + channels] = by_weight / sqrt(var[c] + eps)


def batch_norm_backward_sums(x, grad_out, mean, var, eps, sums, parts, stream):
    """Start a block per `width` channels and piece; then add up the pieces."""
    out, channels = sums.reshape((sums.size,)), x.shape[1]
    pieces = parts.size // max(sums.size, 1)
    width = _width(channels)
    grid = max(pieces, 1) * -(-channels // width)
    target = parts if pieces > 1 else out
    args = x, grad_out, mean, var, eps, max(pieces, 1), width, target
    launch(_batch_norm_backward_sums, grid, BLOCK, stream, *args)
    if pieces > 1:
        _launch_sum(parts, pieces, out.size, x.dtype.type(1), 1, out, stream)


@cuda.jit
def _batch_norm_backward_input(x, weight, grad_out, mean, var, sums, count, eps, step, grad_x):
    """grad_x[r, c] = s[c] (g[r, c] - (sums[0, c] + h[r, c] sums[1, c]) / count).

    s = weight / sqrt(var + eps) and g = grad_out; count is the number of rows of the whole.
    """
    i = cuda.grid(1)
    if i < step:
        c = i % mean.size
        spread = sqrt(var[c] + eps)
        center, scale = mean[c], weight[c] / spread
        shift, slope = sums[0, c] / count, sums[1, c] / (spread * count)
        for at in range(i, grad_x.size, step):
            grad_x[at] = scale * (grad_out[at] - shift - (x[at] - center) * slope)


def batch_norm_backward_input(x, weight, grad_out, mean, var, sums, count, eps, grad_x, stream):
    """Start a thread per channel and EACH rows."""
    flat_x, flat_grad, flat_out = (a.reshape((a.size,)) for a in (x, grad_out, grad_x))
    args = flat_x, weight, flat_grad, mean, var, sums, count, eps, flat_out
    _launch_down(_batch_norm_backward_input, x, stream, *args)


@cuda.jit
def _batch_norm_update(running_mean, running_var, mean, var, momentum, unbias, out_mean, out_var):
    """running += momentum (batch - running), for means and, times `unbias`, for variances."""
    c = cuda.grid(1)
    if c < mean.size:
        out_mean[c] = running_mean[c] + (mean[c] - running_mean[c]) * momentum
        out_var[c] = running_var[c] + (var[c] * unbias - running_var[c]) * momentum


def batch_norm_update(
    running_mean, running_var, mean, var, momentum, unbias, out_mean, out_var, stream
):
    """Start a thread per channel."""
    args = running_mean, running_var, mean, var, momentum, unbias, out_mean, out_var
    _launch_flat(_batch_norm_update, mean.size, stream, *args)


# ================================================================= embedding


@cuda.jit
def _embedding_forward(weight, indices, out):
    """out[n, f] = weight[indices[n], f]."""
    i = cuda.grid(1)
    if i < out.size:
        n, f = divmod(i, out.shape[1])
        row = indices[n]
        inside = 0 <= row < weight.shape[0]
        out[n, f] = weight[row, f] if inside else weight.dtype.type(0)


def embedding_forward(weight, indices, first, out, error, stream):
    """Start one block to check the indices, then a thread per element."""
    launch(_check_range, 1, BLOCK, stream, indices, 0, weight.shape[0], first, error)
    _launch_flat(_embedding_forward, out.size, stream, weight, indices, out)


@cuda.jit
def _embedding_backward(grad_out, indices, first, grad_weight):
    """grad_weight[w, f] = sum_{n: indices[n] = first + w} grad_out[n, f].

    Each thread looks through all indices, so that a sum always runs in the same order.
    """
    i = cuda.grid(1)
    if i < grad_weight.size:
        w, f = divmod(i, grad_weight.shape[1])
        total = grad_out.dtype.type(0)
        for n in range(indices.size):
            if indices[n] == first + w:
                total += grad_out[n, f]
        grad_weight[w, f] = total


def embedding_backward(grad_out, indices, first, grad_weight, start, order, stream):
    """Start a thread per element; a GPU needs no sorting, so start and order are empty."""
    _launch_flat(
        _embedding_backward, grad_weight.size, stream, grad_out, indices, first, grad_weight
    )
