"""Indexing as NumPy's: slices, integer and boolean arrays, and assignment to what they select.

``x[key]`` goes two steps. Ints, slices, ``None`` and ``...`` take a slice. Index arrays are then
brought together into one, which takes rows of the slice: ``x[i, j]`` is ``x``, its first two axes
seen as one, at ``i * extent + j``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from ..array import Array, Spec, State, Symbol, asarray, require_same_device, size_of
from ..dispatch import Call, Op, Split, Views, apply, register, state
from ..errors import DTypeError, GraphError, ShapeError, TraceError
from .elementwise import astype, broadcast_to, flat, maximum, require_arrays, where
from .optimisation import assign
from .shaping import one_axis, permute_dims, reshape, set_slice, take_slice, way_to_slice

# --------------------------------------------------------------------- take


def _outside(op: str, position: int, indices: Array, extent: int) -> None:
    """Raise the error for an index that a kernel found to be out of range."""
    place = tuple(int(i) for i in np.unravel_index(position, indices.shape))
    value = indices._host()[place]
    valid = f"valid are {-extent} to {extent - 1}" if extent else "it has no elements"
    raise IndexError(
        f"{op}: index {value} at position {place} of the indices is out of range for an axis of "
        f"extent {extent}; {valid}"
    )


def _extents(shape: tuple[int, ...], axis: int) -> tuple[int, int, int]:
    """Return (outer, rows, inner)."""
    return size_of(shape[:axis]), shape[axis], size_of(shape[axis + 1 :])


def _take_infer(x, indices, *, axis):
    return (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]), x.dtype


def _take_views(call: Call) -> Views:
    _, rows, inner = _extents(call.inputs[0].shape, call.axis)
    return flat(call, rows, inner, 0)


def _take_split(call: Call) -> list[Split]:
    outer, rows, inner = _extents(call.inputs[0].shape, call.axis)
    count = call.inputs[1].size
    if outer == 1:
        return [Split(count, (0, 1), (inner, "min"), lambda scalars, lo, hi: (*scalars[:2], lo))]
    return [Split(outer, (rows * inner, 0), (count * inner, "min"))]


def _take_vjp(grad_out, indices, specs, axis):
    return apply(_TAKE_BACKWARD, grad_out, indices, shape=specs[0].shape, axis=axis), None


_TAKE = register(
    Op(
        "take",
        _take_infer,
        "take_forward",
        _take_vjp,
        arrange=_take_views,
        split=_take_split,
        check=lambda position, inputs, call: _outside(
            "take", position, inputs[1], call.inputs[0].shape[call.axis]
        ),
    )
)


def _take_backward_views(call: Call) -> Views:
    _, rows, inner = _extents(call.shape, call.axis)
    return flat(call, rows, inner, 0, rows)


def _take_backward_split(call: Call) -> list[Split]:
    outer, rows, inner = _extents(call.shape, call.axis)
    count = call.inputs[1].size
    if outer == 1:
        return [Split(rows, (0, 0), (inner,), lambda scalars, lo, hi: (*scalars[:2], lo, hi - lo))]
    return [Split(outer, (count * inner, 0), (rows * inner,))]


_TAKE_BACKWARD = register(
    Op(
        "take_backward",
        lambda grad_out, indices, *, shape, axis: (shape, grad_out.dtype),
        "take_backward",
        lambda grad_out, indices, axis: (apply(_TAKE, grad_out, indices, axis=axis), None),
        arrange=_take_backward_views,
        split=_take_backward_split,
    )
)


def take(x: Array, indices: Any, axis: int = 0) -> Array:
    """Return the elements at ``indices`` along an axis; negative ones count from the end.

    Parameters
    ----------
    x
        At least one axis.
    indices
        Integers of any shape, which takes the place of the axis in the result.
    axis
        Which axis to index.

    Raises
    ------
    IndexError
        If an index is out of range.
    DTypeError
        If the indices are not integers.

    Examples
    --------
    >>> take(asarray([10, 20, 30]), [2, -3])
    Array([30, 10], dtype=int64)
    """
    require_arrays("take", x=x)
    axis = one_axis("take", axis, x.ndim)
    indices = indices if isinstance(indices, Array) else asarray(indices, device=x.device)
    if indices.dtype.kind not in "iu":
        raise DTypeError(f"take: indices must be integers, got {indices.dtype}")
    return apply(_TAKE, x, astype(indices, np.int64), axis=axis)


# ------------------------------------------------------- one index from many


_RAVEL_INDEX = register(
    Op(
        "ravel_index",
        lambda high, low, *, extent: (high.shape, high.dtype),
        "ravel_index_forward",
        arrange=lambda call: flat(call, call.extent, 0),
        split=lambda call: [
            Split(
                call.outputs[0].size,
                (1, 1),
                (1, "min"),
                lambda scalars, lo, hi: (scalars[0], lo),
            )
        ],
        check=lambda position, inputs, call: _outside("indexing", position, inputs[1], call.extent),
    )
)


def _flat_index(arrays: list[Array], extents: tuple[int, ...]) -> Array:
    """Return one index into the axes of these extents seen as one, of the arrays' joint shape."""
    try:
        shape = np.broadcast_shapes(*(index.shape for index in arrays))
    except ValueError:
        shapes = " and ".join(str(index.shape) for index in arrays)
        raise IndexError(f"indexing: index arrays of shapes {shapes} do not broadcast") from None
    if len(arrays) == 1:
        return arrays[0]
    index = broadcast_to(_index(0, arrays[0].device), shape)
    for low, extent in zip(arrays, extents, strict=True):
        index = apply(_RAVEL_INDEX, index, broadcast_to(low, shape), extent=extent)
    return index


