"""Ops that move elements and compute nothing: reshape, permute, slice, pad, join."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ..array import Array, Spec, asarray, size_of
from ..dispatch import Call, Op, Split, Views, apply, register
from ..errors import ShapeError
from .elementwise import (
    as_ints,
    broadcast_to,
    copy,
    flat,
    promote,
    require_arrays,
    require_same_dtype,
)

Axis = int | tuple[int, ...] | None


def normalise_axes(op: str, axis: Axis, ndim: int) -> tuple[int, ...]:
    """Return axes as sorted non-negative ints; None means all of them.

    Raises
    ------
    TypeError
        If one is not an int.
    ShapeError
        If one is out of range or named twice.
    """
    if axis is None:
        return tuple(range(ndim))
    if type(axis) is int and -ndim <= axis < ndim:
        return (axis % ndim,)  # the usual case, and the quick one
    axes = as_ints(op, "axis", axis)
    for one in axes:
        if not -ndim <= one < ndim:
            raise ShapeError(f"{op}: axis {one} is out of range for an array of {ndim} dimensions")
    normal = tuple(sorted(one % ndim for one in axes))
    if len(set(normal)) != len(normal):
        raise ShapeError(f"{op}: axis {axis} names a dimension twice")
    return normal


def one_axis(op: str, axis: int, ndim: int) -> int:
    """Return one axis as a non-negative int."""
    if not isinstance(axis, (int, np.integer)):
        raise TypeError(f"{op}: axis must be an int, got {axis!r}")
    return normalise_axes(op, axis, ndim)[0]


# ------------------------------------------------------------------ reshape


def _reshape_infer(x, *, shape):
    wanted = as_ints("reshape", "shape", shape)
    if wanted.count(-1) == 1:
        rest = size_of(tuple(extent for extent in wanted if extent != -1))
        if rest and x.size % rest == 0:
            wanted = tuple(x.size // rest if extent == -1 else extent for extent in wanted)
    if min(wanted, default=0) < 0 or size_of(wanted) != x.size:
        raise ShapeError(f"reshape: {x.size} elements of shape {x.shape} do not fit shape {shape}")
    return wanted, x.dtype


def _reshape_view(backend, call):
    shape = call.outputs[0].shape
    if shape == call.inputs[0].shape:
        return lambda data: data
    return lambda data: backend.reshape(data, shape)


_RESHAPE = register(
    Op(
        "reshape",
        _reshape_infer,
        None,
        lambda grad_out, specs: reshape(grad_out, specs[0].shape),
        view=_reshape_view,
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
    if type(shape) is not tuple:
        shape = as_ints("reshape", "shape", shape)
    return apply(_RESHAPE, x, shape=shape)


def flatten(x: Array, start_axis: int = 0) -> Array:
    """Return ``x`` with its axes from ``start_axis`` on merged into one.

    Examples
    --------
    >>> flatten(asarray(np.zeros((2, 3, 4))), start_axis=1).shape
    (2, 12)
    """
    require_arrays("flatten", x=x)
    first = one_axis("flatten", start_axis, x.ndim) if x.ndim else 0
    return reshape(x, (*x.shape[:first], size_of(x.shape[first:])))


def expand_dims(x: Array, axis: int) -> Array:
    """Return ``x`` with a new axis of extent 1, which becomes number ``axis``."""
    require_arrays("expand_dims", x=x)
    at = one_axis("expand_dims", axis, x.ndim + 1)
    return reshape(x, (*x.shape[:at], 1, *x.shape[at:]))


def squeeze(x: Array, axis: Axis = None) -> Array:
    """Return ``x`` without axes of extent 1: all such, or those named.

    Raises
    ------
    ShapeError
        If a named axis has another extent.
    """
    require_arrays("squeeze", x=x)
    if axis is None:
        return reshape(x, tuple(extent for extent in x.shape if extent != 1))
    axes = normalise_axes("squeeze", axis, x.ndim)
    if any(x.shape[one] != 1 for one in axes):
        raise ShapeError(f"squeeze: axis {axis} of shape {x.shape} must have extent 1")
    return reshape(x, tuple(extent for one, extent in enumerate(x.shape) if one not in axes))


# ------------------------------------------------------------------ permute


def _permute_infer(x, *, axes):
    return tuple(x.shape[axis] for axis in axes), x.dtype


def _strides(shape: tuple[int, ...]) -> list[int]:
    """Return the strides of a contiguous array in elements."""
    return [size_of(shape[axis + 1 :]) for axis in range(len(shape))]


def _permute_views(call: Call) -> Views:
    strides = _strides(call.inputs[0].shape)
    layout = np.array([call.outputs[0].shape, [strides[axis] for axis in call.axes]], np.int64)
    return flat(call, layout, 0)


def _split_rows(call: Call) -> list[Split]:
    """Cut the output's rows; the last kernel parameter is the number of the first one."""
    *outer, width = call.outputs[0].shape
    rows = size_of(tuple(outer)) if width else 0
    return [Split(rows, (0,), (width,), lambda scalars, lo, hi: (*scalars[:-1], lo))]


