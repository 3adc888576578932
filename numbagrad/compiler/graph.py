"""A traced step as nodes on buffers, and how a node falls into pieces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..array import Array, Spec, size_of
from ..dispatch import NS_PER_BYTE, NS_PER_FLOP, Call, Op, Split, Views

# ------------------------------------------------------------------- graph


@dataclass(eq=False)
class Buffer:
    """An array that a step reads or writes.

    Attributes
    ----------
    spec
        Its shape and dtype.
    source
        Where it comes from: ``"argument"`` (number ``index``), ``"leaf"`` (the data of an array
        from outside), ``"gradient"`` (of such an array), or ``"value"`` (the step makes it).
    name
        What the emitted source calls it.
    """

    spec: Spec
    source: str = "value"
    index: int = 0
    leaf: Array | None = None
    name: str = ""
    # What the plan decides.
    ready: int = -1  # the position after which it is there
    is_cut: bool = False  # made piece by piece in the region at `ready`
    combine: str | None = None  # made as partial results, one for each shard
    parts: Buffer | None = None  # these
    is_kept: bool = False  # the caller gets it
    readers: list[int] = field(default_factory=list)
    used_in: list[Region] = field(default_factory=list)
    made_in: Region | None = None

    @property
    def nbytes(self) -> int:
        """How much memory all of it takes."""
        return self.spec.size * self.spec.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Ref:
    """A buffer as a node sees it: perhaps in another shape, or from another element on."""

    buffer: Buffer
    spec: Spec
    offset: int = 0


class Cut(NamedTuple):
    """How a node falls into pieces along an axis: rows of each array for a unit, 0 = all of it."""

    inputs: tuple[int, ...]
    outputs: tuple[int | str, ...]
    split: Split
    per: int  # units of the split for each unit of the axis


@dataclass(eq=False)
class Node:
    """One call of a kernel."""

    op: Op
    call: Call
    views: Views
    inputs: tuple[Ref, ...]
    outputs: tuple[Buffer, ...]
    is_assigning: bool = False
    part_of: str = ""  # the op that it was expanded from
    cut: Cut | None = None
    workspace: tuple[tuple[tuple[int, ...], np.dtype], ...] = ()

    @property
    def name(self) -> str:
        """What the source calls it."""
        return f"{self.op.name}_relu" if self.call.params.get("relu") else self.op.name

    @property
    def cost(self) -> tuple[float, float]:
        """Floating-point operations, and bytes that it moves at least."""
        if self.op.cost is not None:
            return self.op.cost(self.call)
        specs = (*self.call.inputs, *self.call.outputs)
        return 0.0, sum(spec.size * spec.dtype.itemsize for spec in specs)

    @property
    def nanoseconds(self) -> float:
        """About how long it takes on one core."""
        flops, moved = self.cost
        return max(flops * NS_PER_FLOP, moved * NS_PER_BYTE)


@dataclass(eq=False)
class Combine:
    """Adds up, or otherwise combines, what the shards of a region made of one output."""

    how: str
    parts: Buffer
    out: Buffer

    name = "combine"
    inputs = property(lambda self: (Ref(self.parts, self.parts.spec),))
    outputs = property(lambda self: (self.out,))
    nanoseconds = property(lambda self: self.parts.nbytes * NS_PER_BYTE)
    is_assigning = False
    cut = None


@dataclass(eq=False)
class Region:
    """Nodes that run together: over shards of an axis, or (``axis`` 0) one after the other."""

    axis: int
    nodes: list[Node | Combine] = field(default_factory=list)
    chunk: int = 0
    bounds: np.ndarray = field(default_factory=lambda: np.array([0, 0]))
    is_single: bool = False  # no shard has more than one chunk
    is_open: bool = False  # its source serves any extent of the axis
    is_settled: bool = False  # it makes the same at every call until weights change
    scratch: dict[Buffer, int] = field(default_factory=dict)  # where local values start
    workspace: dict[Node, list[int]] = field(default_factory=dict)
    pieces: dict[Buffer, int] = field(default_factory=dict)  # one chunk's partial results
    scratch_bytes: int = 0

    @property
    def shards(self) -> int:
        """Into how many pieces the axis is cut."""
        return len(self.bounds) - 1


def cut_of(node: Node, axis: int, is_piece: Callable[[Buffer], bool]) -> Cut | None:
    """Return how a node falls into pieces along an axis of so many units, if it does.

    Inputs that exist only in pieces (``is_piece``) must be read in pieces.
    """
    if node.is_assigning and any(output.spec.size == 0 for output in node.outputs):
        return None
    for split in node.op.split(node.call) if node.op.split else ():
        if split.size == 0 or split.size % axis:
            continue
        fits = all(
            isinstance(rows, str) or (rows > 0 and shape and shape[0] == rows * split.size)
            for rows, shape in zip(split.outputs, node.views.outputs, strict=True)
        )
        for ref, rows, shape in zip(node.inputs, split.inputs, node.views.inputs, strict=True):
            if rows:
                fits &= bool(shape) and shape[0] == rows * split.size
                fits &= ref.spec.size == ref.buffer.spec.size or not is_piece(ref.buffer)
            else:
                fits &= not is_piece(ref.buffer)
        if fits and affine_scalars(node, split, split.size // axis, axis) is not None:
            return Cut(split.inputs, split.outputs, split, split.size // axis)
    return None


def affine_scalars(node: Node, split: Split, per: int, axis: int) -> list | None:
    """Return a shard's kernel parameters as constants or as (a, b, c): a + b first + c count.

    ``first`` and ``count`` are in units of the axis. None: a parameter depends on the shard in
    another way.
    """
    whole = node.views.scalars
    if split.scalars is None:
        return [*whole]

    def at(first: int, count: int) -> tuple:
        return tuple(split.scalars(whole, first * per, (first + count) * per))

    if axis == 1:
        return [*at(0, 1)]
    origin, later, longer = at(0, 1), at(1, 1), at(0, 2)
    found = []
    for k, value in enumerate(origin):
        if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
            b, c = int(later[k]) - int(value), int(longer[k]) - int(value)
            found.append((int(value) - c, b, c) if b or c else value)
        else:
            found.append(value)
    for first, count in ((0, axis), (axis // 2, 1), (axis // 3, axis // 3), (axis - 1, 1)):
        for value, form in zip(at(first, count) if count else (), found, strict=count > 0):
            if isinstance(form, tuple) and not isinstance(value, tuple):
                form = form[0] + form[1] * first + form[2] * count
            if not _same(value, form):
                return None
    return found


def _same(value: Any, other: Any) -> bool:
    return np.array_equal(np.asarray(value), np.asarray(other))


def units_of(node: Node, k: int, is_input: bool) -> int:
    """Return how many elements of an array a unit of the axis takes; 0 = it is read whole."""
    rows = (node.cut.inputs if is_input else node.cut.outputs)[k]
    shape = (node.views.inputs if is_input else node.views.outputs)[k]
    if not rows or isinstance(rows, str):
        return 0
    return rows * node.cut.per * size_of(shape[1:])


def is_local(buffer: Buffer) -> bool:
    """Return whether a value lives and dies in one region, piece by piece."""
    return (
        buffer.source == "value"
        and not buffer.is_kept
        and buffer.combine is None
        and buffer.made_in is not None
        and all(region is buffer.made_in for region in buffer.used_in)
    )


def is_partial(node: Any, buffer: Buffer) -> bool:
    """Return whether what a node makes of a buffer is combined with what other shards make."""
    return buffer.parts is not None and not isinstance(node, Combine)