def _index(value: Any, device: str) -> Array:
    return asarray(np.asarray(value, np.int64), device=device)


# --------------------------------------------------------------------- keys


@dataclass(frozen=True)
class _Key:
    """What ``x[key]`` selects: a slice of x, its shape, and arrays that index axes of that."""

    extents: tuple[int, ...]  # of x
    starts: tuple[int, ...]
    steps: tuple[int, ...]
    counts: tuple[int, ...]
    shape: tuple[int, ...]
    arrays: tuple[tuple[int, Array], ...]

    @staticmethod
    def of(x: Array, key: Any) -> _Key:
        """Make sense of a key, or raise IndexError."""
        plain = _plain(key)
        return _Key._made(x, key) if plain is None else _Key._known(x.spec, plain)

    @staticmethod
    @lru_cache(maxsize=4096)
    def _known(x: Spec, plain: tuple) -> _Key:
        items = [slice(*item) if isinstance(item, tuple) else item for item in plain]
        return _Key._made(x, tuple(items))

    @staticmethod
    def _made(x: Array | Spec, key: Any) -> _Key:
        slices, shape, arrays = [], [], []
        for item in _per_axis(x, key):
            if item is None:
                shape.append(1)
                continue
            extent = x.shape[len(slices)]
            if isinstance(item, int):
                if not -extent <= item < extent:
                    raise IndexError(
                        f"indexing: index {item} is out of range for axis {len(slices)} of shape "
                        f"{x.shape}"
                    )
                slices.append((item % extent, 1, 1))
                continue
            if isinstance(item, Array):
                arrays.append((len(shape), item))
                item = slice(None)
            start, stop, step = item.indices(extent)
            slices.append((start, step, len(range(start, stop, step))))
            shape.append(slices[-1][2])
        starts, steps, counts = zip(*slices, strict=True) if slices else ((), (), ())
        return _Key(x.shape, starts, steps, counts, tuple(shape), tuple(arrays))

    @cached_property
    def way_to_slice(self) -> tuple[Op, dict[str, Any]]:
        """The op that takes the slice, and its parameters."""
        return way_to_slice(self.extents, self.starts, self.steps, self.counts, self.shape)


def _plain(key: Any) -> tuple | None:
    """Return a key as what can be looked up, if it holds but ints, slices, None and ``...``."""
    plain = []
    for item in key if type(key) is tuple else (key,):
        if type(item) is slice:
            item = start, stop, step = item.start, item.stop, item.step
            if not (type(start) in _PLAIN and type(stop) in _PLAIN and type(step) in _PLAIN):
                return None
        elif type(item) not in _PLAIN:
            return None
        plain.append(item)
    return tuple(plain)


_PLAIN = {int, type(None), type(Ellipsis)}


