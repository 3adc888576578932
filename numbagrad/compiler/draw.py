"""A compiled step's plan to look at: as text in a terminal, as a picture in a notebook.

The picture is read like a circuit diagram, from top to bottom: a box for each region, in it one
row for each node, and a rail for each value, from the node that makes it to the last that reads
it. A dot is where a node reads from a rail. So the rails beside a row are the memory in use there.
Values that live in one region run on its right; those that pass between regions, on the left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape

from ..array import Array, Spec
from .emit_cpu import Source
from .fuse import Fused
from .graph import Buffer, Combine, Node, Region, is_local
from .plan import Plan
from .trace import map_leaves

LOCAL, PARTIAL, WHOLE, STATE = "local", "partial", "whole", "state"

LEGEND = {
    LOCAL: "made and read in one region, piece by piece: it stays in cache",
    PARTIAL: "one partial result for each shard, combined by a later region",
    WHOLE: "all of it lies in memory, for later regions or the caller",
}


@dataclass(frozen=True)
class GraphValue:
    """An array that a node makes or reads.

    Attributes
    ----------
    name
        What the source calls it.
    shape
        Its dtype and shape.
    lives
        ``"local"``, ``"partial"``, ``"whole"`` or ``"state"`` (it belongs to a parameter, an
        optimiser, or else comes from outside).
    """

    name: str
    shape: str
    lives: str


@dataclass(frozen=True)
class GraphNode:
    """One call of a kernel, or one loop for several elementwise ops.

    Attributes
    ----------
    does
        The op.
    members
        The ops that were fused, if any were.
    inputs, outputs
        What it reads and what it writes.
    note
        Where its result goes beside other nodes: to the caller, or a gradient's array.
    """

    does: str
    members: tuple[str, ...]
    inputs: tuple[GraphValue, ...]
    outputs: tuple[GraphValue, ...]
    note: str

    @property
    def lives(self) -> str:
        """Where its first output lives."""
        return self.outputs[0].lives

    def __str__(self) -> str:
        is_state = self.lives == STATE
        left = ", ".join(
            value.name if is_state else f"{value.name}: {value.shape}" for value in self.outputs
        )
        call = f"{self._title}({', '.join(value.name for value in self.inputs)})"
        return f"{left} {'<-' if is_state else '='} {call}"

    @property
    def _title(self) -> str:
        return f"fused[{', '.join(self.members)}]" if self.members else self.does


@dataclass(frozen=True)
class GraphRegion:
    """Nodes that run together.

    Attributes
    ----------
    function
        Its name in the source.
    walk
        How its axis is cut, in words.
    nodes
        What it runs, in order.
    """

    function: str
    walk: str
    nodes: tuple[GraphNode, ...]


@dataclass(frozen=True, repr=False)
class StepGraph:
    """What `CompiledFunction.graph` is: print it, or let a notebook draw it.

    Attributes
    ----------
    name
        Of the function.
    arguments
        The arrays that it takes.
    regions
        In the order in which they run.

    Examples
    --------
    >>> import numbagrad as ng
    >>> step = ng.compile(lambda x: ng.exp(x) * 2)
    >>> step(ng.asarray([0.0, 1.0]))
    Array([2.       , 5.4365635], dtype=float32)
    >>> print(step.graph)
    <lambda>(x: float32[2]): 1 region, 1 node
    <BLANKLINE>
    region_0: 2 rows in 1 shard, 2 at a time
      whole    multiply: float32[2] = fused[exp, multiply](x, constant)  -> returned
    <BLANKLINE>
    whole: all of it lies in memory, for later regions or the caller
    """

    name: str
    arguments: tuple[GraphValue, ...]
    regions: tuple[GraphRegion, ...]

    @property
    def nodes(self) -> list[GraphNode]:
        """All nodes, in the order in which they run."""
        return [node for region in self.regions for node in region.nodes]

    def __repr__(self) -> str:
        return f"StepGraph({self.name}: {self._size})"

    @property
    def _size(self) -> str:
        return f"{_count(len(self.regions), 'region')}, {_count(len(self.nodes), 'node')}"

    def __str__(self) -> str:
        takes = ", ".join(f"{value.name}: {value.shape}" for value in self.arguments)
        lines = [f"{self.name}({takes}): {self._size}"]
        for region in self.regions:
            lines += ["", f"{region.function}: {region.walk}"]
            for node in region.nodes:
                note = f"  -> {node.note}" if node.note else ""
                lines.append(f"  {node.lives:8} {node}{note}")
        used = {value.lives for node in self.nodes for value in node.outputs}
        legend = [f"{lives}: {what}" for lives, what in LEGEND.items() if lives in used]
        return "\n".join([*lines, "", *legend] if legend else lines)

    def _repr_svg_(self) -> str:
        return _Drawing(self).text


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


# ------------------------------------------------------------------ from a plan


def draw(source: Source) -> StepGraph:
    """Return what there is to see of a planned and emitted step."""
    plan = source.plan
    notes = _notes(plan)
    regions = tuple(
        GraphRegion(function, _walk(region), tuple(_node(node, notes) for node in region.nodes))
        for function, region in zip(source.functions, plan.regions, strict=True)
    )
    return StepGraph(plan.name, tuple(map(_value, plan.arguments)), regions)


def _walk(region: Region) -> str:
    if not region.axis:
        return "in one piece"
    shards = _count(region.shards, "shard")
    return f"{_count(region.axis, 'row')} in {shards}, {region.chunk} at a time"


def _node(node: Node | Combine | Fused, notes: dict[Buffer, str]) -> GraphNode:
    is_combine = isinstance(node, Combine)
    # A node that makes partial results writes those; the value itself is made by a `Combine`.
    written = [b if is_combine or b.parts is None else b.parts for b in node.outputs]
    return GraphNode(
        f"combine_{node.how}" if is_combine else node.name,
        tuple(member.name for member in node.members) if isinstance(node, Fused) else (),
        tuple(_value(ref.buffer) for ref in node.inputs),
        tuple(
            _value(buffer, is_partial=buffer is not out)
            for buffer, out in zip(written, node.outputs, strict=True)
        ),
        ", ".join(notes[buffer] for buffer in written if buffer in notes),
    )


def _value(buffer: Buffer, is_partial: bool = False) -> GraphValue:
    if buffer.source in ("leaf", "gradient"):
        lives = STATE
    elif is_partial:
        lives = PARTIAL
    else:
        on_cpu = buffer.spec.device == "cpu"  # a GPU's kernels see whole arrays
        lives = LOCAL if on_cpu and is_local(buffer) else WHOLE
    return GraphValue(buffer.name, _shape(buffer.spec), lives)


def _shape(spec: Spec) -> str:
    return f"{spec.dtype}[{','.join(map(str, spec.shape))}]"


def _notes(plan: Plan) -> dict[Buffer, str]:
    """Say which values leave the step, and as what."""
    notes = {node.outputs[-1]: "checked" for node in plan.checked}
    names = {id(buffer.leaf): buffer.name for buffer in plan.leaves}
    for leaf, ref in plan.gradients:
        if ref is not None:
            notes[ref.buffer] = f"{names.get(id(leaf), 'leaf')}.grad"

    def returned(ref):
        if not isinstance(ref, Array):
            notes[ref.buffer] = "returned"

    map_leaves(plan.result, returned)
    return notes


# --------------------------------------------------------------------- picture

# Pixels. Letters are monospaced, so their width is known.
FONT, LETTER, ROW, HEAD, GAP, MARGIN, LANE = 12, 7.25, 28, 32, 14, 12, 9
BOX_LETTERS = 50
# A paper of its own keeps contrast on light and dark pages, also where the picture is an <img>
# that inherits no colours. All looks are attributes: a <style> would reach the page around it.
INK, PALE, PAPER, PANEL = "#1f2328", "#57606a", "#ffffff", "#f3f4f6"
COLOURS = {LOCAL: "#0969da", PARTIAL: "#9a3412", WHOLE: "#57606a", STATE: "#116329"}
DASHES = {PARTIAL: ' stroke-dasharray="4 2"'}


@dataclass
class _Rail:
    """A value's way from the row that makes it to those that read it."""

    value: GraphValue
    start: int
    reads: list[int]
    lane: int = 0


