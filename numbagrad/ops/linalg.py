"""Matrix products."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ..array import Array, asarray, size_of
from ..dispatch import Call, Op, Split, Views, apply, register
from ..errors import DTypeError, ShapeError
from ..jit import function_of
from ..kernels_cpu import BLOCK_ROWS, BLOCK_STEPS, PANEL_STRIPS, _even, _pays_to_pack, _pitch
from ..simd import TILE_COLUMNS, VECTOR_BYTES
from .elementwise import (
    broadcast_shape,
    broadcast_to,
    flat,
    promote,
    require_arrays,
    require_float,
)
from .pieces import MULTIPROCESSORS, room_for_pieces
from .reduction import sum
from .shaping import reshape

TURNED_COLUMNS = 192  # that a transposed a serves, for laying it out straight to pay; or a third
TURNED_STEPS, TURNED_ROWS = 64, 512  # of them, if it is so long and its rows lie so far apart
FEW_ROWS = 3  # too few for a tile
SHARD_ROWS = SHARD_COLUMNS = 64  # at least, and four times that if there are enough


def _rows_columns(shape: tuple[int, ...], transpose: bool) -> tuple[int, int]:
    return (shape[-1], shape[-2]) if transpose else (shape[-2], shape[-1])


def strip_width(columns: int, itemsize: int) -> int:
    """Return how many columns there are in whole vectors."""
    lanes = VECTOR_BYTES // itemsize
    return -(-columns // lanes) * lanes


@lru_cache
def nothing(dtype: np.dtype, device: str) -> Array:
    """Return an empty array, for an operand that a kernel does without."""
    return asarray(np.zeros(0, dtype), device=device)


def _matmul_infer(a, b, bias, *, transpose_a, transpose_b, relu):
    require_float("matmul", a, b, bias)
    m, k = _rows_columns(a.shape, transpose_a)
    k_b, n = _rows_columns(b.shape, transpose_b)
    if k != k_b:
        raise ShapeError(
            f"matmul: inner extents differ: {a.shape}{'^T' if transpose_a else ''} @ "
            f"{b.shape}{'^T' if transpose_b else ''} pairs {k} with {k_b}"
        )
    batch = b.shape[:-2] if len(a.shape) == 2 else a.shape[:-2]
    return (*batch, m, n), a.dtype


def _matmul_views(call: Call) -> Views:
    """See everything flat.

    Other parameters are n, k, the width of a's rows, and which rows and columns of out.
    """
    a = call.inputs[0]
    m, n = call.outputs[0].shape[-2:]
    k = _rows_columns(a.shape, call.transpose_a)[1]
    turns = call.transpose_a, call.transpose_b
    return flat(call, *turns, call.relu, n, k, a.shape[-1], 0, m, 0, n)


def _matmul_workspace(call: Call):
    """Room for tables of the tiles' rows, a panel of b, a block of a.

    There are no tables for products of a few rows, which go without tiles. Of a b that is not
    packed, only a last strip is that is narrower than its tile.
    """
    a = call.inputs[0]
    m, n = call.outputs[0].shape[-2:]
    if _has_few_rows(m, call.transpose_a):
        return [((0, 0), np.int64), ((0,), a.dtype), ((0,), a.dtype)]
    lanes = strip_width(1, a.dtype.itemsize)
    rows = min(m, BLOCK_ROWS)
    k = _rows_columns(a.shape, call.transpose_a)[1]
    steps = min(k, function_of(_even)(k, BLOCK_STEPS, lanes))
    strip = _strip(call)
    panel = steps * strip * min(-(-n // strip), PANEL_STRIPS)
    if not (call.transpose_b or function_of(_pays_to_pack)(m, n, steps, lanes)):
        rest = n % strip
        pitch = function_of(_pitch)(rest, np.empty(0, a.dtype))
        panel = steps * pitch if 0 < rest < pitch else 0
    turned = call.transpose_a and _pays_to_turn(a.shape[-1], steps, n)
    block = rows * (strip_width(steps, a.dtype.itemsize) + lanes) if turned else 0
    return [
        ((3, rows), np.int64),
        ((panel,), a.dtype),
        ((block,), a.dtype),
    ]


BLOCK_TILE = 64  # rows and columns of the smaller of a block's tiles
PIECE_STEPS = 256  # of a sum, at least, for cutting it to pay


def pieces_of(rows: int, columns: int, steps: int, count: int = 1) -> int:
    """Return into how many pieces a GPU best cuts the sums of `count` products.

    Few outputs with long sums get so many that each multiprocessor has a block of threads. It
    depends on shapes alone, and pieces are added in order: results are the same every time.
    """
    blocks = max(-(-rows // BLOCK_TILE) * -(-columns // BLOCK_TILE) * count, 1)
    return max(1, min(MULTIPROCESSORS // blocks, steps // PIECE_STEPS))


def _matmul_workspace_cuda(call: Call):
    """Room for the products of pieces of the sum."""
    out = call.outputs[0]
    *batch, m, n = out.shape
    k = _rows_columns(call.inputs[0].shape, call.transpose_a)[1]
    return room_for_pieces(out.size, pieces_of(m, n, k, size_of(tuple(batch))), out.dtype)


def _strip(call: Call) -> int:
    """Return how many columns a strip of b has."""
    return TILE_COLUMNS * strip_width(1, call.outputs[0].dtype.itemsize)


def _pays_to_turn(rows: int, steps: int, columns: int) -> bool:
    """Return whether a transposed a, whose columns are `rows` apart, is best laid out straight."""
    is_long = steps >= TURNED_STEPS and rows >= TURNED_ROWS
    return columns >= (TURNED_COLUMNS // 3 if is_long else TURNED_COLUMNS)


def _has_few_rows(rows: int, transpose_a: bool) -> bool:
    """Return whether a product has too few rows for tiles."""
    return rows <= FEW_ROWS and not transpose_a


def _matmul_split(call: Call) -> list[Split]:
    """Cut a batch into matrices, or one product into columns or rows.

    A shard of columns packs its own strips of b, one of rows packs all of b anew: so columns come
    first.
    """
    *batch, m, n = call.outputs[0].shape
    count = size_of(tuple(batch))
    if count != 1:
        steps = [size_of(spec.shape[-2:]) if spec.ndim > 2 else 0 for spec in call.inputs[:2]]
        return [Split(count, (*steps, 0), (m * n,))]

    def rows(scalars, lo, hi):
        # The rows of a transposed a are columns, which no slice holds: it comes whole.
        *others, _, _, left, columns = scalars
        return (*others, lo if call.transpose_a else 0, hi - lo, left, columns)

    def columns(scalars, lo, hi):
        return (*scalars[:-2], lo * strip, min(hi * strip, n) - lo * strip)

    strip = _strip(call)
    step_a = 0 if call.transpose_a else call.inputs[0].shape[-1]
    return [
        Split(-(-n // strip), (0, 0, 0), (0,), columns, -(-_grain(n, SHARD_COLUMNS) // strip)),
        Split(m, (step_a, 0, 0), (n,), rows, _grain(m, SHARD_ROWS)),
    ]


def _grain(size: int, least: int) -> int:
    """Return how many rows or columns shards are multiples of: of many, more at a time."""
    grain = least
    while grain < 4 * least and 8 * grain <= size:
        grain *= 2
    return grain


def _matmul_cost(call: Call) -> tuple[float, float]:
    (a, b), out = call.inputs[:2], call.outputs[0]
    k = _rows_columns(a.shape, call.transpose_a)[1]
    moved = (a.size + b.size + out.size) * out.dtype.itemsize
    return 2.0 * out.size * k, moved


def _matmul_vjp(grad_out, a, b, transpose_a, transpose_b, needs, specs):
    # With A = op(a), B = op(b), out = A B + bias:  grad_A = G B^T,  grad_B = A^T G.
    grad_a = grad_b = grad_bias = None
    if needs[0]:
        if transpose_a:
            grad_a = _matmul(b, grad_out, transpose_b, True)
        else:
            grad_a = _matmul(grad_out, b, False, not transpose_b)
        grad_a = _over_batch(grad_a, specs[0].shape)
    if needs[1]:
        if transpose_b:
            grad_b = _matmul(grad_out, a, True, transpose_a)
        else:
            grad_b = _matmul(a, grad_out, not transpose_a, False)
        grad_b = _over_batch(grad_b, specs[1].shape)
    if needs[2]:
        ndim = len(grad_out.spec.shape)
        grad_bias = sum(grad_out, 0 if ndim == 2 else tuple(range(ndim - 1)))
    return grad_a, grad_b, grad_bias


def _over_batch(grad: Array, shape: tuple[int, ...]) -> Array:
    """Sum the gradient of an operand that served every matrix of a batch."""
    extra = grad.ndim - len(shape)
    return sum(grad, tuple(range(extra))) if extra else grad


_MATMUL = register(
    Op(
        "matmul",
        _matmul_infer,
        "matmul_forward",
        _matmul_vjp,
        arrange=_matmul_views,
        split=_matmul_split,
        workspace={"cpu": _matmul_workspace, "cuda": _matmul_workspace_cuda},
        cost=_matmul_cost,
    )
)


def _matmul(
    a: Array, b: Array, transpose_a: bool, transpose_b: bool, bias: Array | None = None
) -> Array:
    """Multiply matrices; a batch on one side only, or the same batch on both."""
    if len(a.spec.shape) > 2 and len(b.spec.shape) == 2 and not transpose_a:
        # One tall product instead of many small ones.
        tall = reshape(a, (size_of(a.shape[:-1]), a.shape[-1]))
        out = _matmul(tall, b, False, transpose_b, bias)
        return reshape(out, (*a.shape[:-1], out.shape[-1]))
    if bias is None:
        bias = nothing(b.spec.dtype, b.spec.device)
    # A compiled step may set `relu`: the op's result is max(out, 0) then.
    turns = {"transpose_a": transpose_a, "transpose_b": transpose_b}
    return apply(_MATMUL, a, b, bias, **turns, relu=False)


def matmul(a: Any, b: Any) -> Array:
    """Return the matrix product, with the array API's rules for vectors and batches.

    Parameters
    ----------
    a
        (..., m, k) or (k,).
    b
        (..., k, n) or (k,).

    Returns
    -------
    Array
        (..., m, n), less the axes that a vector does not have. Batches broadcast.

    Examples
    --------
    >>> from numbagrad.array import asarray
    >>> matmul(asarray([[1.0, 2.0]]), asarray([3.0, 4.0]))
    Array([11.], dtype=float32)
    """
    a, b = promote("matmul", a, b)
    if len(a.spec.shape) == len(b.spec.shape) == 2:
        return _matmul(a, b, False, False)
    if a.ndim == 0 or b.ndim == 0:
        raise ShapeError(f"matmul: needs vectors or matrices, got shapes {a.shape} and {b.shape}")
    if a.dtype.kind != "f":
        raise DTypeError(f"matmul: needs float32 or float64, got {a.dtype}; use x.astype()")
    vector_a, vector_b = a.ndim == 1, b.ndim == 1
    if a.shape[-1] != b.shape[0 if vector_b else -2]:
        raise ShapeError(
            f"matmul: inner extents differ: {a.shape} @ {b.shape} pairs {a.shape[-1]} with "
            f"{b.shape[0 if vector_b else -2]}"
        )
    if vector_a:
        a = reshape(a, (1, a.size))
    if vector_b:
        b = reshape(b, (b.size, 1))
    if a.ndim > 2 and b.ndim > 2 and a.shape[:-2] != b.shape[:-2]:
        batch = broadcast_shape("matmul", a.shape[:-2], b.shape[:-2])
        a, b = broadcast_to(a, batch + a.shape[-2:]), broadcast_to(b, batch + b.shape[-2:])
    out = _matmul(a, b, False, False)
    if vector_a or vector_b:
        kept = out.shape[:-2]
        kept += () if vector_a else (out.shape[-2],)
        kept += () if vector_b else (out.shape[-1],)
        out = reshape(out, kept)
    return out


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Return ``x @ weight + bias``.

    Parameters
    ----------
    x
        (..., in_features).
    weight
        (in_features, out_features).
    bias
        (out_features,), or None.
    """
    require_arrays("linear", x=x, weight=weight)
    row, matrix = x.spec.shape, weight.spec.shape
    if len(matrix) != 2 or row[-1:] != matrix[:1]:
        raise ShapeError(
            f"linear: x {row} and weight {matrix} do not fit; the last extent of x must be "
            "in_features, the first of weight"
        )
    if bias is None:
        return matmul(x, weight)
    require_arrays("linear", bias=bias)
    if bias.spec.shape != matrix[1:]:
        raise ShapeError(
            f"linear: bias {bias.shape} must have shape {matrix[1:]}, one for each output"
        )
    if len(row) < 2:
        return matmul(x, weight) + bias
    return _matmul(x, weight, False, False, bias)


__all__ = ["linear", "matmul"]
