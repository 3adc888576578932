"""Fusion: elementwise nodes of one region that follow on each other become one loop.

What a fused node computes in between stays in registers. A node joins the one that makes its
operand if all else that it reads is there before; so any chain, and any tree of chains, becomes
one loop with several results if others read them too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from ..array import FLOATS, Spec, size_of
from ..dispatch import Views
from ..ops.elementwise import layout_of
from .graph import Buffer, Cut, Node, Ref, Region

FULL, SCALAR, ROW, COLUMN = "full", "scalar", "row", "column"


@dataclass(eq=False)
class Fused:
    """Several elementwise nodes as one.

    Attributes
    ----------
    members
        The nodes, in order.
    width
        The length of a row, where some operand repeats along rows or columns; else 0.
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
        return "_".join(["fused", *(member.op.name for member in self.members[:4])])

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
    nodes: list = []
    at: dict[Buffer, int] = {}  # where in `nodes` a buffer is made
    groups: dict[int, Fused] = {}
    for node in region.nodes:
        place = _host(node, nodes, at, groups) if isinstance(node, Node) else None
        if place is not None:
            host = nodes[place]
            if isinstance(host, Node):
                host = groups[place] = nodes[place] = Fused([host], _width(host) or 0)
            host.members.append(node)
            host.width = host.width or _width(node) or 0
        else:
            place = len(nodes)
            nodes.append(node)
        for output in node.outputs:
            at[output] = place
    readers: dict[Buffer, set[int]] = {}
    for place, node in enumerate(nodes):
        for ref in _operands(node):
            readers.setdefault(ref.buffer, set()).add(place)
    for place, group in groups.items():
        _finish(group, region.axis, {
            output for member in group.members for output in member.outputs
            if output in read_elsewhere or readers.get(output, set()) - {place}
        })  # fmt: skip
    region.nodes = nodes


def _operands(node) -> Iterable[Ref]:
    return (
        (ref for member in node.members for ref in member.inputs)
        if isinstance(node, Fused)
        else node.inputs
    )


def _host(node: Node, nodes: list, at: dict[Buffer, int], groups: dict[int, Fused]) -> int | None:
    """Return the place of the node that another one can be fused with, if there is one."""
    kinds = kinds_of(node)
    if kinds is None:
        return None
    places = [at[ref.buffer] for ref in node.inputs if ref.buffer in at]
    place = max(places, default=-1)
    if place < 0:
        return None
    host = nodes[place]
    members = host.members if isinstance(host, Fused) else [host]
    if not isinstance(host, (Node, Fused)) or kinds_of(members[0]) is None:
        return None
    out, its = node.call.outputs[0], members[0].call.outputs[0]
    if out.size != its.size or (node.call.device == "cpu" and out.dtype != its.dtype):
        return None
    made = {output for member in members for output in member.outputs}
    for ref, kind in zip(node.inputs, kinds, strict=True):
        if ref.buffer in made and (kind != FULL or ref.offset):
            return None
    width, theirs = _width(node), host.width if isinstance(host, Fused) else _width(host)
    return None if width and theirs and width != theirs else place


def kinds_of(node: Node) -> list[str] | None:
    """Return how an elementwise node reads each operand; None if it cannot be fused."""
    if not isinstance(node, Node) or node.op.formula is None or node.is_assigning:
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


def _width(node: Node) -> int | None:
    """Return the length of the rows along which an operand repeats, if one does."""
    out = node.call.outputs[0]
    for ref, kind in zip(node.inputs, kinds_of(node) or (), strict=False):
        if kind in (ROW, COLUMN):
            return int(layout_of(out.shape, ref.spec.shape)[0, -1])
    return None


def _finish(group: Fused, axis: int, wanted: set[Buffer]) -> None:
    """List what a group reads and writes, and how much of each a unit of the axis takes."""
    made = {output for member in group.members for output in member.outputs}
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
    for member in group.members:
        for output in member.outputs:
            if output in wanted:
                group.outputs.append(output)
    sizes = [(output.spec.size,) for output in group.outputs]
    group.views = Views(tuple(shapes), tuple(sizes))
    if axis:
        out_rows = tuple(size_of(size) // axis for size in sizes)
        group.cut = Cut(tuple(rows), out_rows, group.members[0].cut.split, 1)


__all__ = ["COLUMN", "ROW", "SCALAR", "Fused", "fuse", "kinds_of"]