_PERMUTE_DIMS = register(
    Op(
        "permute_dims",
        _permute_infer,
        "permute_dims_forward",
        lambda grad_out, axes: permute_dims(grad_out, tuple(np.argsort(axes).tolist())),
        arrange=_permute_views,
        split=_split_rows,
    )
)


def permute_dims(x: Array, axes: tuple[int, ...]) -> Array:
    """Return ``x`` with its axes in another order.

    Raises
    ------
    ShapeError
        If ``axes`` does not name each axis once.
    """
    require_arrays("permute_dims", x=x)
    given = as_ints("permute_dims", "axes", axes)
    normal, each = given, list(range(x.ndim))
    if sorted(normal) != each:
        normal = tuple(axis % x.ndim if -x.ndim <= axis < x.ndim else axis for axis in given)
    if sorted(normal) != each:
        raise ShapeError(f"permute_dims: axes {given} must name each of {x.ndim} axes once")
    if list(normal) == each:
        return reshape(x, x.shape)
    return apply(_PERMUTE_DIMS, x, axes=normal)


# -------------------------------------------------------------------- slice
#
# A slice takes `count` elements along each axis: start, start + step, start + 2 step, ...
# Its gradient sets a slice of zeros, and the gradient of that is a slice again.


def _slice_infer(x, *, starts, steps, counts):
    return counts, x.dtype


def _slice_views(call: Call) -> Views:
    strides = np.array(_strides(call.inputs[0].shape), np.int64)
    layout = np.stack([np.array(call.counts, np.int64), strides * call.steps])
    return flat(call, layout, int(strides @ call.starts), 0)


def _slice_vjp(grad_out, specs, starts, steps):
    return set_slice(_zero(grad_out), grad_out, specs[0].shape, starts, steps, grad_out.shape)


_SLICE = register(
    Op(
        "slice",
        _slice_infer,
        "slice_forward",
        _slice_vjp,
        arrange=_slice_views,
        split=_split_rows,
    )
)


# Neighbouring rows, in whatever shape.


def _rows_infer(x, *, start, stop, shape):
    return shape, x.dtype


def _rows_view(backend, call):
    start, stop, shape = call.start, call.stop, call.shape
    if shape == (stop - start, *call.inputs[0].shape[1:]):
        return lambda data: backend.rows(data, start, stop)
    return lambda data: backend.reshape(backend.rows(data, start, stop), shape)


def _rows_vjp(grad_out, specs, start, stop):
    shape = specs[0].shape
    starts, counts = (start,) + (0,) * (len(shape) - 1), (stop - start, *shape[1:])
    rows = grad_out if grad_out.shape == counts else reshape(grad_out, counts)
    return set_slice(_zero(grad_out), rows, shape, starts, (1,) * len(shape), counts)


_ROWS = register(
    Op(
        "rows",
        _rows_infer,
        None,
        _rows_vjp,
        view=_rows_view,
    )
)


def take_slice(
    x: Array, starts: tuple[int, ...], steps: tuple[int, ...], counts: tuple[int, ...]
) -> Array:
    """Return ``counts`` elements along each axis, every ``steps``-th from ``starts`` on.

    Neighbouring rows share the buffer of ``x``; anything else is copied.
    """
    op, params = way_to_slice(x.shape, starts, steps, counts, counts)
    return apply(op, x, **params)


def way_to_slice(
    extents: tuple[int, ...],
    starts: tuple[int, ...],
    steps: tuple[int, ...],
    counts: tuple[int, ...],
    shape: tuple[int, ...],
) -> tuple[Op, dict[str, Any]]:
    """Return the op that takes a slice of an array, and its parameters.

    If it copies nothing it gives the slice in the shape, else in that of ``counts``.
    """
    if set(steps) <= {1} and counts[1:] == extents[1:]:
        if counts == extents:
            return _RESHAPE, {"shape": shape}
        return _ROWS, {"start": starts[0], "stop": starts[0] + counts[0], "shape": shape}
    return _SLICE, {"starts": starts, "steps": steps, "counts": counts}


def _set_slice_infer(x, value, *, shape, starts, steps, counts):
    require_same_dtype("set_slice", x, value)
    return shape, x.dtype


def _set_slice_views(call: Call) -> Views:
    value = call.inputs[1]
    strides = _strides(value.shape) if value.shape == call.counts else [0] * len(call.counts)
    rows = [call.shape, call.starts, call.steps, call.counts, strides]
    return flat(call, np.array(rows, np.int64), 0)


