"""Charts as small SVG drawings, whose colours are those of the page around them: light or dark.

Lines and texts have classes; `STYLE` says how these look, and a page may say otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .roofline import Roof

WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 38

# For any page, inside an element of the class `numbagrad`: colours that show on light and dark.
STYLE = """\
<style>
.numbagrad .chart { width: 100%; max-width: 440px; height: auto; }
.numbagrad .chart text { font: 12px system-ui, sans-serif; fill: currentColor; opacity: .75; }
.numbagrad .grid { stroke: currentColor; stroke-opacity: .2; fill: none; }
.numbagrad .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.numbagrad .line.train { stroke: #3b82f6; } .numbagrad .line.test { stroke: #e8710a; }
.numbagrad .dot.train { fill: #3b82f6; } .numbagrad .dot.test { fill: #e8710a; }
</style>
"""


@dataclass(frozen=True)
class Scale:
    """How numbers become places between two ends, in equal steps or in equal factors.

    Attributes
    ----------
    low, high
        The ends.
    start, end
        Their places.
    is_log
        Equal factors take equal room.
    is_whole
        All numbers are whole.
    """

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False
    is_whole: bool = False

    def __call__(self, value: float) -> float:
        """Return the place of a number."""
        low, high = self.low, self.high
        if self.is_log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """Return round numbers in it, about five.

        Examples
        --------
        >>> Scale(0, 0.93, 0, 1).ticks()
        [0.0, 0.2, 0.4, 0.6, 0.8]
        >>> Scale(0.2, 3, 0, 1, is_log=True).ticks()
        [0.2, 0.5, 1.0, 2.0]
        """
        if self.is_log:
            powers = range(math.floor(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            factors = (1.0,) if len(powers) > 4 else (1.0, 2.0, 5.0)
            marks = [float(f"{factor}e{power}") for power in powers for factor in factors]
            return [mark for mark in marks if self.low <= mark <= self.high]
        step = _round_step((self.high - self.low) / 5)
        if self.is_whole:
            step = max(step, 1)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(k * step, 12) for k in range(first, last + 1)]


def _round_step(least: float) -> float:
    """Return the next 1, 2 or 5 times a power of ten."""
    decade = 10.0 ** math.floor(math.log10(least))
    return next(step * decade for step in (1, 2, 5, 10) if step * decade >= least * (1 - 1e-9))


def _span(values: Sequence[float], *, is_log: bool = False) -> tuple[float, float]:
    """Return ends with some room around values."""
    low, high = min(values), max(values)
    if is_log:
        return low / 1.15, high * 1.15
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


class _Panel:
    """Axes, and what is drawn between them."""

    def __init__(self, x: Scale, y: Scale, x_label: str, y_label: str, *, unit: str = ""):
        self.x, self.y = x, y
        self.parts = [*self._grid(unit)]
        self.text((x.start + x.end) / 2, HEIGHT - 4, x_label, "label", "middle")
        middle = (y.start + y.end) / 2
        self.parts.append(
            f'<text class="label" text-anchor="middle" transform="translate(12 {middle:.0f}) '
            f'rotate(-90)">{escape(y_label)}</text>'
        )

    def _grid(self, unit: str) -> Iterator[str]:
        x, y = self.x, self.y
        for mark in y.ticks():
            yield f'<path class="grid" d="M{x.start} {y(mark):.1f}H{x.end}"/>'
            yield (
                f'<text class="tick" x="{x.start - 6}" y="{y(mark) + 4:.1f}" '
                f'text-anchor="end">{mark:g}{unit}</text>'
            )
        for mark in x.ticks():
            yield f'<path class="grid" d="M{x(mark):.1f} {y.start}v4"/>'
            yield (
                f'<text class="tick" x="{x(mark):.1f}" y="{y.start + 17}" '
                f'text-anchor="middle">{mark:g}</text>'
            )

    def text(self, x: float, y: float, text: str, kind: str, anchor: str = "start") -> None:
        self.parts.append(
            f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
            f"{escape(text)}</text>"
        )

    def line(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        places = " ".join(f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in points)
        self.parts.append(f'<polyline class="line {kind}" points="{places}"/>')

    def dot(self, x: float, y: float, kind: str, tip: str, radius: float = 4) -> None:
        self.parts.append(
            f'<circle class="dot {kind}" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" '
            f'r="{radius:.1f}"><title>{escape(tip)}</title></circle>'
        )

    def svg(self, title: str) -> str:
        return (
            f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(title)}">{"".join(self.parts)}</svg>'
        )


def _y_scale(low: float, high: float, *, is_log: bool = False) -> Scale:
    return Scale(low, high, HEIGHT - BOTTOM, TOP, is_log)


# ------------------------------------------------------------------- charts


def curves(
    what: str,
    series: dict[str, Sequence[tuple[float, float]]],
    *,
    is_log: bool = False,
    unit: str = "",
) -> str:
    """Draw numbers over the epochs, a line for each series; NaN is left out.

    Parameters
    ----------
    what
        What the numbers are.
    series
        Epochs and numbers, by the names of the lines, which are their classes: ``train``, ``test``.
    is_log
        Draw factors rather than differences.
    unit
        Follows each number of the axis.

    Returns
    -------
    str
        Empty if there is nothing to draw.
    """
    points = {
        name: [(x, y) for x, y in pairs if math.isfinite(y)] for name, pairs in series.items()
    }
    points = {name: pairs for name, pairs in points.items() if pairs}
    if not points:
        return ""
    values = [y for pairs in points.values() for _, y in pairs]
    epochs = [x for pairs in points.values() for x, _ in pairs]
    is_log = is_log and min(values) > 0
    first = min(1, *epochs)
    x_scale = Scale(first, max(first + 1, *epochs), LEFT, WIDTH - RIGHT, is_whole=True)
    y_scale = _y_scale(*_span(values, is_log=is_log), is_log=is_log)
    panel = _Panel(x_scale, y_scale, "epoch", what, unit=unit)
    for name, pairs in points.items():
        panel.line(pairs, name)
        for x, y in pairs if len(pairs) <= 40 else pairs[-1:]:
            panel.dot(x, y, name, f"{name} {what} after epoch {x:g}: {y:.4g}{unit}", 2.5)
    return panel.svg(f"{what} over the epochs")


@dataclass(frozen=True)
class Work:
    """A dot in a `roofline`: operations, bytes and seconds of something with a name."""

    name: str
    flops: float
    moved: float
    seconds: float


def roofline(works: Sequence[Work], roof: Roof) -> str:
    """Draw how fast each part works, by how many operations it does on each byte.

    The lines are what the machine does at most: its peak, and below that what memory allows, the
    largest amount measured and the fastest, which is a cache. A dot is as large as its share of
    the time; what takes less than half a hundredth is left out.
    """
    total = sum(work.seconds for work in works)
    works = [w for w in works if w.flops and w.moved and w.seconds >= 0.005 * total]
    if not works or not math.isfinite(roof.peak):
        return ""
    intensity = [work.flops / work.moved for work in works]
    speeds = [work.flops / work.seconds / 1e9 for work in works]
    peak = roof.peak / 1e9
    slow, fast = roof.bandwidth[max(roof.bandwidth)] / 1e9, max(roof.bandwidth.values()) / 1e9
    low, high = min(*intensity, peak / fast) / 2, max(*intensity, peak / slow) * 2
    panel = _Panel(
        Scale(low, high, LEFT, WIDTH - RIGHT, is_log=True),
        _y_scale(min(*speeds, low * slow) / 1.5, max(*speeds, peak) * 1.6, is_log=True),
        "operations for each byte",
        "GFLOP/s",
    )
    for bandwidth, kind in ((slow, "memory"), (fast, "cache")):
        knee = peak / bandwidth
        panel.line([(low, low * bandwidth), (knee, peak), (high, peak)], f"roof {kind}")
    panel.text(panel.x.end, panel.y(peak) - 6, f"peak {peak:,.0f} GFLOP/s", "tick", "end")
    for work, x, y in zip(works, intensity, speeds, strict=True):
        share = work.seconds / total
        tip = f"{work.name}: {y:,.1f} GFLOP/s, {share:.0%} of the time"
        panel.dot(x, y, "test", tip, 3 + 12 * math.sqrt(share))
    return panel.svg("roofline")
