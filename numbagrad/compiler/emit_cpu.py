"""The plan as Python source: one `@njit` function for each region.

Everything that a region reads or writes is named at its top, as an address; then come the calls,
in order. The text holds no address and, where the batch is cut, no size of the batch: a process
that starts later, or another batch size, finds the same text and with it the compiled code.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import typeof
from numba.core import types
from numba.np.numpy_support import from_dtype

from ..array import DTYPES as ARRAY_DTYPES
from ..array import size_of
from .emit import Kernels, Names, literal, name_buffers
from .emit_loop import Loop
from .fuse import Fused
from .graph import Buffer, Combine, Node, Ref, Region, affine_scalars, units_of
from .plan import Plan

_NUMBERS = re.compile(r"(np\.float\d+\([^()]*\)|(?<![\w.])\d+(?![\w.]))")
RESERVED = {
    *("memory", "scratch", "shard", "first", "stop", "lo", "n", "here", "np"),
    *("array_at", "kernels_cpu", "linked", "njit", "simd", "user_kernels", "vector"),
    *("boolean", *(dtype.name for dtype in ARRAY_DTYPES)),
}
WIDTH = 92  # of a docstring's lines
_ABOUT = """\
One region after the other runs, each for all shards of the batch on as many threads as there are;
the loop over shards is numbagrad's own. A shard is walked in pieces: what one call writes is still
in cache when the next one reads it. `memory` holds the addresses of whole arrays. `here` is where a
thread's own scratch starts: values that are gone when a piece has been walked, and workspace, which
only one call uses. So different values lie at the same place, one after the other. What is made of
weights alone is made again only when one of them has changed.
"""
DTYPES = {"bool": "boolean"}  # names in Numba that are not NumPy's


@dataclass(frozen=True)
class General:
    """A source that serves any batch: see `Source.generalise`.

    Attributes
    ----------
    pieces
        The text for one batch, cut at its numbers: every second piece is one.
    named
        The numbers that depend on the batch: a name for each place among the pieces.
    text
        The text with these names in their places.
    slots
        How many slots of `memory` come before those of the numbers.
    """

    pieces: list[str]
    named: dict[int, str]
    text: str
    slots: int


def _name_of(numbers: Sequence[str], batches: Sequence[int], count: int) -> str:
    """Name a number by what it is for each of some batches."""
    if numbers[0].startswith("np."):
        return f"number_{count}"
    times = int(numbers[0]) // batches[0]
    if [int(number) for number in numbers] == [times * batch for batch in batches]:
        return "batch" if times == 1 else f"batch_times_{times}"
    return f"size_{count}"


class Source:
    """The text of a plan, and what its `memory` argument holds.

    Attributes
    ----------
    text
        The module.
    slots
        What each place of ``memory`` holds: the address of a buffer, or of an array that a kernel
        takes as a parameter, or a number that depends on the batch.
    functions
        The name of the function of each region.
    kernels, calls
        The kernels by name, and the types of the arguments that each is called with.
    general
        What makes the text serve any batch, if it does.
    """

    def __init__(self, plan: Plan, names: dict[int, str]):
        self.plan = plan
        self.general: General | None = None
        self.slots: list[Buffer | np.ndarray | int] = []
        self._slot_of: dict[int, int] = {}
        kernels = [node.op.kernel for node in plan.nodes if isinstance(node, Node)]
        taken = (name for name in kernels if isinstance(name, str))
        self._names = Names([*RESERVED, *taken])
        self._kernels = Kernels("cpu", self._names)
        self.functions: list[str] = []
        self.calls: dict[str, set[tuple[types.Type, ...]]] = {}
        self._dtypes: set[str] = set()
        self._combines: set[str] = set()
        self._functions: dict[str, str] = {}  # fused loops: body -> name
        name_buffers(plan, names, self._names)
        blocks = [self._region(at, region) for at, region in enumerate(plan.regions)]
        self.text = "\n\n".join([self._head(), *blocks]) + "\n"

    def generalise(self, others: Sequence[Source], batches: Sequence[int]) -> None:
        """Take numbers that differ from other batches' sources out of the text, into `slots`.

        What is left serves any batch: another one finds the same text, and so the same code. If
        they differ in more than numbers, the text stays as it is.

        Parameters
        ----------
        others
            Sources of the same function for other batches. The more there are, the surer are two
            numbers taken for one only where they always are the same.
        batches
            The extent of the batch here, and there.
        """
        pieces = _NUMBERS.split(self.text)
        texts = [_NUMBERS.split(other.text) for other in others]
        if any(pieces[::2] != other[::2] for other in texts):
            return
        if any(len(self.slots) != len(other.slots) for other in others):
            return  # here the batch is as long as something else, and they share a constant
        names: dict[tuple[str, ...], str] = {}  # what a number is in all: its name
        named: dict[int, str] = {}  # the places of these numbers among the pieces
        for k in range(1, len(pieces), 2):
            numbers = (pieces[k], *(other[k] for other in texts))
            if len(set(numbers)) > 1:
                named[k] = names.setdefault(numbers, _name_of(numbers, batches, len(names)))
        values = self._read_from_slots(pieces, named)
        text = "".join(named.get(k, piece) for k, piece in enumerate(pieces))
        functions = text.split("\n@njit\n")
        code = [functions[0].partition(_ABOUT)[2], *functions[1:]]
        heads = [text for text in code if "    here = scratch.ctypes.data\n" not in text]
        if any(re.search(rf"\b{name}\b", text) for name in values for text in heads):
            return  # a number that a helper needs: the width of rows that are as long as the batch
        for k, function in enumerate(functions):
            head, here, body = function.partition("    here = scratch.ctypes.data\n")
            lines = [
                f"    {name} = {value}\n"
                for name, (value, _) in values.items()
                if re.search(rf"\b{name}\b", body)
            ]
            functions[k] = head + here + "".join(lines) + body
        general = General(pieces, named, "\n@njit\n".join(functions), len(self.slots))
        self._take(general, values)

    def follow(self, general: General) -> bool:
        """Take over a source that serves any batch, if this is the same but for those numbers."""
        pieces = _NUMBERS.split(self.text)
        if pieces[::2] != general.pieces[::2] or len(self.slots) != general.slots:
            return False
        found: dict[str, str] = {}
        for k in range(1, len(pieces), 2):
            name = general.named.get(k)
            same = general.pieces[k] if name is None else found.setdefault(name, pieces[k])
            if pieces[k] != same:
                return False
        self._take(general, self._read_from_slots(pieces, general.named))
        return True

    def _read_from_slots(self, pieces: list[str], named: dict[int, str]) -> dict[str, tuple]:
        """Return by name how a number is read from `memory`, and what will lie there."""
        values: dict[str, tuple[str, np.ndarray | int]] = {}
        for k, name in named.items():
            if name in values:
                continue
            slot = f"memory[{len(self.slots) + len(values)}]"
            if pieces[k].startswith("np."):
                dtype, _, number = pieces[k][len("np.") : -1].partition("(")
                read = f"array_at({slot}, (1,), {dtype})[0]"
                values[name] = read, np.array([float(number)], dtype)
            else:
                values[name] = slot, int(pieces[k])
        return values

    def _take(self, general: General, values: dict[str, tuple]) -> None:
        self.general, self.text = general, general.text
        self.slots += [value for _, value in values.values()]

    # ------------------------------------------------------------------ names

    @property
    def kernels(self) -> dict[str, Callable]:
        """The kernels by name."""
        return self._kernels.found

    def _slot(self, what: Buffer | np.ndarray) -> int:
        if id(what) not in self._slot_of:
            self._slot_of[id(what)] = len(self.slots)
            self.slots.append(what)
        return self._slot_of[id(what)]

    # ---------------------------------------------------------------- regions

    def _head(self) -> str:
        kernels = "\n".join(
            f"{name} = linked({self._kernels.expression(name)})" for name in sorted(self.kernels)
        )
        dtypes = ", ".join(sorted(set(DTYPES.get(d, d) for d in self._dtypes)))
        helpers = [_COMBINE[how] for how in sorted(self._combines)]
        helpers += [f"@njit\ndef {name}{body}" for body, name in self._functions.items()]
        imports = [
            "import numpy as np",
            *([f"from numba import {dtypes}"] if dtypes else []),
            "",
            "from numbagrad import kernels_cpu, simd",
            "from numbagrad.compiler.linkage import array_at, linked, user_kernels",
            "from numbagrad.jit import njit",
            "from numbagrad.kernels_cpu import vector",
            *(["", kernels] if kernels else []),
        ]
        about = f'"""{self.plan.name}, compiled by numbagrad.\n\n{_ABOUT}"""\n\n'
        return about + "\n\n\n".join(["\n".join(imports), *map(str.strip, helpers)])

    def _region(self, at: int, region: Region) -> str:
        function = f"region_{at}"
        self.functions.append(function)
        self._used: dict[Buffer, str] = {}
        self._counted: dict[Region, str] = {}  # whose shards depend on the batch
        body = [line for node in region.nodes for line in self._node(node, region)]
        inner = "        " if region.axis else "    "
        head = [f"    {name} = {address}" for name, address in self._addresses(region)]
        lines = ["", "@njit", f"def {function}(memory, scratch, shard, first, stop):"]
        lines.append(textwrap.indent(f'"""{_summary(region)}{self._why_it_ends(at)}"""', "    "))
        lines += head
        if region.axis:
            lines += [
                f"    for lo in range(first, stop, {region.chunk}):",
                f"        n = min({region.chunk}, stop - lo)",
            ]
        lines += [inner + line for line in body]
        return "\n".join(lines)

    def _why_it_ends(self, at: int) -> str:
        """Return which ops, the first after a region that is cut, wait for all its pieces."""
        region, later = self.plan.regions[at], self.plan.regions[at + 1 :]
        if not region.axis:
            return ""
        made = {output.parts or output for node in region.nodes for output in node.outputs}
        for other in later:
            waiting = [
                f"combine_{node.how}" if isinstance(node, Combine) else node.name
                for node in other.nodes
                if not made.isdisjoint(_read_by(node))
            ]
            if waiting:
                text = f"Ends where all pieces are needed at once: {_listed(waiting)}."
                return f"\n\n{textwrap.fill(text, WIDTH)}\n"
        return ""

    def _addresses(self, region: Region) -> Iterable[tuple[str, str]]:
        yield "here", "scratch.ctypes.data"
        for buffer, name in self._used.items():
            if buffer in region.scratch:
                yield name, f"here + {region.scratch[buffer]}"
            else:
                yield name, f"memory[{self._slot(buffer)}]"
        for counted, name in self._counted.items():
            yield name, f"memory[{self._slot_of[id(counted)]}]"

    def _shards(self, region: Region) -> int | str:
        """Return into how many pieces a region is cut: a number, or the name of one."""
        if not region.is_open:
            return region.shards
        if id(region) not in self._slot_of:
            self._slot_of[id(region)] = len(self.slots)
            self.slots.append(region.shards)
        return self._counted.setdefault(region, f"shards_{len(self._counted)}")

    def _node(self, node: Node | Combine | Fused, region: Region) -> list[str]:
        if isinstance(node, Combine):
            self._combines.add(node.how)
            parts, size = self._name(node.parts), node.out.spec.size
            dtype = node.out.spec.dtype
            shards = self._shards(node.parts.made_in)
            return [
                f"combine_{node.how}({self._array(parts, (shards, size), dtype)}, "
                f"{self._array(self._name(node.out), (size,), dtype)})"
            ]
        arguments, after = [], []
        for k, (ref, shape) in enumerate(zip(node.inputs, node.views.inputs, strict=True)):
            arguments.append(self._input(node, region, k, ref, shape))
        if isinstance(node, Fused):
            loop = Loop(node, self._scalar)
            arguments += map(self._scalar, loop.scales)
        else:
            arguments += self._scalars(node, region)
        for k, (buffer, shape) in enumerate(zip(node.outputs, node.views.outputs, strict=True)):
            text, more = self._output(node, region, k, buffer, shape)
            arguments.append(text)
            after += more
        for start, (shape, dtype) in zip(
            region.workspace.get(node, ()), node.workspace, strict=True
        ):
            arguments.append(self._array(f"here + {start}", shape, dtype))
        text = [f"    {argument}," for argument in arguments]
        if node.workspace:
            at = len(text) - len(node.workspace)
            text.insert(at, "    # workspace")
        if isinstance(node, Fused):
            name = self._fused(node, loop)
        else:
            name = self._kernels.name(node.op)
            self.calls.setdefault(name, set()).add(_kinds(node))
        return [f"{name}(", *text, ")", *after]

    def _fused(self, group: Fused, loop: Loop) -> str:
        """Return the name of the function that runs a group; equal ones share it."""
        if loop.text not in self._functions:
            self._functions[loop.text] = self._names.new(group.name)
        return self._functions[loop.text]

    def _name(self, buffer: Buffer) -> str:
        self._used[buffer] = buffer.name
        return buffer.name

    def _array(self, address: str, shape: Iterable, dtype: np.dtype) -> str:
        self._dtypes.add(dtype.name)
        extents = ", ".join(map(str, shape))
        comma = "," if len(tuple(shape)) == 1 else ""
        return f"array_at({address}, ({extents}{comma}), {DTYPES.get(dtype.name, dtype.name)})"

    def _input(self, node, region, k, ref: Ref, shape) -> str:
        dtype, name = ref.spec.dtype, self._name(ref.buffer)
        units = units_of(node, k, True) if node.cut else 0
        address = name
        if units:
            shape = self._piece(node.cut.inputs[k] * node.cut.per, shape)
            if ref.buffer not in region.scratch:
                address += f" + {units * dtype.itemsize} * lo"
        if ref.offset:
            address += f" + {ref.offset * dtype.itemsize}"
        return self._array(address, shape, dtype)

    @staticmethod
    def _piece(rows: int, shape) -> tuple:
        return ("n" if rows == 1 else f"{rows} * n", *shape[1:])

    def _output(self, node, region, k, buffer: Buffer, shape) -> tuple[str, list[str]]:
        dtype = buffer.spec.dtype
        if buffer.parts is not None:
            mine = f"{self._name(buffer.parts)} + {buffer.nbytes} * shard"
            if buffer not in region.pieces:
                return self._array(mine, shape, dtype), []
            piece = f"here + {region.pieces[buffer]}"
            self._combines.add(buffer.combine)
            size = (size_of(shape),)
            return self._array(piece, shape, dtype), [
                f"accumulate_{buffer.combine}({self._array(piece, size, dtype)}, "
                f"{self._array(mine, size, dtype)}, lo == first)"
            ]
        address = self._name(buffer)
        units = units_of(node, k, False) if node.cut else 0
        if units:
            shape = self._piece(node.cut.outputs[k] * node.cut.per, shape)
            if buffer not in region.scratch:
                address += f" + {units * dtype.itemsize} * lo"
        return self._array(address, shape, dtype), []

    def _scalars(self, node: Node, region: Region) -> list[str]:
        if node.cut is None:
            return [self._scalar(value) for value in node.views.scalars]
        forms = affine_scalars(node, node.cut.split, node.cut.per, region.axis)
        whole = node.views.scalars
        return [
            _affine(form) if isinstance(form, tuple) and not isinstance(value, tuple)
            else self._scalar(form)
            for form, value in zip(forms, whole, strict=True)
        ]  # fmt: skip

    def _scalar(self, value: Any) -> str:
        return literal(value, self._parameter)

    def _parameter(self, value: np.ndarray) -> str:
        return self._array(f"memory[{self._slot(value)}]", value.shape, value.dtype)


def _affine(form: tuple[int, int, int]) -> str:
    a, b, c = form
    terms = [str(a)] if a or not (b or c) else []
    terms += [f"{b} * lo" if b != 1 else "lo"] if b else []
    terms += [f"{c} * n" if c != 1 else "n"] if c else []
    return " + ".join(terms)


def _kinds(node: Node) -> tuple[types.Type, ...]:
    """Return the types of a kernel's arguments."""
    ins = [(ref.spec.dtype, shape) for ref, shape in zip(node.inputs, node.views.inputs)]
    outs = [(b.spec.dtype, shape) for b, shape in zip(node.outputs, node.views.outputs)]
    room = [(dtype, shape) for shape, dtype in node.workspace]
    return (*map(_array_type, ins), *map(typeof, node.views.scalars),
            *map(_array_type, outs + room))  # fmt: skip


