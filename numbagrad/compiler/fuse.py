"""Fusion: elementwise nodes of one region that follow on each other become one loop.

What a fused node computes in between stays in registers. A node joins the one that makes its
operand if all else that it reads is there before, and loops that make its other operands join,
too; so any chain, and any tree of chains, becomes one loop with several results if others read
them too. Sums over rows (the gradient of a bias, those of a batch norm) and over all elements (a
loss) are added up in the loop that makes their terms.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from ..array import FLOATS, Spec
from ..dispatch import Views
from ..ops.elementwise import layout_of
from .graph import Buffer, Combine, Cut, Node, Ref, Region

FULL, SCALAR, ROW, COLUMN = "full", "scalar", "row", "column"


@dataclass(eq=False)
class Fused:
    """Several elementwise nodes, and sums over rows or over all elements, as one.

    Attributes
    ----------
    members
        The nodes, in order.
    width
        The length of a row, where some operand repeats along rows or columns, or rows are added
        up; else 0.
    """

    members: list[Node]
    width: int
    inputs: list[Ref] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)  # how each input is read
    outputs: list[Buffer] = field(default_factory=list)
    cut: Cut | None = None
    views: Views | None = None
    workspace: tuple = ()
    is_assigning: bool = False

    @property
    def name(self) -> str:
        """What the source calls it."""
        ops = [op for op, _ in groupby(m.part_of or m.op.name for m in self.members)]
        return "_".join(["fused", *ops[:4]])

    @property
    def adds_rows(self) -> bool:
        """Whether its sums, if there are any, have an element for each column."""
        return any(is_sum(member) and _width(member) for member in self.members)

    @property
    def nanoseconds(self) -> float:
        """About how long it takes on one core: no longer than its slowest member."""
        return max(member.nanoseconds for member in self.members)


def fuse(region: Region, read_elsewhere: set[Buffer]) -> None:
    """Fuse the elementwise nodes of a region, in place.

    Parameters
    ----------
    region
        Its nodes are cut along its axis already.
    read_elsewhere
        Buffers that someone outside the region needs.
    """
    line = _Line()
    for node in region.nodes:
        line.add(node)
    region.nodes = [node for node in line.nodes if node is not None]
    readers: dict[Buffer, set] = {}
    for node in region.nodes:
        for ref in _operands(node):
            readers.setdefault(ref.buffer, set()).add(node)
    for node in region.nodes:
        if isinstance(node, Fused):
            _finish(node, region.axis, {
                output for output in _made(node)
                if output in read_elsewhere or readers.get(output, set()) - {node}
            })  # fmt: skip


class _Line:
    """A region's nodes in order, fused as far as they have come."""

    def __init__(self):
        self.nodes: list[Node | Combine | Fused | None] = []  # None: it has joined another one
        self.at: dict[Buffer, int] = {}  # where a buffer is made

    def add(self, node: Node | Combine) -> None:
        """Put a node at the end, and fuse it with those that make its operands."""
        place = len(self.nodes)
        self.nodes.append(node)
        makers = {self.at[ref.buffer] for ref in node.inputs if ref.buffer in self.at}
        for maker in sorted(makers, reverse=True):
            # The node moves up to the last that it waits for; the others, down to where it is.
            if maker == max(makers) and self._join(maker, place, maker):
                place = maker
            elif not self._is_awaited(maker, place):
                self._join(maker, place, place)
        for output in node.outputs:
            self.at[output] = place

    def _join(self, first: int, then: int, place: int) -> bool:
        """Make one of two nodes at a place, if that can be."""
        members = [*_members(self.nodes[first]), *_members(self.nodes[then])]
        if not _fit(members):
            return False
        self.nodes[first] = self.nodes[then] = None
        self.nodes[place] = Fused(members, max(map(_width, members)))
        self.at |= {output: place for member in members for output in member.outputs}
        return True

    def _is_awaited(self, maker: int, place: int) -> bool:
        """Return whether a node can't move down to a place: for others between, it must be done."""
        made = set(_made(self.nodes[maker]))
        read = {ref.buffer for ref in _operands(self.nodes[maker])}
        between = [node for node in self.nodes[maker + 1 : place] if node is not None]
        return any(
            made.intersection(ref.buffer for ref in _operands(node))
            or read.intersection(_made(node))
            for node in between
        )


def _members(node: Node | Combine | Fused) -> list:
    return node.members if isinstance(node, Fused) else [node]


def _operands(node: Node | Combine | Fused) -> Iterator[Ref]:
    return (ref for member in _members(node) for ref in member.inputs)


def _made(node: Node | Combine | Fused) -> Iterator[Buffer]:
    return (output for member in _members(node) for output in member.outputs)


