"""The plan of a compiled step: what runs when, cut along which axis, in which memory.

The traced equations become `Node`s on `Buffer`s. Most of them can be cut along one axis, the
images of a batch: each op's ``split`` says so. These are walked *depth first*, a few images at a
time through as many nodes as possible, so that what one node writes is still in cache when the
next one reads it. A value that needs the whole batch (a gradient of a weight, the mean of a
BatchNorm) ends such a walk.

So time falls into alternating positions: at odd ones, *regions* walk over the batch in shards; at
even ones stand the nodes that see whole arrays. Each node runs as early as its inputs allow.

What depends on weights alone that the step does not change is *settled*: it comes first, at a
position of its own, and what it makes keeps its memory. So it need not run again at the next call.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from ..array import Array, Spec, size_of
from ..device import LINE
from ..dispatch import (
    MAX_PARTIAL_SHARDS,
    MAX_SHARDS,
    SHARD_NS,
    make_call,
    make_views,
    shard_bounds,
    workspace_of,
)
from ..ops.elementwise import COPY
from .fuse import FULL, Fused, fuse, is_sum, kinds_of
from .graph import (
    Buffer,
    Combine,
    Cut,
    Node,
    Ref,
    Region,
    cut_of,
    is_local,
    is_partial,
    units_of,
)
from .recompute import recompute
from .trace import Equation, GradientOf, Operand, Trace, Variable, map_leaves

PARTIAL_SHARE = 4
SETTLED = -2  # the position before all others
CHUNK_BYTES = 512 * 1024  # what a chunk's values may take: half of a core's own cache


@dataclass
class Decisions:
    """What a plan chose by weighing how much there is to do.

    For another extent of the batch a plan may follow them, so that the two differ in nothing but
    sizes: then one source serves both.
    """

    ops: tuple[str, ...] = ()  # the names of the nodes' ops, in order
    alone: list[bool] = field(default_factory=list)  # of nodes on whole arrays: if it is large
    chunks: list[tuple[int, bool, int]] = field(default_factory=list)  # of regions that these make


@dataclass(eq=False)
class Plan:
    """All that the emitter needs to know."""

    name: str
    arguments: list[Buffer]
    leaves: list[Buffer]
    gradients_read: list[Buffer]
    regions: list[Region]
    result: Any  # as the function returned it, with Refs and Arrays from outside as leaves
    gradients: list[tuple[Array, Ref | None]]
    checked: list[Node]
    places: dict[Buffer, int]  # where whole values start in the arena
    arena_bytes: int
    unplanned_bytes: int

    kept: list[Buffer]  # the values that the caller gets
    decisions: Decisions = field(default_factory=Decisions)

    @property
    def nodes(self) -> list[Node | Combine]:
        """All nodes, in the order in which they run."""
        return [node for region in self.regions for node in region.nodes]


# ------------------------------------------------------------------- building


class _Builder:
    """Turns a trace into nodes, and decides when each runs."""

    def __init__(self, trace: Trace, equations: Sequence[Equation]):
        self.trace = trace
        self.arguments = [
            Buffer(spec, "argument", k, name=f"argument{k}") for k, spec in enumerate(trace.inputs)
        ]
        self.values: dict[int, Ref] = {
            k: Ref(buffer, buffer.spec) for k, buffer in enumerate(self.arguments)
        }
        self.leaves: dict[int, Buffer] = {}
        self.gradients: dict[int, Buffer] = {}
        self.renamed: dict[int, Ref] = {}  # counters by id: their newest value
        self.nodes: list[Node] = []
        self.changing = {id(t) for equation in equations for t in equation.targets or ()}
        for equation in equations:
            self._add(equation)
        for key, ref in self.renamed.items():
            self._node(COPY, {}, (ref,), (self.leaves[key],), is_assigning=True)

    def ref(self, operand: Operand) -> Ref:
        if isinstance(operand, Variable):
            return self.values[operand.number]
        if isinstance(operand, GradientOf):
            leaf = operand.leaf
            if id(leaf) not in self.gradients:
                self.gradients[id(leaf)] = Buffer(leaf.spec, "gradient", leaf=leaf)
            buffer = self.gradients[id(leaf)]
        else:
            if id(operand) in self.renamed:
                return self.renamed[id(operand)]
            buffer = self.leaf(operand)
        return Ref(buffer, buffer.spec)

    def leaf(self, array: Array) -> Buffer:
        if id(array) not in self.leaves:
            self.leaves[id(array)] = Buffer(array.spec, "leaf", leaf=array)
        return self.leaves[id(array)]

    def _add(self, equation: Equation) -> None:
        op, inputs = equation.op, tuple(map(self.ref, equation.inputs))
        if op.kernel is None:
            (x,), (spec,) = inputs, equation.specs
            if x.buffer.leaf is not None and id(x.buffer.leaf) in self.changing:
                x = self._copied(x)  # the state will change, the view must not
            rows = equation.params.get("start", 0) * size_of(x.spec.shape[1:])
            self.values[equation.outputs[0]] = Ref(x.buffer, spec, x.offset + rows)
            return
        targets = equation.targets
        if targets is None:
            outputs = tuple(map(Buffer, equation.specs))
        elif all(target.size == 1 for target in targets):  # a counter: it need not wait for readers
            outputs = tuple(map(Buffer, equation.specs))
            for target, output in zip(targets, outputs, strict=True):
                self.leaf(target)
                self.renamed[id(target)] = Ref(output, output.spec)
            targets = None
        else:
            outputs = tuple(map(self.leaf, targets))
        self._node(op, equation.params, inputs, outputs, targets is not None, equation.part_of)
        for number, output in zip(equation.outputs, outputs, strict=True):
            self.values[number] = Ref(output, output.spec)

    def _copied(self, x: Ref) -> Ref:
        copy = Buffer(x.spec)
        self._node(COPY, {}, (x,), (copy,), is_assigning=False)
        return Ref(copy, x.spec)

    def _node(self, op, params, inputs, outputs, is_assigning, part_of="") -> None:
        call = make_call(op, tuple(ref.spec for ref in inputs), params)
        flag = tuple(Buffer(spec) for spec in call.outputs[len(op.outputs) :])
        outputs = (*outputs, *flag)
        node = Node(op, call, make_views(op, call), inputs, outputs, is_assigning, part_of)
        node.workspace = workspace_of(op, call)
        self.nodes.append(node)


# ------------------------------------------------------------------ placing


def batch_axis(trace: Trace) -> int:
    """Return the extent of the axis that is walked: the first one of the first argument."""
    for spec in trace.inputs:
        if spec.shape:
            return max(spec.shape[0], 1)
    return 1


def _place(builder: _Builder, axis: int) -> dict[int, list[Node | Combine]]:
    """Give each node its position; even ones see whole arrays, odd ones pieces of the batch."""
    batched = {b for b in builder.arguments if b.spec.shape and b.spec.shape[0] == axis}
    positions: dict[int, list[Node | Combine]] = {}

    def is_piece(buffer: Buffer) -> bool:
        return buffer.is_cut

    for node in builder.nodes:
        cut = None
        if not node.is_assigning:
            cut = cut_of(node, axis, is_piece)
            seeds = [
                ref.buffer.is_cut or ref.buffer in batched
                for ref, rows in zip(node.inputs, cut.inputs if cut else (), strict=False)
                if rows
            ]
            cut = cut if any(seeds) else None
        if cut:
            at = max((_next_odd(ref.buffer) for ref in node.inputs), default=1)
        else:
            at = max((_next_even(ref.buffer) for ref in node.inputs), default=0)
            if node.is_assigning:
                waits = [p + p % 2 for output in node.outputs for p in output.readers]
                at = max([at, *waits, *(_next_even(output) for output in node.outputs)])
        node.cut = cut
        positions.setdefault(at, []).append(node)
        for ref in node.inputs:
            ref.buffer.readers.append(at)
        for output, rows in zip(node.outputs, cut.outputs if cut else node.outputs, strict=True):
            output.ready, output.is_cut = at, cut is not None
            if isinstance(rows, str):
                output.is_cut, output.combine, output.ready = False, rows, at + 1
                output.parts = Buffer(output.spec, ready=at)
                combining = positions.setdefault(at + 1, [])
                combining.append(Combine(rows, output.parts, output))
    return positions


def _set_settled_apart(builder: _Builder, positions: dict[int, list[Node | Combine]]) -> None:
    """Move nodes that make the same of weights at every call, as long as nobody changes these."""
    settled: set[Buffer] = set()
    nodes: list[Node] = []
    for node in positions.get(0, ()):
        is_settled = not node.is_assigning and all(
            id(ref.buffer.leaf) not in builder.changing
            if ref.buffer.source == "leaf"
            else ref.buffer in settled
            for ref in node.inputs
        )
        if is_settled and not any(output.is_kept for output in node.outputs):
            nodes.append(node)
            settled.update(node.outputs)
    if nodes:
        positions[0] = [node for node in positions[0] if node not in nodes]
        positions[SETTLED] = nodes


def _next_odd(buffer: Buffer) -> int:
    """Return the first position at which pieces of the batch can be made of a buffer."""
    if buffer.ready < 0:
        return 1
    return buffer.ready if buffer.ready % 2 else buffer.ready + 1


def _next_even(buffer: Buffer) -> int:
    """Return the first position at which all of a buffer can be read."""
    return buffer.ready + buffer.ready % 2 if buffer.ready >= 0 else 0


def _stage(nodes: list[Node | Combine], alone: Iterator[bool]) -> Iterator[Region]:
    """Group nodes on whole arrays: each large one is cut along its own rows, with what follows.

    ``alone`` says of each node whether it is large.
    """
    regions: list[Region] = []
    made_in: dict[Buffer, int] = {}
    touched: dict[Buffer, int] = {}  # the last region that reads or writes a buffer
    for node in nodes:
        needs = [made_in.get(ref.buffer, -1) for ref in node.inputs]
        if node.is_assigning:
            needs += [touched.get(output, -1) for output in node.outputs]
        after = max(needs, default=-1)
        is_large = next(alone)
        at = _join(node, regions, after, made_in, is_large)
        if at is None:
            at = len(regions)
            regions.append(_own_region(node, is_large))
        regions[at].nodes.append(node)
        for ref in node.inputs:
            touched[ref.buffer] = max(at, touched.get(ref.buffer, -1))
        for output in node.outputs:
            made_in[output] = touched[output] = at
    yield from regions


def _join(node, regions: list[Region], after: int, made_in: dict, is_large: bool) -> int | None:
    """Return the region that a node can be added to, if any."""
    if after >= 0 and regions[after].axis:
        axis = regions[after].axis
        inside = {b for b, region in made_in.items() if region == after}
        cut = cut_of(node, axis, inside.__contains__) if isinstance(node, Node) else None
        if cut and _can_run_beside(node, cut, regions[after]):
            node.cut = cut
            return after
    if is_large:
        return None
    for at in range(max(after, 0), len(regions)):
        if not regions[at].axis:
            return at
    return None


def _can_run_beside(node: Node, cut: Cut, region: Region) -> bool:
    """Return whether a shard may run a node while others are still at the nodes before it."""
    if any(isinstance(rows, str) for rows in cut.outputs):
        return False
    written = set(node.outputs) if node.is_assigning else set()
    return not any(
        ref.buffer in written and not rows
        for other in region.nodes
        for ref, rows in zip(other.inputs, other.cut.inputs, strict=True)
    )


def _is_large(node: Node | Combine) -> bool:
    """Return whether a node on whole arrays is worth several threads, and can be cut for them."""
    is_heavy = isinstance(node, Node) and node.nanoseconds >= 2 * SHARD_NS
    return is_heavy and _own_cut(node) is not None


def _own_cut(node: Node) -> Cut | None:
    for split in node.op.split(node.call) if node.op.split else ():
        if split.size > 1 and not any(isinstance(rows, str) for rows in split.outputs):
            cut = cut_of(node, split.size, lambda buffer: False)
            by_itself = cut and cut.per == 1  # and not by another split, of twice the size, say
            if by_itself and not any(isinstance(rows, str) for rows in cut.outputs):
                return cut
    return None


def _own_region(node: Node | Combine, is_large: bool) -> Region:
    if not is_large:
        return Region(0)
    node.cut = _own_cut(node)
    return Region(node.cut.split.size)


# ------------------------------------------------------------------- memory


class _Shelf:
    """Hands out stretches of memory, first fit; what is given back is used again."""

    def __init__(self):
        self.taken: list[tuple[int, int]] = []
        self.end = 0

    def take(self, nbytes: int) -> int:
        size = max(-(-nbytes // LINE) * LINE, LINE)
        gaps = pairwise([(0, 0), *self.taken, (math.inf, math.inf)])
        at, start = next(
            (k, end) for k, ((_, end), (low, _)) in enumerate(gaps) if low - end >= size
        )
        self.taken.insert(at, (start, start + size))
        self.end = max(self.end, start + size)
        return start

    def give_back(self, start: int) -> None:
        self.taken = [stretch for stretch in self.taken if stretch[0] != start]


def _overwritable(node: Node | Combine | Fused, output: Buffer) -> list[Buffer]:
    """Return the inputs in whose place a node may write an output.

    An elementwise loop has read an element when it writes there, and reads no other one later. So
    it may on a CPU, where no input is read in another order, too.
    """
    if isinstance(node, Combine) or output.spec.device != "cpu":
        return []
    members = node.members if isinstance(node, Fused) else [node]
    kinds = node.kinds if isinstance(node, Fused) else kinds_of(node)
    if kinds is None or any(is_sum(member) and output in member.outputs for member in members):
        return []
    others = {
        ref.buffer for ref, kind in zip(node.inputs, kinds, strict=True)
        if kind != FULL or ref.spec.size != ref.buffer.spec.size
    }  # fmt: skip
    inputs = [ref.buffer for ref in node.inputs if ref.buffer not in others]
    return [buffer for buffer in inputs if buffer.nbytes == output.nbytes]


def _scratch(region: Region) -> int:
    """Lay out a region's local memory; return how many bytes it takes."""
    uses: dict[Buffer, int] = {}
    for at, node in enumerate(region.nodes):
        for buffer in (*(ref.buffer for ref in node.inputs), *node.outputs):
            uses[buffer] = at
    for node in region.nodes:
        if isinstance(node, Node) and node.op.workspace and node.cut:
            node.workspace = _workspace(node, region)
    shelf = _Shelf()
    region.scratch.clear(), region.workspace.clear(), region.pieces.clear()
    overwritten: set[Buffer] = set()
    for at, node in enumerate(region.nodes):
        given = []
        for k, buffer in enumerate(node.outputs):
            dying = [
                x for x in _overwritable(node, buffer)
                if x in region.scratch and uses[x] == at and x not in overwritten
            ]  # fmt: skip
            if is_local(buffer) and dying:
                overwritten.add(dying[0])
                region.scratch[buffer] = region.scratch[dying[0]]
            elif is_local(buffer):
                per = units_of(node, k, False) if region.axis else buffer.spec.size
                nbytes = per * max(region.chunk, 1) * buffer.spec.dtype.itemsize
                region.scratch[buffer] = shelf.take(nbytes)
            elif is_partial(node, buffer) and not region.is_single:
                region.pieces[buffer] = shelf.take(buffer.nbytes)
                given.append(region.pieces[buffer])
        if isinstance(node, Node) and node.workspace:
            wanted = [size_of(shape) * dtype.itemsize for shape, dtype in node.workspace]
            region.workspace[node] = [shelf.take(nbytes) for nbytes in wanted]
            given += region.workspace[node]
        given += [
            start for buffer, start in region.scratch.items()
            if uses[buffer] == at and buffer not in overwritten
        ]  # fmt: skip
        for start in given:
            shelf.give_back(start)
    region.scratch_bytes = shelf.end
    return shelf.end