def _array_type(kind: tuple[np.dtype, tuple[int, ...]]) -> types.Array:
    dtype, shape = kind
    return types.Array(from_dtype(dtype), len(shape), "C")


def _summary(region: Region) -> str:
    pieces = f"In pieces of {region.chunk}" if region.axis else "In one piece"
    if region.is_settled:
        pieces = f"Of weights alone. {pieces}"
    return textwrap.fill(f"{pieces}: {_listed(node.name for node in region.nodes)}.", WIDTH)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _read_by(node: Node | Combine | Fused) -> list[Buffer]:
    return [node.parts] if isinstance(node, Combine) else [ref.buffer for ref in node.inputs]


def _combine_text(how: str, step: str) -> str:
    return f'''
@njit
def accumulate_{how}(x, out, is_first):
    """out[i] = {step.format("out[i]", "x[i]")}, or x[i] at first."""
    for i in range(out.size):
        out[i] = x[i] if is_first else {step.format("out[i]", "x[i]")}


@njit
def combine_{how}(parts, out):
    """Combine the shards' results, always in the same order."""
    for i in range(out.size):
        out[i] = parts[0, i]
    for shard in range(1, parts.shape[0]):
        for i in range(out.size):
            out[i] = {step.format("out[i]", "parts[shard, i]")}
'''


_COMBINE = {
    "sum": _combine_text("sum", "{} + {}"),
    "min": _combine_text("min", "np.minimum({}, {})"),
    "max": _combine_text("max", "np.maximum({}, {})"),
}


__all__ = ["Source"]
