"""Rows of a table, looked up by number."""

from __future__ import annotations

import numpy as np

from ..array import Array
from ..dispatch import Call, Op, Split, Views, apply, register
from ..errors import DTypeError, ShapeError
from .elementwise import require_arrays, require_float


def _infer(weight, indices):
    require_float("embedding", weight)
    if weight.ndim != 2:
        raise ShapeError(f"embedding: weight must be (rows, features), got shape {weight.shape}")
    if indices.dtype.kind not in "iu":
        raise DTypeError(f"embedding: indices must be integers, got {indices.dtype}")
    return indices.shape + weight.shape[1:], weight.dtype


def _views(call: Call) -> Views:
    weight, indices = call.inputs
    return Views((weight.shape, (indices.size,)), ((indices.size, weight.shape[1]),), (0,))


def _split(call: Call) -> list[Split]:
    return [Split(call.inputs[1].size, (0, 1), (1, "min"), lambda scalars, lo, hi: (lo,))]


def _vjp(grad_out, indices, specs):
    return apply(_EMBEDDING_BACKWARD, grad_out, indices, rows=specs[0].shape[0]), None


def _check_index(position, inputs, call):
    weight, indices = call.inputs
    place = tuple(int(i) for i in np.unravel_index(position, indices.shape))
    raise IndexError(
        f"embedding: indices{list(place)} is {inputs[1].numpy().reshape(-1)[position]}; a weight "
        f"of shape {weight.shape} has rows 0 to {weight.shape[0] - 1}"
    )


_EMBEDDING = register(
    Op(
        "embedding",
        _infer,
        "embedding_forward",
        _vjp,
        arrange=_views,
        split=_split,
        check=_check_index,
    )
)


def _backward_views(call: Call) -> Views:
    indices, out = call.inputs[1], call.outputs[0]
    return Views(((indices.size, out.shape[1]), (indices.size,)), (out.shape,), (0,))


def _backward_split(call: Call) -> list[Split]:
    # A shard owns rows of the table, and looks through all indices for its own.
    return [Split(call.rows, (0, 0), (1,), lambda scalars, lo, hi: (lo,))]


def _backward_workspace(call: Call):
    on_cpu = call.device == "cpu"
    sizes = (call.rows + 1, call.inputs[1].size) if on_cpu else (0, 0)
    return [((size,), np.int64) for size in sizes]


#: The sum of the gradients of each row's uses.
_EMBEDDING_BACKWARD = register(
    Op(
        "embedding_backward",
        lambda grad_out, indices, *, rows: ((rows, grad_out.shape[-1]), grad_out.dtype),
        "embedding_backward",
        lambda grad_out, indices: (apply(_EMBEDDING, grad_out, indices), None),
        arrange=_backward_views,
        split=_backward_split,
        workspace=_backward_workspace,
    )
)


def embedding(weight: Array, indices: Array) -> Array:
    """Return the rows of ``weight`` that ``indices`` names.

    Parameters
    ----------
    weight
        (rows, features), floats.
    indices
        Integers from 0 to rows - 1, of any shape.

    Returns
    -------
    Array
        (..., features), with the shape of ``indices`` in front.

    Raises
    ------
    ShapeError, DTypeError
        If ``weight`` is not a table of floats, or ``indices`` are not integers.
    IndexError
        If an index is negative or too large; on CUDA at the next read of any value.

    Examples
    --------
    >>> from numbagrad.array import asarray
    >>> embedding(asarray([[1.0, 2.0], [3.0, 4.0]]), asarray([1, 1]))
    Array([[3., 4.],
           [3., 4.]], dtype=float32)
    """
    require_arrays("embedding", weight=weight, indices=indices)
    return apply(_EMBEDDING, weight, indices)


__all__ = ["embedding"]