class _Drawing:
    """A graph with a place for everything."""

    def __init__(self, graph: StepGraph):
        self.graph = graph
        rails = list(_rails(graph))
        local = [rail for rail in rails if rail.value.lives == LOCAL]
        whole = [rail for rail in rails if rail.value.lives != LOCAL]
        self.left = 2 * MARGIN + LANE * (_assign_lanes(whole) + 1)
        self.right = self.left + BOX_LETTERS * LETTER
        self.labels = self.right + LANE * (_assign_lanes(local) + 2)
        self.width = self.labels + 60 * LETTER
        self.rows: list[float] = []  # the middle of each: the arguments', then the nodes'
        shapes = list(self._boxes())
        lines = [self._rail(rail) for rail in rails if rail.reads]
        height = self.end + (len(LEGEND) + 1) * 18 + MARGIN
        self.text = "\n".join([
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width:.0f}" '
            f'height="{height:.0f}" viewBox="0 0 {self.width:.0f} {height:.0f}" '
            f'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="{FONT}">',
            f"<title>{_clean(repr(graph))}</title>",
            f'<rect width="100%" height="100%" rx="6" fill="{PAPER}"/>',
            *shapes, *lines, *self._legend(), "</svg>",
        ])  # fmt: skip

    def _boxes(self) -> Iterator[str]:
        y = float(MARGIN)
        yield _text(MARGIN, y + 15, f"{self.graph.name}: {self.graph._size}", weight="bold")
        y += 26
        for value in self.graph.arguments:
            yield self._row(y, value.name, value.shape, STATE, f"argument {value.name}", "")
            y += ROW
        for region in self.graph.regions:
            y += GAP
            height = HEAD + ROW * len(region.nodes) + 4
            yield (
                f'<rect x="{self.left - LANE}" y="{y}" width="{self.width - self.left:.1f}" '
                f'height="{height}" rx="6" fill="{PANEL}" stroke="{PALE}" stroke-opacity="0.5"/>'
            )
            yield _text(self.left, y + 20, region.function, weight="bold")
            after = self.left + (len(region.function) + 2) * LETTER
            yield _text(after, y + 20, region.walk, PALE)
            y += HEAD
            for node in region.nodes:
                tip = f"{node}" + (f" -> {node.note}" if node.note else "")
                yield self._row(
                    y, node._title, node.outputs[0].shape, node.lives, tip, _label(node)
                )
                y += ROW
            y += 4
        self.end = y + GAP

    def _row(self, y: float, name: str, shape: str, lives: str, tip: str, label: str) -> str:
        """Return a node's box; the rest of its row is free for rails and a label."""
        self.rows.append(y + ROW / 2)
        width, colour = self.right - self.left, COLOURS[lives]
        room = BOX_LETTERS - len(shape) - 4
        return (
            f"<g><title>{_clean(tip)}</title>"
            f'<rect x="{self.left}" y="{y + 2}" width="{width}" height="{ROW - 4}" rx="3" '
            f'fill="{PAPER}" stroke="{colour}"/>'
            + _text(self.left + 8, y + 18, _short(name, room))
            + _text(self.right - 8, y + 18, shape, colour, anchor="end")
            + (_text(self.labels, y + 18, _short(label, 58), PALE) if label else "")
            + "</g>"
        )

    def _rail(self, rail: _Rail) -> str:
        is_local = rail.value.lives == LOCAL
        edge, way = (self.right, 1) if is_local else (self.left, -1)
        x = edge + way * LANE * (rail.lane + 1 + 0.5)
        colour = COLOURS[rail.value.lives]
        start = self.rows[rail.start] + 5
        ends = [self.rows[row] - 5 for row in rail.reads]
        line = f"M{edge:.1f} {start}H{x:.1f}V{ends[-1]}"
        line += "".join(f"M{x:.1f} {y}H{edge:.1f}" for y in ends)
        tips = "".join(f"M{edge:.1f} {y}l{5 * way} -3v6z" for y in ends)
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y}" r="2"/>' for y in ends)
        return (
            f'<g fill="{colour}"><title>{_clean(f"{rail.value.name}: {rail.value.shape}")}</title>'
            f'<path d="{line}" fill="none" stroke="{colour}"{DASHES.get(rail.value.lives, "")}/>'
            f'<path d="{tips}"/>{dots}</g>'
        )

    def _legend(self) -> Iterator[str]:
        for k, (lives, what) in enumerate(LEGEND.items()):
            y = self.end + 18 * k + 10
            yield (
                f'<path d="M{MARGIN} {y - 4}h24" stroke="{COLOURS[lives]}" stroke-width="2"'
                f"{DASHES.get(lives, '')}/>"
            )
            yield _text(MARGIN + 32, y, f"{lives}: {what}", PALE)
        yield _text(
            MARGIN + 32, y + 18, "green: written into a parameter or other state", COLOURS[STATE]
        )