def _per_axis(x: Array | Spec, key: Any) -> list[int | slice | Array | None]:
    """Return one item for each axis of x, and None for each new one.

    ``...`` becomes slices, a mask the indices at which it holds, and an int beside arrays one too.
    """
    given = [_item(x, item) for item in (key if isinstance(key, tuple) else (key,))]
    named = sum(_axes_taken(item) for item in given)
    dots = [place for place, item in enumerate(given) if item is Ellipsis]
    if named > x.ndim or len(dots) > 1:
        raise IndexError(
            f"indexing: an index for {named} axes and {len(dots)} '...' do not fit shape {x.shape}"
        )
    at = dots[0] if dots else len(given)
    given[at : at + 1] = [slice(None)] * (x.ndim - named)

    items, axis = [], 0
    for item in given:
        taken = _axes_taken(item)
        if isinstance(item, Array) and item.dtype == bool:
            if item.shape != x.shape[axis : axis + taken]:
                raise IndexError(
                    f"indexing: a mask of shape {item.shape} does not fit axis {axis} and on of "
                    f"shape {x.shape}"
                )
            items += [_index(places, x.device) for places in np.nonzero(item._host())]
        else:
            items.append(item)
        axis += taken
    if any(isinstance(item, Array) for item in items):
        items = [_index(item, x.device) if isinstance(item, int) else item for item in items]
    return items


def _item(x: Array | Spec, item: Any) -> Any:
    """Return one item of a key as an int, a slice, None, ``...``, or an array on x's device."""
    if item is None or item is Ellipsis or isinstance(item, slice):
        return item
    if isinstance(item, (int, np.integer)) and not isinstance(item, bool):
        return int(item)
    if isinstance(item, list) and not item:
        item = np.zeros(0, np.int64)
    if isinstance(item, (list, np.ndarray)):
        item = asarray(item, device=x.device)
    if isinstance(item, Array):
        require_same_device("indexing", (x, item))
        if item.dtype.kind in "iu":
            return astype(item, np.int64)
        if item.dtype == bool and item.ndim:
            return item
    kind = f"{item.ndim}-d {item.dtype}" if isinstance(item, Array) else type(item).__name__
    raise IndexError(
        f"indexing: cannot index with {kind}; use ints, slices, ..., None, integer arrays or masks"
    )


def _axes_taken(item: Any) -> int:
    if item is None or item is Ellipsis:
        return 0
    return item.ndim if isinstance(item, Array) and item.dtype == bool else 1


# -------------------------------------------------------------- x[key]


def getitem(x: Array, key: Any) -> Array:
    """Return ``x[key]``, with NumPy's rules.

    Parameters
    ----------
    x
        Any shape.
    key
        Ints, slices, ``...``, ``None``, integer arrays and boolean masks, or a tuple of them. A
        mask is read on the host, since the shape of the result depends on it: so a traced
        function cannot use one, and takes ``where`` instead.

    Raises
    ------
    IndexError
        If the key does not fit the shape, or an index is out of range.

    Examples
    --------
    >>> x = asarray([[1, 2, 3], [4, 5, 6]])
    >>> getitem(x, (slice(None), slice(None, None, -1)))
    Array([[3, 2, 1],
           [6, 5, 4]], dtype=int64)
    """
    index = _Key.of(x, key)
    op, params = index.way_to_slice
    part = apply(op, x, **params)
    if part.spec.shape != index.shape:
        part = reshape(part, index.shape)
    if not index.arrays:
        return part
    order, first, stop = _together(index)
    part = permute_dims(part, order)
    rows = _flat_index([array for _, array in index.arrays], part.shape[first:stop])
    return apply(_TAKE, _merged(part, first, stop), rows, axis=first)


def _together(index: _Key) -> tuple[tuple[int, ...], int, int]:
    """Return an order of axes in which the indexed ones, first to stop, are neighbours.

    That is as they are, or else in front, which is also where NumPy puts what they select.
    """
    indexed = tuple(axis for axis, _ in index.arrays)
    first, stop = indexed[0], indexed[-1] + 1
    axes = tuple(range(len(index.shape)))
    if stop - first == len(indexed):
        return axes, first, stop
    return indexed + tuple(axis for axis in axes if axis not in indexed), 0, len(indexed)


def _merged(x: Array, first: int, stop: int) -> Array:
    if stop - first == 1:
        return x
    return reshape(x, (*x.shape[:first], size_of(x.shape[first:stop]), *x.shape[stop:]))


def iterate(x: Array) -> Iterator[Array]:
    """Yield ``x[0]``, ``x[1]``, ..."""
    if not x.ndim:
        raise TypeError("iteration over a 0-d array")
    return (getitem(x, i) for i in range(x.shape[0]))


# ------------------------------------------------------------ x[key] = value

_LAST_WRITER = register(
    Op(
        "last_writer",
        lambda indices, *, rows: ((rows,), indices.dtype),
        "last_writer_forward",
        arrange=lambda call: flat(call, call.rows, 0),
        split=lambda call: [
            Split(call.rows, (0,), (1, "min"), lambda scalars, lo, hi: (scalars[0], lo))
        ],
        check=lambda position, inputs, call: _outside("setitem", position, inputs[0], call.rows),
    )
)