def _workspace(node: Node, region: Region) -> tuple:
    """Return what a node's kernel wants for a chunk."""
    call = node.call
    inputs = tuple(
        _shortened(spec, region) if rows else spec
        for spec, rows in zip(call.inputs, node.cut.inputs, strict=True)
    )
    outputs = tuple(
        spec if not rows or isinstance(rows, str) else _shortened(spec, region)
        for spec, rows in zip(call.outputs, node.cut.outputs, strict=True)
    )
    if None in inputs + outputs:
        return workspace_of(node.op, call)
    return workspace_of(node.op, replace(call, inputs=inputs, outputs=outputs))


def _shortened(spec: Spec, region: Region) -> Spec | None:
    """Return an array's spec for one chunk; None if its first axis is not the one that is cut."""
    if not spec.shape or spec.shape[0] % region.axis:
        return None
    extent = spec.shape[0] // region.axis * region.chunk
    return spec._replace(shape=(extent, *spec.shape[1:]))


def _settle(
    region: Region, chunk: int | None, dynamic: bool, decided: tuple[int, bool, int] | None
) -> None:
    """Choose how many units a chunk takes, and the shards, or do as was ``decided``.

    With ``dynamic`` chunks are as large for any extent of the axis.
    """
    region.bounds = np.array([0, max(region.axis, 1)], np.int64)
    if not region.axis:
        _scratch(region)
        return
    if decided is not None:
        region.chunk, region.is_single, shards = decided
        region.is_single &= region.chunk * shards >= region.axis
        region.bounds = shard_bounds(region.axis, min(shards, region.axis))
        _scratch(region)
        return
    each, fixed, partial = _unit_bytes(region)
    heaviest = max(region.nodes, key=lambda node: node.nanoseconds)
    grain = -(-heaviest.cut.split.grain // heaviest.cut.per)
    # Beside what fits the cache: a kernel wants enough to work on, and what each chunk adds to
    # partial results should be little beside what it computes.
    least = max(grain, PARTIAL_SHARE * partial // each)
    if chunk is None:
        chunk = max(least, (CHUNK_BYTES - fixed) // each, 1)
    total = sum(node.nanoseconds for node in region.nodes)
    most = MAX_SHARDS
    if partial:
        most = min(MAX_PARTIAL_SHARDS, max(2, region.axis * each // (PARTIAL_SHARE * partial)))
    shards = max(1, min(int(total // SHARD_NS), most, region.axis))
    whole = -(-region.axis // shards)
    region.chunk = chunk if dynamic else -(-whole // -(-whole // min(chunk, whole)))
    region.is_open = dynamic
    region.is_single = not dynamic and region.chunk * shards >= region.axis
    region.bounds = shard_bounds(region.axis, shards)
    _scratch(region)


def _unit_bytes(region: Region) -> tuple[int, int, int]:
    """Return how much a region's nodes read and write for each unit of its axis.

    That is bytes of local memory or of other arrays, whichever is more; bytes of local memory for
    any number of units; and bytes of partial results.
    """
    sizes = []
    for region.chunk in (1, 2):
        sizes.append(_scratch(region))
    local = sizes[1] - sizes[0]
    moved, partial = 0, 0
    for node in region.nodes:
        for k, ref in enumerate(node.inputs):
            moved = max(moved, units_of(node, k, True) * ref.spec.dtype.itemsize)
        for k, (output, rows) in enumerate(zip(node.outputs, node.cut.outputs, strict=True)):
            moved = max(moved, units_of(node, k, False) * output.spec.dtype.itemsize)
            partial += output.nbytes if isinstance(rows, str) else 0
    return max(local, moved, 1), max(sizes[0] - local, 0), partial


def make_plan(
    trace: Trace,
    equations: Sequence[Equation],
    chunk: int | None = None,
    dynamic: bool = False,
    known: Mapping[tuple[str, ...], Decisions] | None = None,
) -> Plan:
    """Plan a traced step.

    Parameters
    ----------
    trace
        What was traced.
    equations
        Its equations, cleaned up.
    chunk
        How many images are walked at a time; by default as many as fit a core's cache.
    dynamic
        Let nothing but sizes depend on the extent of the batch.
    known
        What was decided for other extents of the batch, by the names of the ops: followed if they
        are the same.
    """
    builder = _Builder(trace, equations)
    result, gradients, checked, kept = _keep_results(trace, builder)
    axis = batch_axis(trace)
    positions = _place(builder, axis)
    _set_settled_apart(builder, positions)
    whole = [node for at in sorted(positions) if at % 2 == 0 for node in positions[at]]
    decisions = Decisions(tuple([node.op.name for node in builder.nodes]))
    like = (known or {}).get(decisions.ops)
    if like is None or len(like.alone) != len(whole):
        like = None
        decisions.alone = list(map(_is_large, whole))
    else:
        # What is large in the one and cannot be cut in the other is left alone.
        pairs = zip(like.alone, whole, strict=True)
        decisions.alone = [large and _own_cut(node) is not None for large, node in pairs]
    alone = iter(decisions.alone)
    regions: list[Region] = []
    walks: list[Region] = []
    for at in sorted(positions):
        if at % 2:
            walks.append(Region(axis, positions[at]))
            regions.append(walks[-1])
        else:
            staged = list(_stage(positions[at], alone))
            for region in staged:
                region.is_settled = at == SETTLED
            regions += staged
    recompute(regions, axis)
    _fuse_all(regions)
    for region in regions:
        for node in region.nodes:
            for ref in node.inputs:
                ref.buffer.used_in.append(region)
            for output in node.outputs:
                if is_partial(node, output):
                    output.parts.made_in = region
                else:
                    output.made_in = region
    chunks = iter(like.chunks if like else ())
    for region in regions:
        is_walk = region in walks
        is_decided = region.axis > 0 and not (is_walk and dynamic)
        decided = next(chunks, None) if is_decided else None
        _settle(region, chunk if is_walk else None, dynamic and is_walk, decided)
        if is_decided:
            decisions.chunks.append((region.chunk, region.is_single, region.shards))
    for node in [node for region in regions for node in region.nodes]:
        if isinstance(node, Combine):
            shards = node.parts.made_in.shards
            node.parts.spec = node.out.spec._replace(shape=(shards, *node.out.spec.shape))
    places, arena = _whole_values(regions)
    return Plan(
        trace.name,
        builder.arguments,
        list(builder.leaves.values()),
        list(builder.gradients.values()),
        regions,
        result,
        gradients,
        checked,
        places,
        arena,
        _unplanned([node for region in regions for node in region.nodes]),
        kept,
        decisions,
    )


def make_device_plan(trace: Trace, equations: Sequence[Equation]) -> Plan:
    """Plan a traced step for a device whose kernels run one after the other, on whole arrays.

    One arena holds all values that pass between kernels, and the kernels' workspace.

    Parameters
    ----------
    trace
        What was traced.
    equations
        Its equations, cleaned up.
    """
    builder = _Builder(trace, equations)
    result, gradients, checked, kept = _keep_results(trace, builder)
    region = Region(0, [*builder.nodes], bounds=np.array([0, 1], np.int64))
    fuse(region, set(kept))
    for node in region.nodes:
        for output in node.outputs:
            output.made_in = region
    _scratch(region)
    return Plan(
        trace.name,
        builder.arguments,
        list(builder.leaves.values()),
        list(builder.gradients.values()),
        [region] if region.nodes else [],
        result,
        gradients,
        checked,
        region.scratch,
        region.scratch_bytes,
        _unplanned(region.nodes),
        kept,
    )


def _keep_results(trace: Trace, builder: _Builder) -> tuple[Any, list, list[Node], list[Buffer]]:
    """Return a step's result and gradients, what is checked after it, and values that are kept."""
    result = map_leaves(
        trace.result,
        lambda operand: operand if isinstance(operand, Array) else builder.ref(operand),
    )
    gradients = [(leaf, v and builder.ref(v)) for leaf, v in trace.gradients]
    kept: list[Buffer] = []

    def keep(operand):
        if isinstance(operand, Ref) and operand.buffer not in kept:
            operand.buffer.is_kept = True
            kept.append(operand.buffer)
        return operand

    map_leaves(result, keep)
    for _, ref in gradients:
        keep(ref)
    checked = [node for node in builder.nodes if node.op.check is not None]
    for node in checked:
        keep(Ref(node.outputs[-1], node.outputs[-1].spec))
        for ref in node.inputs:  # what the error's message reads
            if ref.spec.dtype.kind in "iu":
                keep(ref)
    return result, gradients, checked, [buffer for buffer in kept if buffer.source == "value"]


def _fuse_all(regions: list[Region]) -> None:
    """Fuse the elementwise nodes of each region."""
    for region in regions:
        elsewhere = {
            ref.buffer
            for other in regions
            if other is not region
            for node in other.nodes
            for ref in node.inputs
        }
        kept = {output for node in region.nodes for output in node.outputs if output.is_kept}
        fuse(region, elsewhere | kept)


def _unplanned(nodes: Sequence[Node | Combine | Fused]) -> int:
    """Return how many bytes nodes would take if each value and workspace had its own, all of it.

    That is without what the caller gets.
    """
    total = 0
    for node in nodes:
        if isinstance(node, Combine):
            continue  # its output is that of the node that makes the parts
        values = [buffer for buffer in node.outputs if buffer.source == "value"]
        total += sum(buffer.nbytes for buffer in values if not buffer.is_kept)
        if isinstance(node, Node):
            wanted = workspace_of(node.op, node.call)
            total += sum(size_of(shape) * dtype.itemsize for shape, dtype in wanted)
    return total


def _whole_values(regions: list[Region]) -> tuple[dict[Buffer, int], int]:
    """Place all values that outlive a region; memory is used again when the last reader is done.

    That of settled values is not: the next call reads them.

    Return where each starts, and how many bytes all of them take.
    """
    order = {region: at for at, region in enumerate(regions)}
    last: dict[Buffer, int] = {}
    values: list[Buffer] = []
    for at, region in enumerate(regions):
        for node in region.nodes:
            for buffer in node.outputs:
                if is_partial(node, buffer):
                    buffer = buffer.parts
                if buffer.source == "value" and not buffer.is_kept and not is_local(buffer):
                    values.append(buffer)
                    uses = [order[use] for use in buffer.used_in]
                    last[buffer] = len(regions) if region.is_settled else max([at, *uses])
    shelf, places = _Shelf(), {}
    overwritten: set[Buffer] = set()
    for at, region in enumerate(regions):
        outputs = [(node, output) for node in region.nodes for output in node.outputs]
        for node, output in outputs:
            buffer = output.parts if is_partial(node, output) else output
            if buffer not in last:
                continue
            dying = [
                x for x in _overwritable(node, buffer)
                if last.get(x) == at and x not in overwritten and _is_read_up_to(node, x, region)
            ]  # fmt: skip
            overwritten.update(dying[:1])
            places[buffer] = places[dying[0]] if dying else shelf.take(buffer.nbytes)
        for buffer in values:
            if last[buffer] == at and buffer not in overwritten:
                shelf.give_back(places[buffer])
    return places, shelf.end


def _is_read_up_to(last: Node | Fused, buffer: Buffer, region: Region) -> bool:
    """Return whether nobody in a region reads a buffer after a node, nor other pieces than its."""
    later = region.nodes[region.nodes.index(last) + 1 :]
    reads = [
        (node, k) for node in region.nodes for k, ref in enumerate(node.inputs)
        if ref.buffer is buffer
    ]  # fmt: skip
    return not any(
        node in later
        or (region.axis and not units_of(node, k, True))
        or node.inputs[k].spec.size != buffer.spec.size
        for node, k in reads
    )
