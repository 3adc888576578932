"""Reductions over any axes: sum, mean, max, min, argmax."""

from __future__ import annotations

import numpy as np

from ..array import FLOATS, Array, Spec, size_of
from ..dispatch import Call, Op, Split, Views, apply, not_an_array, register
from ..errors import DTypeError, ShapeError
from .elementwise import astype, require_arrays
from .pieces import pieces_of_sum, room_for_pieces
from .shaping import Axis, normalise_axes, one_axis, permute_dims, reshape

# An op reduces the run of axes `first` to `stop`; the functions below permute others into one.


def _reduced(x: Spec, first: int, stop: int, keepdims: bool) -> tuple[int, ...]:
    middle = (1,) * (stop - first) if keepdims else ()
    return x.shape[:first] + middle + x.shape[stop:]


def _extents(shape: tuple[int, ...], first: int, stop: int) -> tuple[int, int, int]:
    """Return (outer, reduce, inner)."""
    return size_of(shape[:first]), size_of(shape[first:stop]), size_of(shape[stop:])


def _views(call: Call) -> Views:
    _, reduce, inner = _extents(call.inputs[0].shape, call.first, call.stop)
    return Views(
        tuple((spec.size,) for spec in call.inputs),
        tuple((spec.size,) for spec in call.outputs),
        (reduce, inner),
    )


def _split_outer(call: Call) -> Split:
    outer, reduce, inner = _extents(call.inputs[0].shape, call.first, call.stop)
    return Split(outer, (reduce * inner,), (inner,) * len(call.outputs))


# A sum and a mean are one kernel, which multiplies by a scale; so are their gradients, which give
# every element the gradient of its sum. Each is the other's gradient.


def _additive(name: str, is_mean: bool) -> tuple[Op, Op]:
    """Register a sum or a mean and its gradient."""

    def infer(x, *, first, stop, keepdims):
        if x.dtype.kind not in "fiu":
            raise DTypeError(f"{name}: dtype {x.dtype} makes no sense here; use x.astype('int64')")
        return _reduced(x, first, stop, keepdims), x.dtype

    def views(call):
        shape = call.inputs[0].shape if "keepdims" in call.params else call.shape
        _, reduce, inner = _extents(shape, call.first, call.stop)
        scale = call.inputs[0].dtype.type(1 / reduce if is_mean else 1)
        return Views(
            tuple((spec.size,) for spec in call.inputs),
            tuple((spec.size,) for spec in call.outputs),
            (reduce, inner, scale),
        )

    def shorter(scalars, lo, hi):
        return hi - lo, *scalars[1:]

    def split(call):
        outer, reduce, inner = _extents(call.inputs[0].shape, call.first, call.stop)
        splits = [_split_outer(call)]
        if outer == 1:  # then the reduced axis leads, and can be cut into partial sums
            splits.append(Split(reduce, (inner,), ("sum",), shorter))
        return splits

    def split_backward(call):
        outer, reduce, inner = _extents(call.shape, call.first, call.stop)
        splits = [Split(outer, (inner,), (reduce * inner,))]
        if outer == 1:
            splits.append(Split(reduce, (0,), (inner,), shorter))
        return splits

    def cost(call):  # reading alone is twice as fast as reading and writing
        return 0, call.inputs[0].size * call.inputs[0].dtype.itemsize / 2

    def vjp(grad_out, specs, first, stop):
        return apply(backward, grad_out, shape=specs[0].shape, first=first, stop=stop)

    def backward_vjp(grad_out, specs, first, stop):
        keepdims = specs[0].ndim == grad_out.ndim
        return apply(forward, grad_out, first=first, stop=stop, keepdims=keepdims)

    def workspace_cuda(call):
        extents = _extents(call.inputs[0].shape, call.first, call.stop)
        out = call.outputs[0]
        return room_for_pieces(out.size, pieces_of_sum(*extents), out.dtype)

    forward = Op(
        name,
        infer,
        "sum_forward",
        vjp,
        arrange=views,
        split=split,
        workspace={"cuda": workspace_cuda},
        cost=cost,
    )
    backward = Op(
        f"{name}_backward",
        lambda grad_out, *, shape, first, stop: (shape, grad_out.dtype),
        "sum_backward",
        backward_vjp,
        arrange=views,
        split=split_backward,
    )
    return register(forward), register(backward)


_SUM, _ = _additive("sum", is_mean=False)
_MEAN, _ = _additive("mean", is_mean=True)


def _extremum_infer(name):
    def infer(x, *, first, stop, keepdims):
        _, reduce, _ = _extents(x.shape, first, stop)
        if reduce == 0 and x.ndim:
            raise ShapeError(f"{name}: shape {x.shape} has no elements along the reduced axes")
        shape = _reduced(x, first, stop, keepdims)
        return (shape, x.dtype), (shape, np.dtype(np.int64))

    return infer


def _extremum_vjp(grad_out, index, specs, first, stop):
    shape = specs[0].shape
    return apply(_PLACE, grad_out, index, shape=shape, first=first, stop=stop)


