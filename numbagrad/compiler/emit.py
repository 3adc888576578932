"""What the emitters for all devices share: the names of buffers and kernels, and literals."""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .. import device as devices
from ..dispatch import Op, find_kernel
from ..jit import content_key, function_of
from .fuse import Fused
from .graph import Combine, Node
from .linkage import user_kernels
from .plan import Plan

_TAKEN_OUT = re.compile(
    r"(batch|size|number|shards|region|combine|accumulate)(_|$)"
)  # see `generalise`


class Names:
    """Names that are Python's and used once."""

    def __init__(self, taken: Iterable[str]):
        self._taken = {*dir(builtins), *taken}

    def new(self, wanted: str) -> str:
        """Return a name like the one that is wanted, and never again."""
        base = re.sub(r"\W", "_", wanted).strip("_") or "value"
        if base[0].isdigit() or keyword.iskeyword(base) or _TAKEN_OUT.match(base):
            base = "_" + base
        name, number = base, 2
        while name in self._taken:
            name, number = f"{base}_{number}", number + 1
        self._taken.add(name)
        return name


def name_buffers(plan: Plan, states: dict[int, str], names: Names) -> None:
    """Name every buffer: states as in the model, values after the op that makes them.

    Parameters
    ----------
    plan
        Its arguments have the names that they have in the user's function.
    states
        What parameters, buffers and other arrays from outside are called, by their identity.
    names
        Where names are taken from.
    """
    for buffer in plan.arguments:
        buffer.name = names.new(buffer.name)
    for buffer in plan.leaves:
        buffer.name = names.new(states.get(id(buffer.leaf), "constant"))
    for buffer in plan.gradients_read:
        buffer.name = names.new("grad_" + states.get(id(buffer.leaf), "leaf"))
    for region in plan.regions:
        for node in region.nodes:
            for k, output in enumerate(node.outputs):
                if not output.name:
                    output.name = names.new(_output_name(node, k))
                if output.parts is not None and not output.parts.name:
                    output.parts.name = names.new(output.name + "_parts")


def _output_name(node: Node | Combine | Fused, k: int) -> str:
    if isinstance(node, Combine):
        return node.out.name or "total"
    if isinstance(node, Fused):
        (maker,) = [member for member in node.members if node.outputs[k] in member.outputs]
        return _output_name(maker, maker.outputs.index(node.outputs[k]))
    if node.part_of:
        return f"{node.part_of}_{node.op.name}"
    names = (*node.op.outputs, "flag")
    plain = len(node.op.outputs) == 1 or names[k] == "out"
    return node.op.name if plain and k == 0 else f"{node.op.name}_{names[k]}"


class Kernels:
    """The kernels that a source calls, by the names it has for them; users' are named after ops."""

    def __init__(self, device: str, names: Names):
        self._module = devices.backend(device).kernels
        self._device, self._names = device, names
        self._name_of: dict[int, str] = {}
        self.found: dict[str, Callable] = {}

    def name(self, op: Op) -> str:
        """Return what the source calls an op's kernel."""
        kernel = find_kernel(op, self._device)
        if isinstance(op.kernel, str):
            self.found[op.kernel] = kernel
            return op.kernel
        if id(kernel) not in self._name_of:
            name = self._name_of[id(kernel)] = self._names.new(f"{op.name}_kernel")
            self.found[name] = kernel
        return self._name_of[id(kernel)]

    def expression(self, name: str) -> str:
        """Return how the emitted module finds a kernel."""
        kernel = self.found[name]
        if getattr(self._module, name, None) is kernel:
            return f"{self._module.__name__.rpartition('.')[2]}.{name}"
        key = content_key(function_of(kernel)) or str(id(kernel))
        user_kernels[key] = kernel
        return f"user_kernels[{key!r}]"


def parameters_of(member: Node) -> tuple:
    """Return what a formula takes beside arrays."""
    return tuple(x for x in member.views.scalars if not isinstance(x, np.ndarray))


def literal(value: Any, array: Callable[[np.ndarray], str]) -> str:
    """Return a kernel's parameter as Python text; ``array`` writes those that are arrays."""
    if isinstance(value, np.ndarray):
        return array(value)
    if isinstance(value, tuple):
        parts = ", ".join(literal(item, array) for item in value)
        return f"({parts},)" if len(value) == 1 else f"({parts})"
    if isinstance(value, np.generic) and not isinstance(value, np.bool_):
        return f"np.{value.dtype.name}({_number(value.item())})"
    return _number(value)


def _number(value: Any) -> str:
    if isinstance(value, float) and not np.isfinite(value):
        return f"np.{value}" if value > 0 or value != value else "-np.inf"
    return repr(value)


__all__ = ["Kernels", "Names", "literal", "name_buffers", "parameters_of"]