def _set_slice_split(call: Call) -> list[Split]:
    (split,) = _split_rows(call)
    width = call.shape[-1] if call.inputs[0].shape == call.shape else 0
    return [Split(split.size, (width, 0), split.outputs, split.scalars)]


def _set_slice_vjp(grad_out, specs, needs, shape, starts, steps, counts):
    grad_x = grad_value = None
    if needs[0]:
        grad_x = set_slice(grad_out, _zero(grad_out), shape, starts, steps, counts)
        grad_x = _summed(grad_x, specs[0])
    if needs[1]:
        grad_value = _summed(take_slice(grad_out, starts, steps, counts), specs[1])
    return grad_x, grad_value


def _summed(grad: Array, spec: Spec) -> Array:
    """Return the gradient of an operand whose one element may have stood for all."""
    return grad if grad.shape == spec.shape else grad.sum()


_SET_SLICE = register(
    Op(
        "set_slice",
        _set_slice_infer,
        "set_slice_forward",
        _set_slice_vjp,
        arrange=_set_slice_views,
        split=_set_slice_split,
    )
)


def set_slice(
    x: Array,
    value: Array,
    shape: tuple[int, ...],
    starts: tuple[int, ...],
    steps: tuple[int, ...],
    counts: tuple[int, ...],
) -> Array:
    """Return ``x``, of a shape, with a slice of it replaced by ``value``, of shape ``counts``.

    Either may be a 0-d array, which stands for an array full of its element.
    """
    if counts == shape and set(steps) <= {1}:
        return broadcast_to(reshape(value, value.shape), shape)
    return apply(_SET_SLICE, x, value, shape=shape, starts=starts, steps=steps, counts=counts)


def _zero(like: Array) -> Array:
    return asarray(np.zeros((), like.dtype), device=like.device)


def flip(x: Array, axis: Axis = None) -> Array:
    """Return ``x`` with the order of its elements reversed along axes; None means all.

    Examples
    --------
    >>> flip(asarray([1, 2, 3]))
    Array([3, 2, 1], dtype=int64)
    """
    require_arrays("flip", x=x)
    axes = normalise_axes("flip", axis, x.ndim)
    flipped = [one in axes for one in range(x.ndim)]
    starts = tuple(extent - 1 if f else 0 for f, extent in zip(flipped, x.shape, strict=True))
    return take_slice(x, starts, tuple(-1 if f else 1 for f in flipped), x.shape)


def pad(x: Array, pad_width: Any, *, value: float = 0) -> Array:
    """Return ``x`` with elements of one value added around it.

    Parameters
    ----------
    x
        Any shape.
    pad_width
        ``((before, after), ...)``, a pair for each axis; one pair, or one number, serves all.
    value
        What to pad with, taken in the dtype of ``x``.

    Raises
    ------
    ShapeError
        If a width is negative, or the pairs do not fit the axes.

    Examples
    --------
    >>> pad(asarray([1, 2]), (1, 2))
    Array([0, 1, 2, 0, 0], dtype=int64)
    """
    require_arrays("pad", x=x)
    try:
        widths = np.broadcast_to(pad_width, (x.ndim, 2)).tolist()
    except ValueError:
        widths = [[-1, -1]]
    if any(not isinstance(width, int) or width < 0 for pair in widths for width in pair):
        raise ShapeError(
            f"pad: pad_width {pad_width} does not fit shape {x.shape}; give each axis a pair "
            "(before, after) of ints >= 0"
        )
    shape = tuple(extent + sum(pair) for extent, pair in zip(x.shape, widths, strict=True))
    fill = asarray(np.asarray(value, x.dtype), device=x.device)
    starts = tuple(before for before, _ in widths)
    return set_slice(fill, x, shape, starts, (1,) * x.ndim, x.shape)