def _rails(graph: StepGraph) -> Iterator[_Rail]:
    """Yield a rail for each value but states, which many nodes read: those are labels."""
    made: dict[str, _Rail] = {
        value.name: _Rail(value, row, []) for row, value in enumerate(graph.arguments)
    }
    for row, node in enumerate(graph.nodes, len(graph.arguments)):
        for value in node.inputs:
            rail = made.get(value.name)
            if rail is not None and row not in rail.reads:
                rail.reads.append(row)
        for value in node.outputs:
            if value.lives != STATE:
                made[value.name] = _Rail(value, row, [])
    yield from made.values()


def _assign_lanes(rails: Iterable[_Rail]) -> int:
    """Give each rail the innermost lane that is free all its way; return how many there are."""
    until: list[int] = []  # the row down to which each lane is taken
    for rail in sorted((r for r in rails if r.reads), key=lambda rail: (rail.start, rail.reads)):
        free = (lane for lane, row in enumerate(until) if row <= rail.start)
        rail.lane = next(free, len(until))
        until[rail.lane :] = [rail.reads[-1], *until[rail.lane + 1 :]]
    return len(until)


def _label(node: GraphNode) -> str:
    """Say what a node reads and writes beside rails."""
    if node.lives == STATE:
        written = [value.name for value in node.outputs]
        return f"updates {', '.join(written)}"
    read = [value.name for value in node.inputs if value.lives == STATE]
    parts = [f"-> {node.note}"] if node.note else []
    return "; ".join(parts + ([f"reads {', '.join(read)}"] if read else []))


def _text(
    x: float, y: float, text: str, colour: str = INK, *, weight: str = "", anchor: str = ""
) -> str:
    looks = f' font-weight="{weight}"' if weight else ""
    looks += f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}"{looks}>{_clean(text)}</text>'


def _clean(text: str) -> str:
    """Return text as XML can hold it."""
    return escape("".join(c if c.isprintable() else " " for c in text))


def _short(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: max(letters - 1, 1)] + "…"


__all__ = ["GraphNode", "GraphRegion", "GraphValue", "StepGraph", "draw"]
