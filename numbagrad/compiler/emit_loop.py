"""A fused group as the text of one loop over vectors, for the CPU."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

from .emit import parameters_of
from .fuse import COLUMN, FULL, ROW, SCALAR, Fused, is_sum, kinds_of
from .graph import Buffer

# Rows that are added up in registers before they join the totals in memory. A strip of them, one
# vector wide, reaches each line of memory once; more rows leave L1 before their next strip.
STRIP_ROWS = 16
# Elements that are added up before they join the total: a long chain of additions would lose small
# terms. Whole vectors on every processor.
BLOCK = 4096
WIDTH = 95  # characters of a line, without the indent
_LOADS = {
    FULL: "simd.load{1}({0}, i, n)",
    SCALAR: "simd.splat{1}({0}[0], out0)",
    ROW: "simd.load{1}({0}, j, n)",
    COLUMN: "simd.splat{1}({0}[row], out0)",
}


class Loop:
    """The text of a group's function, without its name.

    Attributes
    ----------
    scales
        What sums are multiplied by, as values; arguments between the inputs and the outputs.
    """

    def __init__(self, group: Fused, scalar: Callable[[Any], str]):
        self._group = group
        self._inputs = [f"x{k}" for k in range(len(group.inputs))]
        self._outputs = [f"out{k}" for k in range(len(group.outputs))]
        sums = {member.outputs[0]: member for member in group.members if is_sum(member)}
        values, self._steps = self._computed(scalar)
        self._stores: list[str] = []
        self._totals: list[tuple[str, str, str]] = []  # an output, its terms, a factor
        self.scales: list[Any] = []
        for name, buffer in zip(self._outputs, group.outputs, strict=True):
            if buffer not in sums:
                self._stores.append(f"simd.store({name}, i, {values[buffer]}, n)")
                continue
            factor, scale = "", sums[buffer].views.scalars[-1]
            if scale != 1:
                factor = f" * scale{len(self.scales)}"
                self.scales.append(scale)
            self._totals.append((name, values[buffer], factor))

    def _computed(self, scalar: Callable[[Any], str]) -> tuple[dict[Buffer, str], list[str]]:
        """Return what every buffer's element is called, and the lines that compute them."""
        group, values, steps = self._group, {}, []
        known = {
            (id(ref.buffer), ref.offset, kind): f"v_{name}"
            for ref, kind, name in zip(group.inputs, group.kinds, self._inputs, strict=True)
        }
        for number, member in enumerate(group.members):
            operands = [
                values.get(ref.buffer) or known[id(ref.buffer), ref.offset, kind]
                for ref, kind in zip(member.inputs, kinds_of(member), strict=True)
            ]
            if is_sum(member):  # of these terms
                values[member.outputs[0]] = operands[0]
                continue
            operands += map(scalar, parameters_of(member))
            values[member.outputs[0]] = f"v{number}"
            steps.append(f"v{number} = vector.{member.op.formula}({', '.join(operands)})")
        return values, steps

    @property
    def text(self) -> str:
        """The parameters and the body."""
        scales = [f"scale{k}" for k in range(len(self.scales))]
        lanes = "simd.WIDE * simd.lanes(out0)" if self._is_flat else "simd.lanes(out0)"
        lines = [*self._summary(), f"lanes = {lanes}", *self._loads(SCALAR)]
        if self._totals and self._group.adds_rows:
            lines += self._strips()
        elif self._totals:
            lines += self._blocks()
        elif self._group.width:
            lines += self._rows()
        else:
            lines += self._flat()
        head = f"({', '.join([*self._inputs, *scales, *self._outputs])}):"
        return "\n".join([head, *("    " + line for line in lines)])

    def _summary(self) -> list[str]:
        texts = []
        for whole, members in groupby(self._group.members, lambda member: member.part_of):
            ops = ", ".join(member.op.name for member in members)
            texts.append(f"{whole} ({ops})" if whole else ops)
        return textwrap.wrap(f'"""One loop for {", ".join(texts)}."""', WIDTH)

    def _loads(self, *kinds: str) -> Iterator[str]:
        for name, kind in zip(self._inputs, self._group.kinds, strict=True):
            if kind in kinds:
                yield f"v_{name} = {_LOADS[kind].format(name, '_wide' if self._is_flat else '')}"

    @property
    def _is_flat(self) -> bool:
        """Whether there are no rows: then wide vectors are what there is to walk."""
        return not (self._totals or self._group.width)

    def _flat(self) -> Iterator[str]:
        yield "for i in range(0, out0.size, lanes):"
        yield "    n = out0.size - i"
        for line in (*self._loads(FULL), *self._steps, *self._stores):
            yield f"    {line}"

    def _rows(self) -> Iterator[str]:
        width = self._group.width
        yield f"for row in range(out0.size // {width}):"
        yield f"    for j in range(0, {width}, lanes):"
        yield f"        i, n = row * {width} + j, {width} - j"
        for line in (*self._loads(FULL, ROW, COLUMN), *self._steps, *self._stores):
            yield f"        {line}"

    def _strips(self) -> Iterator[str]:
        """Add up a few rows at a time, strip by strip: what repeats along rows is loaded once."""
        width = self._group.width
        full = self._inputs[self._group.kinds.index(FULL)]
        for name, _, _ in self._totals:
            yield f"{name}[:] = 0"
        yield f"rows = {full}.size // {width}"
        yield f"for first in range(0, rows, {STRIP_ROWS}):"
        yield f"    for j in range(0, {width}, lanes):"
        yield f"        n = {width} - j"
        for line in self._loads(ROW):
            yield f"        {line}"
        names = " = ".join(f"sum_{name}" for name, _, _ in self._totals)
        yield f"        {names} = simd.splat(0, out0)"
        yield f"        for row in range(first, min(first + {STRIP_ROWS}, rows)):"
        yield f"            i = row * {width} + j"
        for line in (*self._loads(FULL, COLUMN), *self._steps, *self._stores):
            yield f"            {line}"
        for name, terms, _ in self._totals:
            yield f"            sum_{name} = sum_{name} + {terms}"
        for name, _, factor in self._totals:
            total = f"simd.load({name}, j, n) + sum_{name}{factor}"
            yield f"        simd.store({name}, j, {total}, n)"

    def _blocks(self) -> Iterator[str]:
        """Add up all elements, block by block; what is no whole vector comes last."""
        width = self._group.width
        full = self._inputs[self._group.kinds.index(FULL)]
        sums = [(f"sum_{name}", terms) for name, terms, _ in self._totals]
        yield "zero, places = simd.splat(0, out0), simd.integers(out0, 0, 1)"
        yield " = ".join([*(f"total_{name}" for name, _, _ in self._totals), "zero"])
        body = [*self._loads(FULL, ROW, COLUMN), *self._steps, *self._stores]
        masked = [*body, "outside = places >= n"]
        masked += [f"{name} = {name} + simd.where(outside, zero, {terms})" for name, terms in sums]
        if width:
            rows = max(BLOCK // width, 1)
            yield f"rows = {full}.size // {width}"
            yield f"for first in range(0, rows, {rows}):"
            loops = [
                f"for row in range(first, min(first + {rows}, rows)):",
                f"    for j in range(0, {width}, lanes):",
                f"        i, n = row * {width} + j, min({width} - j, lanes)",
                *("        " + line for line in masked),
            ]
        else:
            yield f"whole = {full}.size // lanes * lanes"
            yield f"for first in range(0, {full}.size, {BLOCK}):"
            whole = [line.replace(", n)", ")") for line in body]  # these need no masks
            whole += [f"{name} = {name} + {terms}" for name, terms in sums]
            loops = [
                f"for i in range(first, min(first + {BLOCK}, whole), lanes):",
                *("    " + line for line in whole),
                f"if first + {BLOCK} > {full}.size > whole:",
                f"    i, n = whole, {full}.size - whole",
                *("    " + line for line in masked),
            ]
        yield "    " + " = ".join([*(name for name, _ in sums), "zero"])
        for line in loops:
            yield f"    {line}"
        for name, _, _ in self._totals:
            yield f"    total_{name} = total_{name} + sum_{name}"
        for name, _, factor in self._totals:
            yield f"{name}[0] = simd.reduce_sum(total_{name}){factor}"


__all__ = ["Loop"]