def setitem(x: Array, key: Any, value: Any) -> None:
    """Give the object ``x`` a new value, in which the elements at ``key`` are ``value``.

    Other objects that hold the old value keep it, the tape's too: so gradients are right for all
    that was computed before and after. Inside ``no_grad`` a Parameter or Buffer is written in
    place, and an array that was computed from others loses its history: no gradient flows through
    its new value.

    Parameters
    ----------
    x
        Any shape.
    key
        As for reading. Where an index occurs twice the last value stays.
    value
        A number or an array that broadcasts to ``x[key]``; it is cast to the dtype of ``x``.

    Raises
    ------
    GraphError
        Outside ``no_grad``, if ``x`` is a Parameter or Buffer, or a leaf that requires gradients:
        the gradient would belong to a value that ``x`` no longer has.
    """
    is_leaf = x.requires_grad and x._node is None
    if state.recording and (is_leaf or isinstance(x, State)):
        kind = "a Parameter or Buffer" if isinstance(x, State) else "a leaf that requires gradients"
        raise GraphError(
            f"setitem: {kind} cannot be assigned to while operations are recorded; assign to a "
            "copy, y = ng.copy(x), or inside ng.no_grad()"
        )
    if isinstance(value, Array):
        value = astype(value, x.dtype)
    else:
        value = asarray(np.asarray(value, x.dtype), device=x.device)
    new = _replaced(x, key, value)
    if isinstance(x, State):
        assign(x, new)
        return
    if isinstance(new._data, Symbol) and not isinstance(x._data, Symbol):
        raise TraceError(
            "setitem: a traced function cannot assign to an array from outside; assign to a copy, "
            "y = ng.copy(x)"
        )
    x._data, x._node, x.requires_grad = new._data, new._node, new.requires_grad or is_leaf


def _replaced(x: Array, key: Any, value: Array) -> Array:
    """Return ``x`` with other elements at ``key``."""
    if isinstance(key, np.ndarray):
        key = _item(x, key)
    is_mask = isinstance(key, Array) and key.dtype == bool and key.shape == x.shape
    if is_mask and value.size == 1:  # as in x[x < 0] = 0: no need to read the mask
        return where(key, reshape(value, ()), x)
    index = _Key.of(x, key)
    if not index.arrays:
        value = _fitted(value, index.shape)
        value = value if value.size == 1 else broadcast_to(value, index.shape)
        value = reshape(value, () if value.size == 1 else index.counts)
    else:
        part = take_slice(x, index.starts, index.steps, index.counts)
        part = _with_rows(reshape(part, index.shape), index, value)
        value = reshape(part, index.counts)
    return set_slice(x, value, x.shape, index.starts, index.steps, index.counts)


def _fitted(value: Array, shape: tuple[int, ...]) -> Array:
    """Return a value that broadcasts to a shape: without leading axes of extent 1 too many."""
    extra = max(value.ndim - len(shape), 0)
    if value.shape[:extra] == (1,) * extra:
        value = reshape(value, value.shape[extra:])
    try:
        fits = np.broadcast_shapes(value.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ShapeError(f"setitem: a value of shape {value.shape} does not broadcast to {shape}")
    return value


def _with_rows(x: Array, index: _Key, value: Array) -> Array:
    """Return ``x`` with other elements at the index arrays.

    Each row asks who wrote it last, and takes that one's value: so gradients are those of `take`.
    """
    order, first, stop = _together(index)
    turned = permute_dims(x, order)
    rows = _flat_index([array for _, array in index.arrays], turned.shape[first:stop])
    selected = (*turned.shape[:first], *rows.shape, *turned.shape[stop:])
    value = broadcast_to(_fitted(value, selected), selected)
    if not rows.size:
        return x
    outer, inner = size_of(turned.shape[:first]), size_of(turned.shape[stop:])
    extent = size_of(turned.shape[first:stop])
    writer = apply(_LAST_WRITER, rows, rows=extent)
    values = reshape(value, (outer, rows.size, inner))
    written = apply(_TAKE, values, maximum(writer, 0), axis=1)
    kept = reshape(turned, (outer, extent, inner))
    out = where(reshape(writer >= 0, (extent, 1)), written, kept)
    return permute_dims(reshape(out, turned.shape), tuple(np.argsort(order).tolist()))


__all__ = ["take"]