def split(x: Array, sections: int | Sequence[int], axis: int = 0) -> list[Array]:
    """Cut ``x`` along an axis into equal parts, or before each of several places.

    Parameters
    ----------
    x
        At least one axis.
    sections
        The number of equal parts, or the ascending places at which a new part begins.
    axis
        Which axis to cut.

    Raises
    ------
    ShapeError
        If the extent is not a multiple of the number of parts.

    Examples
    --------
    >>> split(asarray([1, 2, 3, 4]), [1])
    [Array([1], dtype=int64), Array([2, 3, 4], dtype=int64)]
    """
    require_arrays("split", x=x)
    axis = one_axis("split", axis, x.ndim)
    extent = x.shape[axis]
    if isinstance(sections, (int, np.integer)):
        if sections < 1 or extent % sections:
            raise ShapeError(
                f"split: axis {axis} of shape {x.shape} does not divide into {sections} equal parts"
            )
        places = range(extent // sections, extent, extent // sections) if extent else ()
    else:
        places = as_ints("split", "sections", sections)
    bounds = [0, *(min(place, extent) for place in places), extent]
    if bounds != sorted(bounds):
        raise ShapeError(f"split: places {list(places)} must ascend from 0")
    return [_part(x, axis, lo, hi) for lo, hi in pairwise(bounds)]


def _part(x: Array, axis: int, lo: int, hi: int) -> Array:
    """Return what lies between two places along an axis."""
    starts = tuple(lo if one == axis else 0 for one in range(x.ndim))
    return take_slice(x, starts, (1,) * x.ndim, (*x.shape[:axis], hi - lo, *x.shape[axis + 1 :]))


# --------------------------------------------------------------------- join


def _concat_infer(x, y, *, axis):
    require_same_dtype("concat", x, y)
    return (*x.shape[:axis], x.shape[axis] + y.shape[axis], *x.shape[axis + 1 :]), x.dtype


def _concat_widths(call: Call) -> tuple[int, ...]:
    """Return the extent of each array from the axis on."""
    return tuple(size_of(spec.shape[call.axis :]) for spec in (*call.inputs, *call.outputs))


def _concat_split(call: Call) -> list[Split]:
    width_x, width_y, width = _concat_widths(call)
    return [Split(size_of(call.outputs[0].shape[: call.axis]), (width_x, width_y), (width,))]


_CONCAT = register(
    Op(
        "concat",
        _concat_infer,
        "concat_forward",
        lambda grad_out, specs, axis: tuple(split(grad_out, [specs[0].shape[axis]], axis)),
        arrange=lambda call: flat(call, *_concat_widths(call)[:2]),
        split=_concat_split,
    )
)


def _listed(op: str, arrays: Iterable[Array]) -> list[Array]:
    """Return the arrays to be joined, if that is what they are."""
    if isinstance(arrays, (Array, np.ndarray)):
        raise TypeError(f"{op}: takes a list of arrays, got one array; pass {op}([x, y])")
    arrays = list(arrays)
    if not arrays:
        raise ShapeError(f"{op}: needs at least one array")
    device = next((x.device for x in arrays if isinstance(x, Array)), None)
    return [x if isinstance(x, Array) else asarray(x, device=device) for x in arrays]


def concat(arrays: Iterable[Array], *, axis: int | None = 0) -> Array:
    """Join arrays along an axis that they have; None joins them flattened.

    Parameters
    ----------
    arrays
        At least one; their shapes differ along ``axis`` at most. Mixed dtypes are brought to one.
    axis
        Which axis to join along.

    Raises
    ------
    ShapeError
        If there is no array, or two shapes do not fit.

    Examples
    --------
    >>> concat([asarray([1.0, 2.0]), asarray([3.0])])
    Array([1., 2., 3.], dtype=float32)
    """
    arrays = _listed("concat", arrays)
    if axis is None:
        arrays, axis = [reshape(x, (x.size,)) for x in arrays], 0
    axis = one_axis("concat", axis, arrays[0].ndim)
    around = {(x.shape[:axis], x.shape[axis + 1 :]) for x in arrays}
    if len(around) > 1:
        shapes = " and ".join(map(str, dict.fromkeys(x.shape for x in arrays)))
        raise ShapeError(f"concat: shapes {shapes} may differ along axis {axis} only")
    if len(arrays) == 1:
        return copy(arrays[0])
    arrays = list(promote("concat", *arrays))
    while len(arrays) > 1:  # in pairs, then pairs of pairs: each element moves log2(n) times
        pairs = zip(arrays[::2], arrays[1::2], strict=False)
        odd = arrays[-1:] if len(arrays) % 2 else []
        arrays = [apply(_CONCAT, x, y, axis=axis) for x, y in pairs] + odd
    return arrays[0]


def stack(arrays: Iterable[Array], *, axis: int = 0) -> Array:
    """Join arrays of one shape along a new axis, which becomes number ``axis``.

    Examples
    --------
    >>> stack([asarray([1, 2]), asarray([3, 4])], axis=1)
    Array([[1, 3],
           [2, 4]], dtype=int64)
    """
    arrays = _listed("stack", arrays)
    shapes = {x.shape for x in arrays}
    if len(shapes) > 1:
        raise ShapeError(f"stack: shapes {' and '.join(map(str, sorted(shapes)))} differ")
    return concat([expand_dims(x, axis) for x in arrays], axis=axis)


__all__ = [
    "concat",
    "expand_dims",
    "flatten",
    "flip",
    "pad",
    "permute_dims",
    "reshape",
    "split",
    "squeeze",
    "stack",
]
