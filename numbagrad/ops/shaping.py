"""Ops that move elements and compute nothing: reshape, permute, join, slice, pad."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..array import Array, size_of
from ..dispatch import Call, Op, Split, Views, apply, register
from ..errors import ShapeError

# ------------------------------------------------------------------ reshape


def _reshape_infer(x, *, shape):
    return shape, x.dtype


_RESHAPE = register(
    Op(
        "reshape",
        _reshape_infer,
        None,
        lambda grad_out, specs: reshape(grad_out, specs[0].shape),
        view=lambda backend, data, call: backend.reshape(data, call.shape),
    )
)


def reshape(x: Array, shape: int | tuple[int, ...]) -> Array:
    """Return the same elements in another shape; one extent may be -1. Nothing is copied.

    Examples
    --------
    >>> from numbagrad.array import asarray
    >>> reshape(asarray([[1, 2], [3, 4]]), (-1,)).shape
    (4,)
    """
    wanted = (shape,) if isinstance(shape, (int, np.integer)) else tuple(int(e) for e in shape)
    if wanted.count(-1) == 1:
        rest = size_of(tuple(extent for extent in wanted if extent != -1))
        if rest and x.size % rest == 0:
            wanted = tuple(x.size // rest if extent == -1 else extent for extent in wanted)
    if any(extent < 0 for extent in wanted) or size_of(wanted) != x.size:
        raise ShapeError(f"reshape: {x.size} elements of shape {x.shape} do not fit shape {shape}")
    return apply(_RESHAPE, x, shape=wanted)


# ------------------------------------------------------------------ permute


def _permute_infer(x, *, axes):
    return tuple(x.shape[axis] for axis in axes), x.dtype


def _permute_views(call: Call) -> Views:
    x, out = call.inputs[0], call.outputs[0]
    strides = [size_of(x.shape[axis + 1 :]) for axis in call.axes]
    layout = np.array([out.shape, strides], np.int64)
    return Views(((x.size,),), ((out.size,),), (layout, 0))


def _permute_split(call: Call) -> list[Split]:
    out = call.outputs[0]
    width = out.shape[-1]
    rows = out.size // width if width else 0
    return [Split(rows, (0,), (width,), lambda scalars, lo, hi: (scalars[0], lo))]


_PERMUTE_DIMS = register(
    Op(
        "permute_dims",
        _permute_infer,
        "permute_dims_forward",
        lambda grad_out, axes: permute_dims(grad_out, tuple(np.argsort(axes).tolist())),
        arrange=_permute_views,
        split=_permute_split,
    )
)


def permute_dims(x: Array, axes: tuple[int, ...]) -> Array:
    """Return ``x`` with its axes in another order.

    Raises
    ------
    ShapeError
        If ``axes`` does not name each axis once.
    """
    given = tuple(axes)
    normal = tuple(int(axis) % x.ndim if -x.ndim <= axis < x.ndim else axis for axis in given)
    if sorted(normal) != list(range(x.ndim)):
        raise ShapeError(f"permute_dims: axes {given} must name each of {x.ndim} axes once")
    if normal == tuple(range(x.ndim)):
        return x
    return apply(_PERMUTE_DIMS, x, axes=normal)


__all__ = ["permute_dims", "reshape"]
