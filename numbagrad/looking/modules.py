"""A network as a graph that opens module by module.

Each module is a drawing of what is directly inside it: its layers and the ops that it runs itself,
from top to bottom, with a line for each array that passes from one to another. A module inside a
module is one box there, and has a drawing of its own to be opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from typing import Any

from ..array import Array, Symbol
from ..dispatch import Op
from ..layers import Module, infer_only, observing, running_modules

# Pixels, but for BOX, which is in letters: they are monospaced, so their width is known.
ROW, GAP, LANE, LETTER, MARGIN, BOX = 28, 16, 12, 7.3, 10, 66
INPUT = -1  # the place, in a drawing, of what comes from outside


@dataclass
class Node:
    """A call of a module, or of one op.

    Attributes
    ----------
    name
        The module's path; empty for an op.
    does
        What it is, such as ``Conv2d(1, 6, 5)`` or ``add``.
    shape
        Of its output.
    parameters
        How many numbers it trains, those inside included.
    inside : list of Node
        What it calls, in order.
    """

    name: str
    does: str
    shape: tuple[int, ...] = ()
    parameters: int = 0
    inside: list[Node] = field(default_factory=list)
    is_module: bool = False
    opens: bool = False  # whether it has layers inside
    _outer: Node | None = field(default=None, repr=False)

    @property
    def ops(self) -> list[str]:
        """The ops that run in it."""
        if not self.is_module:
            return [self.does]
        return [op for node in self.inside for op in node.ops]


@dataclass(frozen=True)
class ModuleGraph:
    """What `graph` returns: print it, or leave it as the last line of a notebook's cell.

    Attributes
    ----------
    root : Node
        The model.
    edges : list of (Node, Node)
        From the op that makes an array to each op that reads it; None stands for the input.
    """

    root: Node
    edges: list[tuple[Node | None, Node]]

    def __str__(self) -> str:
        return "\n".join(_lines(self.root, ""))

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f'<div class="numbagrad-graph">{self._details(self.root, is_open=True)}</div>'

    def _details(self, node: Node, is_open: bool = False) -> str:
        inner = "".join(self._details(child) for child in node.inside if child.opens)
        title = f"{node.name}: {node.does}" if node.name else node.does
        facts = f"{_shape(node)}, {node.parameters:,} parameters"
        return (
            f'<details style="margin-left:{0 if is_open else 14}px"{" open" if is_open else ""}>'
            f'<summary style="cursor:pointer"><b>{escape(title)}</b> '
            f'<span style="opacity:.7">{escape(facts)}</span></summary>{self.svg(node)}{inner}'
            "</details>"
        )

    def svg(self, node: Node | None = None) -> str:
        """Draw what is directly inside a module, by default the whole model."""
        return _drawing(node or self.root, self.edges)


def graph(model: Module, input_shape: tuple[int, ...], *, dtype: Any = "float32") -> ModuleGraph:
    """Return what a model does to an input, as a graph that opens module by module.

    Nothing is computed: only shapes flow through the model, as they do in evaluation.

    Parameters
    ----------
    model
        A module.
    input_shape
        One example's shape, such as (28, 28, 1).
    dtype
        The input's.

    Raises
    ------
    ShapeError
        If the model does not take such an input.
    TraceError
        If ``forward`` looks at values.

    Examples
    --------
    >>> import numbagrad as ng
    >>> print(graph(ng.models.resnet8(), (32, 32, 3)).root.inside[4].inside[-2].does)
    add
    >>> print(graph(ng.layers.Sequential(ng.layers.Linear(2, 3), ng.layers.ReLU()), (2,)))
    Sequential  (1, 3)
      0 Linear(2, 3)  (1, 3)
      1 ReLU()  (1, 3)
    """
    watcher = _Watcher(model)
    with observing(watcher.left):
        model.dry_run((1, *input_shape), dtype, watcher.ran)
    return ModuleGraph(watcher.root, watcher.edges)


class _Watcher:
    """Builds the tree of calls from the ops that run, and the modules that are left."""

    def __init__(self, model: Module):
        self._names = {id(module): name for name, module in model.named_modules()}
        self.root = self._called(model, None)
        self.edges: list[tuple[Node | None, Node]] = []
        self._open = [self.root]
        self._makers: dict[int, Node] = {}
        self._alive: list[Array] = []  # so that no array has the id of an earlier one

    def _called(self, module: Module, outer: Node | None) -> Node:
        opens = any(module.named_children())
        node = Node(
            self._names.get(id(module), ""),
            type(module).__name__ if opens else repr(module),
            parameters=sum(parameter.size for parameter in module.parameters()),
            is_module=True,
            opens=opens,
            _outer=outer,
        )
        if outer is not None:
            outer.inside.append(node)
        return node

    def _enter(self, modules: tuple[Module, ...]) -> Node:
        """Return the innermost open call, after opening those that are new."""
        for module in modules[len(self._open) :]:
            self._open.append(self._called(module, self._open[-1]))
        return self._open[-1]

    def ran(self, op: Op, inputs: tuple[Array, ...], params: dict[str, Any], targets: Any) -> tuple:
        """Note an op; return its outputs without values."""
        outer = self._enter(running_modules())
        outputs = infer_only(op, inputs, params, targets)
        node = Node("", op.name, outputs[0].shape, _outer=outer)
        outer.inside.append(node)
        self._read(inputs, node)
        for out in outputs:
            self._made(out, node)
        return outputs

    def left(self, module: Module, out: Any) -> None:
        """Note that a module has returned."""
        node = self._enter((*running_modules(), module))
        self._open.pop()
        if isinstance(out, Array):
            node.shape = out.shape
            if not node.inside:  # it gave back what it got
                self._read((out,), node)
                self._made(out, node)

    def _read(self, inputs: tuple[Array, ...], node: Node) -> None:
        for x in inputs:
            if isinstance(x._data, Symbol):  # it flows through the model: no weight, no constant
                self.edges.append((self._makers.get(id(x)), node))

    def _made(self, out: Array, node: Node) -> None:
        self._makers[id(out)] = node
        self._alive.append(out)


# ------------------------------------------------------------------ drawing


def _lines(node: Node, indent: str) -> Iterator[str]:
    title = f"{node.name} {node.does}".strip()
    yield f"{indent}{title}  {_shape(node)}"
    if node.opens:
        for child in node.inside:
            yield from _lines(child, indent + "  ")


def _shape(node: Node) -> str:
    return str(tuple(node.shape)) if node.shape else "()"


def _place(node: Node | None, outer: Node) -> int | None:
    """Return which of the things inside a module a node is, or is inside of; None: outside."""
    while node is not None and node._outer is not outer:
        node = node._outer
    return None if node is None else next(k for k, one in enumerate(outer.inside) if one is node)


def _drawing(outer: Node, edges: list[tuple[Node | None, Node]]) -> str:
    """Draw what is directly inside a module."""
    links = set()
    for start, end in edges:
        last = _place(end, outer)
        if last is not None:
            first = _place(start, outer)
            links.add((INPUT if first is None else first, last))
    links = sorted((a, b) for a, b in links if a != b)
    rails = [link for link in links if link[1] > link[0] + 1]
    lanes = _lanes(rails)
    left = MARGIN + LANE * (max(lanes.values(), default=-1) + 2)
    width = left + BOX * LETTER + MARGIN
    tops = [MARGIN + 14 + GAP + k * (ROW + GAP) for k in range(len(outer.inside))]

    def bottom(place: int) -> float:
        return MARGIN + 14 if place == INPUT else tops[place] + ROW

    middle = left + 24
    parts = [_text(left, MARGIN + 10, "input", "start", 0.7)]
    for first, last in links:
        if last == first + 1:
            parts.append(_arrow(f"M{middle} {bottom(first)}", f"V{tops[last]}", middle, tops[last]))
    for (first, last), lane in lanes.items():
        x, y = left - LANE * (lane + 1), tops[last] + ROW / 2
        out = bottom(first) - (6 if first == INPUT else ROW / 2)
        parts.append(_arrow(f"M{left} {out}H{x}", f"V{y}H{left}", left, y, is_level=True))
    for node, top in zip(outer.inside, tops):
        parts.append(_box(node, left, top))
    height = (tops[-1] + ROW if tops else 2 * MARGIN + 14) + MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" style="max-width:100%;height:auto" '
        'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="12" '
        f'fill="currentColor" stroke="none"><title>{escape(outer.does)}</title>'
        f"{''.join(parts)}</svg>"
    )


def _lanes(rails: list[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """Give each rail the innermost lane that is free all its way."""
    until: list[int] = []
    lanes = {}
    for first, last in sorted(rails):
        lane = next((k for k, row in enumerate(until) if row <= first), len(until))
        until[lane:] = [last, *until[lane + 1 :]]
        lanes[first, last] = lane
    return lanes


def _box(node: Node, left: float, top: float) -> str:
    name = node.name.rpartition(".")[2]
    shape = _shape(node)
    title = f"{name} {node.does}".strip() + (" ▸" if node.opens else "")
    room = BOX - len(shape) - 4
    title = title if len(title) <= room else title[: room - 1] + "…"
    facts = [f"{node.name} {node.does}".strip(), f"gives {shape}"]
    if node.parameters:
        facts.append(f"{node.parameters:,} parameters")
    if node.is_module:
        facts.append("runs " + (", ".join(node.ops) or "nothing"))
    tint = 0.16 if node.opens else 0.07 if node.is_module else 0.0
    return (
        f"<g><title>{escape('; '.join(facts))}</title>"
        f'<rect x="{left}" y="{top}" width="{BOX * LETTER:.0f}" height="{ROW}" rx="4" '
        f'fill="#3b82f6" fill-opacity="{tint}" stroke="currentColor" stroke-opacity="0.45"/>'
        + _text(left + 8, top + 18, title)
        + _text(left + BOX * LETTER - 8, top + 18, shape, "end", 0.7)
        + "</g>"
    )


def _text(x: float, y: float, text: str, anchor: str = "start", opacity: float = 1) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" opacity="{opacity}">'
        f"{escape(text)}</text>"
    )


def _arrow(start: str, way: str, x: float, y: float, is_level: bool = False) -> str:
    tip = f"M{x} {y}l-6 -3v6z" if is_level else f"M{x} {y}l-3 -6h6z"
    return (
        f'<path d="{start}{way}" fill="none" stroke="currentColor" stroke-opacity="0.6"/>'
        f'<path d="{tip}" fill-opacity="0.7"/>'
    )


__all__ = ["ModuleGraph", "Node", "graph"]
