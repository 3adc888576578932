"""The plan as Python source for a GPU: fused `@cuda.jit` kernels, and one function that launches.

The kernels are written as those in ``kernels_cuda.py`` are: ``_name`` is what a thread does,
``name`` its launcher. ``step`` is given all arrays that it works on, each in the shape in which a
kernel sees it, and starts one kernel after the other. Launches depend on shapes alone: what
changes from step to step (a learning rate, a count of random draws) is read from the GPU's memory
by the kernel that needs it. So the same launches can be replayed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..array import Spec, size_of
from .emit import Kernels, Names, literal, name_buffers, parameters_of
from .fuse import COLUMN, FULL, ROW, SCALAR, Fused, kinds_of
from .graph import Buffer, Node
from .plan import Plan

RESERVED = (
    *("memory", "step", "stream", "i", "np", "cuda", "launch", "scalar", "user_kernels"),
    *("BLOCK", "kernels_cuda"),
)
WIDTH = 99  # characters of a line


@dataclass(frozen=True)
class View:
    """An array as a kernel sees it: what one place of ``step``'s `memory` holds.

    Attributes
    ----------
    buffer
        What it is a part of; None for a kernel's workspace, which lies in the arena.
    offset
        Its first element; of workspace, its first byte in the arena.
    """

    buffer: Buffer | None
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def is_whole(self) -> bool:
        """Whether it is a buffer as it is."""
        return self.shape == self.buffer.spec.shape and not self.offset


class Source:
    """The text of a plan, and what its `memory` argument holds.

    Attributes
    ----------
    text
        The module.
    functions
        The name of the function that runs the plan's region, if it has one.
    views
        What each place of ``memory`` holds.
    fused
        The names of fused kernels, without the underscore, by their parameters and body.
    """

    def __init__(self, plan: Plan, names: dict[int, str]):
        self.plan = plan
        self.functions = ["step"] * len(plan.regions)
        self.views: dict[View, str] = {}  # and its name
        kernels = [node.op.kernel for node in plan.nodes if isinstance(node, Node)]
        taken = (name for name in kernels if isinstance(name, str))
        self._names = Names([*RESERVED, *taken])
        self._kernels = Kernels("cuda", self._names)
        self.fused: dict[str, str] = {}
        self._constants: dict[str, str] = {}  # an array that a launcher takes: its name
        name_buffers(plan, names, self._names)
        self._name_views()
        launches = [self._launch(node) for node in plan.nodes]
        self.text = "\n\n\n".join([self._head(), *self._fused_kernels(), self._step(launches)])

    @property
    def kernels(self) -> dict[str, Callable]:
        """The launchers that are not emitted, by name."""
        return self._kernels.found

    # ------------------------------------------------------------------- text

    def _head(self) -> str:
        found = [f"{name} = {self._kernels.expression(name)}" for name in sorted(self.kernels)]
        constants = [f"{name} = {value}" for value, name in self._constants.items()]
        if constants:
            constants.insert(0, "# Where elements lie in operands that repeat or are permuted.")
        imports = ["import numpy as np\n", "from numbagrad import kernels_cuda"]
        if any("user_kernels" in line for line in found):
            imports.append("from numbagrad.compiler.linkage import user_kernels")
        if self.fused:
            imports.append("from numbagrad.cuda_support import BLOCK, cuda, launch")
            imports.append("from numbagrad.kernels_cuda import scalar")
        blocks = [f'"""{self.plan.name}, compiled by numbagrad for CUDA."""', "\n".join(imports)]
        return "\n\n".join(blocks + ["\n".join(lines) for lines in (found, constants) if lines])

    def _fused_kernels(self) -> list[str]:
        return [
            f"@cuda.jit\ndef _{name}{body}\n\n\n"
            f"def {name}({parameters}, stream):\n"
            '    """Start a thread per element."""\n'
            f"    launch(_{name}, -(-out0.size // BLOCK), BLOCK, stream, {parameters})"
            for body, name in self.fused.items()
            for parameters in [body[1 : body.index(")")]]
        ]

    def _step(self, launches: list[str]) -> str:
        values = sum(view.buffer is not None for view in self.views)
        lines = [
            "def step(memory, stream):",
            f'    """Launches: {len(launches)}. Arrays: {values}. Bytes of the arena: '
            f'{self.plan.arena_bytes}."""',
        ]
        if self.views:
            width = max(map(len, self.views.values())) + 1
            unpacked = [
                f"        {name + ',':{width}}  # {self._description(view)}"
                for view, name in self.views.items()
            ]
            lines += ["    (", *unpacked, "    ) = memory"]
        return "\n".join([*lines, *(textwrap.indent(text, "    ") for text in launches)]) + "\n"

    def _description(self, view: View) -> str:
        """Say what an array is and where it lies."""
        if view.buffer is None:
            if not size_of(view.shape):
                return f"{_shape(view)}: workspace that only a CPU needs"
            return f"{_shape(view)}: workspace, at byte {view.offset} of the arena"
        spec = view.buffer.spec
        shape = _shape(spec)
        if view.shape != spec.shape:
            shape += f" as {list(view.shape)}"
        if view.offset:
            shape += f" from element {view.offset} on"
        if view.buffer in self.plan.places:
            return f"{shape}: at byte {self.plan.places[view.buffer]} of the arena"
        return f"{shape}: {_SOURCES[view.buffer.source]}"

    # ------------------------------------------------------------------ views

    def _views_of(self, node: Node | Fused) -> tuple[list[View], list[View], list[View]]:
        """Return how a node's kernel sees its inputs, its outputs and its workspace."""
        inputs = [
            View(ref.buffer, ref.offset, tuple(map(int, shape)), ref.spec.dtype)
            for ref, shape in zip(node.inputs, node.views.inputs, strict=True)
        ]
        outputs = [
            View(buffer, 0, tuple(map(int, shape)), buffer.spec.dtype)
            for buffer, shape in zip(node.outputs, node.views.outputs, strict=True)
        ]
        starts = [start for region in self.plan.regions for start in region.workspace.get(node, ())]
        workspace = [
            View(None, start if size_of(shape) else 0, shape, dtype)
            for start, (shape, dtype) in zip(starts, node.workspace, strict=True)
        ]
        return inputs, outputs, workspace

    def _name_views(self) -> None:
        """Name all arrays: a buffer's name, with the shape where it is seen in several."""
        seen: dict[View, str] = {}
        shapes: dict[Buffer | None, int] = {}
        for node in self.plan.nodes:
            for view in [view for views in self._views_of(node) for view in views]:
                if view not in seen:
                    seen[view] = node.name
                    shapes[view.buffer] = shapes.get(view.buffer, 0) + 1
        for view, node_name in seen.items():
            if view.buffer is None:
                is_used = bool(size_of(view.shape))
                name = self._names.new(f"{node_name}_workspace" if is_used else "unused")
            elif shapes[view.buffer] == 1 or view.is_whole:
                name = view.buffer.name
            else:
                suffix = "x".join(map(str, view.shape)) if len(view.shape) > 1 else "flat"
                start = f"_from_{view.offset}" if view.offset else ""
                name = self._names.new(f"{view.buffer.name}{start}_{suffix}")
            self.views[view] = name

    # --------------------------------------------------------------- launches

    def _launch(self, node: Node | Fused) -> str:
        inputs, outputs, workspace = self._views_of(node)
        arguments = [self.views[view] for view in inputs]
        if isinstance(node, Node):
            arguments += [literal(value, self._constant) for value in node.views.scalars]
        arguments += [self.views[view] for view in [*outputs, *workspace]]
        name = self._fused_name(node) if isinstance(node, Fused) else self._kernels.name(node.op)
        call = f"{name}({', '.join([*arguments, 'stream'])})"
        if len(call) + 4 > WIDTH:
            listed = textwrap.fill(", ".join([*arguments, "stream"]), WIDTH - 8,
                                   break_long_words=False, break_on_hyphens=False)  # fmt: skip
            call = f"{name}(\n{textwrap.indent(listed, '    ')}\n)"
        made = ", ".join(f"{buffer.name} {_shape(buffer.spec)}" for buffer in node.outputs)
        comment = textwrap.fill(made, WIDTH - 4, initial_indent="# ", subsequent_indent="# ")
        return f"{comment}\n{call}"

    def _constant(self, value: np.ndarray) -> str:
        text = f'np.array({value.tolist()}, "{value.dtype.name}")'
        if text not in self._constants:
            self._constants[text] = self._names.new("layout")
        return self._constants[text]

    # ----------------------------------------------------------------- fusion

    def _fused_name(self, group: Fused) -> str:
        """Return the name of the kernel that runs a group; equal ones share it."""
        body = self._fused_body(group)
        if body not in self.fused:
            self.fused[body] = self._names.new(group.name)
        return self.fused[body]

    def _fused_body(self, group: Fused) -> str:
        index = {
            FULL: "i",
            SCALAR: "0",
            ROW: f"i % {group.width}",
            COLUMN: f"i // {group.width}",
        }
        inputs = [f"x{k}" for k in range(len(group.inputs))]
        outputs = [f"out{k}" for k in range(len(group.outputs))]
        known = {
            (id(ref.buffer), ref.offset, kind): f"{name}[{index[kind]}]"
            for ref, kind, name in zip(group.inputs, group.kinds, inputs, strict=True)
        }
        values: dict[Buffer, str] = {}
        steps = []
        for number, member in enumerate(group.members):
            operands: list[Any] = []
            for ref, kind in zip(member.inputs, kinds_of(member), strict=True):
                if ref.buffer in values:
                    operands.append(values[ref.buffer])
                else:
                    operands.append(known[id(ref.buffer), ref.offset, kind])
            operands += [literal(value, self._constant) for value in parameters_of(member)]
            values[member.outputs[0]] = f"v{number}"
            steps.append(f"v{number} = scalar.{member.op.formula}({', '.join(operands)})")
        steps += [
            f"{name}[i] = {values[buffer]}"
            for name, buffer in zip(outputs, group.outputs, strict=True)
        ]
        names = ", ".join(member.op.name for member in group.members)
        summary = textwrap.fill(f'"""One pass for {names}."""', WIDTH - 4)
        return "\n".join([
            f"({', '.join([*inputs, *outputs])}):",
            textwrap.indent(summary, "    "),
            "    i = cuda.grid(1)",
            "    if i < out0.size:",
            *(f"        {step}" for step in steps),
        ])  # fmt: skip


_SOURCES = {
    "argument": "an argument",
    "leaf": "from outside",
    "gradient": "a gradient from outside",
    "value": "kept for the caller",
}


def _shape(array: Spec | View) -> str:
    return f"{array.dtype}[{','.join(map(str, array.shape))}]"


__all__ = ["Source", "View"]