def _extremum(name: str) -> Op:
    return register(
        Op(
            name,
            _extremum_infer(name),
            f"{name}_forward",
            _extremum_vjp,
            outputs=("out", "index"),
            arrange=_views,
            split=lambda call: [_split_outer(call)],
        )
    )


_MAX, _MIN = _extremum("max"), _extremum("min")


def _pair_views(call: Call) -> Views:
    shape = call.shape
    _, reduce, inner = _extents(shape, call.first, call.stop)
    return Views(
        tuple((spec.size,) for spec in call.inputs), ((call.outputs[0].size,),), (reduce, inner)
    )


def _place_split(call: Call) -> list[Split]:
    outer, reduce, inner = _extents(call.shape, call.first, call.stop)
    return [Split(outer, (inner, inner), (reduce * inner,))]


def _pick_split(call: Call) -> list[Split]:
    outer, reduce, inner = _extents(call.shape, call.first, call.stop)
    return [Split(outer, (reduce * inner, inner), (inner,))]


_PLACE = register(
    Op(
        "place",
        lambda x, index, *, shape, first, stop: (shape, x.dtype),
        "place_forward",
        lambda grad_out, index, first, stop: (
            apply(_PICK, grad_out, index, shape=grad_out.shape, first=first, stop=stop),
            None,
        ),
        arrange=_pair_views,
        split=_place_split,
    )
)
_PICK = register(
    Op(
        "pick",
        lambda x, index, *, shape, first, stop: (index.shape, x.dtype),
        "pick_forward",
        lambda grad_out, index, shape, first, stop: (
            apply(_PLACE, grad_out, index, shape=shape, first=first, stop=stop),
            None,
        ),
        arrange=_pair_views,
        split=_pick_split,
    )
)


def _reduce(op: Op, x: Array, axis: Axis, keepdims: bool) -> Array | tuple[Array, ...]:
    """Run a reduction; axes that do not lie together are brought to the end first."""
    if axis is None:  # the usual case, and the quick one
        return apply(op, x, first=0, stop=len(x.spec.shape), keepdims=keepdims)
    axes = normalise_axes(op.name, axis, x.ndim)
    if not axes:
        return apply(op, x, first=x.ndim, stop=x.ndim, keepdims=keepdims)
    first, stop = axes[0], axes[-1] + 1
    if stop - first == len(axes):
        return apply(op, x, first=first, stop=stop, keepdims=keepdims)
    kept = tuple(one for one in range(x.ndim) if one not in axes)
    turned = permute_dims(x, kept + axes)
    out = apply(op, turned, first=len(kept), stop=x.ndim, keepdims=False)
    if not keepdims:
        return out
    shape = tuple(1 if one in axes else extent for one, extent in enumerate(x.shape))
    return tuple(reshape(o, shape) for o in out) if isinstance(out, tuple) else reshape(out, shape)


_SUMMED = {*FLOATS, np.dtype(np.int64)}  # dtypes of sums


def sum(x: Array, axis: Axis = None, *, keepdims: bool = False) -> Array:
    """Return the sum over axes.

    Parameters
    ----------
    x
        Floats or integers. Booleans, and integers narrower than int64, are added up as int64.
    axis
        One axis, several, or None for all.
    keepdims
        Keep the reduced axes with extent 1.

    Examples
    --------
    >>> from numbagrad.array import asarray
    >>> sum(asarray([[1.0, 2.0], [3.0, 4.0]]), axis=0)
    Array([4., 6.], dtype=float32)
    """
    if not isinstance(x, Array):
        raise not_an_array("sum", "x", x)
    if x.spec.dtype not in _SUMMED:
        x = astype(x, np.int64)
    return _reduce(_SUM, x, axis, keepdims)


def mean(x: Array, axis: Axis = None, *, keepdims: bool = False) -> Array:
    """Return the mean over axes; integers are averaged as float32."""
    require_arrays("mean", x=x)
    if x.dtype.kind != "f":
        x = astype(x, np.float32)
    if x.size == 0:
        axes = normalise_axes("mean", axis, x.ndim)
        if any(x.shape[one] == 0 for one in axes):
            raise ShapeError(f"mean: no elements along axis {axis} of shape {x.shape}")
    return _reduce(_MEAN, x, axis, keepdims)


def max(x: Array, axis: Axis = None, *, keepdims: bool = False) -> Array:
    """Return the largest element over axes; NaN if one is.

    The gradient goes to the first of equal elements.
    """
    require_arrays("max", x=x)
    return _reduce(_MAX, x, axis, keepdims)[0]


def min(x: Array, axis: Axis = None, *, keepdims: bool = False) -> Array:
    """Return the smallest element over axes; NaN if one is."""
    require_arrays("min", x=x)
    return _reduce(_MIN, x, axis, keepdims)[0]


def argmax(x: Array, axis: int | None = None, *, keepdims: bool = False) -> Array:
    """Return the index of the first largest element, along one axis or of the flattened array.

    Returns
    -------
    Array
        int64 indices.
    """
    require_arrays("argmax", x=x)
    if axis is not None:
        axis = one_axis("argmax", axis, x.ndim)
    return _reduce(_MAX, x, axis, keepdims)[1]


__all__ = ["argmax", "max", "mean", "min", "sum"]