def _fit(members: list[Node | Combine]) -> bool:
    """Return whether nodes can be one loop, in this order."""
    kinds = [kinds_of(member) for member in members]
    if None in kinds or len(set(map(_extent, members))) > 1:
        return False
    if len({width for member in members if (width := _width(member))}) > 1:
        return False
    if len({_width(member) for member in members if is_sum(member)}) > 1:
        return False  # of rows, and of all elements
    inside: dict[Buffer, Node] = {}
    walked = False  # an array that tells how many rows there are
    for member, how in zip(members, kinds, strict=True):
        for ref, kind in zip(member.inputs, how, strict=True):
            maker = inside.get(ref.buffer)
            walked |= maker is None and kind == FULL
            if maker and (kind != FULL or ref.offset or is_sum(maker)):
                return False
        inside |= {output: member for output in member.outputs}
    return walked or not any(map(is_sum, members))


def kinds_of(node: Node | Combine) -> list[str] | None:
    """Return how a node reads each operand; None if it cannot be fused."""
    if not isinstance(node, Node) or node.is_assigning:
        return None
    if is_sum(node):
        return [FULL]
    if node.op.formula is None:
        return None
    out = node.call.outputs[0]
    dtypes = {out.dtype, *(ref.spec.dtype for ref in node.inputs)}
    if not dtypes.issubset(_fusible(node)) or (node.call.device == "cpu" and len(dtypes) > 1):
        return None
    kinds = []
    for k, ref in enumerate(node.inputs):
        kind = _kind(ref.spec, out)
        sliced = node.cut is None or bool(node.cut.inputs[k])
        whole = node.cut is None or not node.cut.inputs[k]
        if kind is None or not (sliced if kind in (FULL, COLUMN) else whole):
            return None
        kinds.append(kind)
    return kinds


def is_sum(node: Node) -> bool:
    """Return whether a node adds up the rows of a table, or all elements, on a CPU.

    A loop can do so where it makes the terms.
    """
    if node.op.kernel != "sum_forward" or node.call.device != "cpu":
        return False
    rows, width, _ = node.views.scalars
    x, is_cut = node.call.inputs[0], node.cut is not None
    return (
        x.size == rows * width > 0
        and x.dtype in FLOATS
        and not (is_cut and node.cut.outputs != ("sum",))
    )


def _extent(node: Node) -> tuple[int, np.dtype | None]:
    """Return what the loops of two nodes must have in common: their length, on a CPU the dtype."""
    x = node.call.inputs[0] if is_sum(node) else node.call.outputs[0]
    return x.size, x.dtype if node.call.device == "cpu" else None


def _fusible(node: Node) -> tuple:
    """Return the dtypes that a loop can hold: a CPU's is over vectors of floats.

    Integers stay out: between a GPU's ops they would be wider than they are in memory.
    """
    return FLOATS if node.call.device == "cpu" else (*FLOATS, np.dtype(np.bool_))


def _kind(operand: Spec, out: Spec) -> str | None:
    if operand.size == out.size:
        return FULL
    if operand.size == 1:
        return SCALAR
    layout = layout_of(out.shape, operand.shape)
    if layout.shape[1] == 2:
        strides = tuple(layout[1].tolist())
        return {(0, 1): ROW, (1, 0): COLUMN}.get(strides)
    return None


def _width(node: Node) -> int:
    """Return the length of the rows that are added up or along which an operand repeats; else 0."""
    if is_sum(node):
        width = node.views.scalars[1]
        return width if width > 1 else 0
    out = node.call.outputs[0]
    for ref, kind in zip(node.inputs, kinds_of(node), strict=True):
        if kind in (ROW, COLUMN):
            return int(layout_of(out.shape, ref.spec.shape)[0, -1])
    return 0


def _finish(group: Fused, axis: int, wanted: set[Buffer]) -> None:
    """List what a group reads and writes, and how much of each a unit of the axis takes."""
    made = set(_made(group))
    seen: dict[tuple, int] = {}
    shapes, rows = [], []
    for member in group.members:
        for k, (ref, kind) in enumerate(zip(member.inputs, kinds_of(member), strict=True)):
            key = id(ref.buffer), ref.offset, kind
            if ref.buffer in made or key in seen:
                continue
            seen[key] = len(group.inputs)
            group.inputs.append(ref)
            group.kinds.append(kind)
            shapes.append((ref.spec.size,))
            sliced = member.cut is not None and member.cut.inputs[k]
            rows.append(ref.spec.size // axis if sliced else 0)
    out_rows: list[int | str] = []
    for member in group.members:
        for output in member.outputs:
            if output in wanted:
                group.outputs.append(output)
                out_rows.append("sum" if is_sum(member) else output.spec.size // max(axis, 1))
    sizes = [(output.spec.size,) for output in group.outputs]
    group.views = Views(tuple(shapes), tuple(sizes))
    if axis:
        group.cut = Cut(tuple(rows), tuple(out_rows), group.members[0].cut.split, 1)


__all__ = ["COLUMN", "FULL", "ROW", "SCALAR", "Fused", "fuse", "is_sum", "kinds_of"]
