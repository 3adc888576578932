"""The staging interpreter: run a function once, keep the equations, replay them.

While a function is traced its arrays hold no data: `apply` reaches this interpreter, which asks
each op for its output's shape and writes an equation down. Gradients need nothing special, for a
vjp is made of ops. Neither do optimisers and random numbers: all that changes is a `State`, read
and written in equations, so a replayed step changes it again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from .. import dispatch
from ..array import Array, Spec, State, Symbol, staging
from ..dispatch import Op, apply, apply_into, interpreter, make_call
from ..errors import GraphError, ShapeError, TraceError, users_line


@dataclass(frozen=True)
class Variable:
    """A value that the trace computes or is given, by number."""

    number: int


@dataclass(frozen=True, eq=False)
class GradientOf:
    """What ``leaf.grad`` holds when the trace is replayed."""

    leaf: Array


Operand = Variable | GradientOf | Array


@dataclass(frozen=True)
class Equation:
    """One op: ``outputs = op(inputs; params)``, written into ``targets`` if there are any.

    ``part_of`` names the op that it was expanded from.
    """

    op: Op
    inputs: tuple[Operand, ...]
    params: dict[str, Any]
    outputs: tuple[int, ...]
    specs: tuple[Spec, ...]
    targets: tuple[State, ...] | None
    part_of: str = ""


class _Leaf(NamedTuple):
    """An array from outside, with its gradient and version when the trace first met it."""

    leaf: Array
    grad: Array | None
    version: int | None


class Trace:
    """A function as a list of equations.

    Attributes
    ----------
    inputs : tuple of Spec
        The arrays that the function takes.
    equations : list of Equation
        What it does, in order.
    states : list of State
        The parameters, buffers and counters that it reads or writes.
    """

    def __init__(self, name: str):
        self.name = name
        self.inputs: tuple[Spec, ...] = ()
        self.equations: list[Equation] = []
        self.result: Any = None
        self._values = 0
        self._leaves: dict[int, _Leaf] = {}
        self.gradients: list[tuple[Array, Operand | None]] = []
        self._read: set[int] = set()  # arrays whose gradient is read as it was before
        self._replaced: set[int] = set()  # those whose gradient is another then
        self._had_none: list[tuple[Array, bool]] = []
        self._last_use: list[tuple[int, ...]] = []

    @property
    def states(self) -> list[State]:
        """The parameters, buffers and counters that are read or written."""
        return [met.leaf for met in self._leaves.values() if isinstance(met.leaf, State)]

    # ----------------------------------------------------------------- tracing

    def _symbol(self, spec: Spec) -> Array:
        array = Array(Symbol(self._values, users_line()), spec)
        self._values += 1
        return array

    def _operand(self, array: Array) -> Operand:
        """Say what an array is to the trace: a variable, or something captured from outside."""
        if isinstance(array._data, Symbol):
            return Variable(array._data.index)
        if id(array) not in self._leaves:
            for met in self._leaves.values():
                if met.grad is array:
                    return GradientOf(met.leaf)
            self.note(array)
        return array

    def _returned(self, value: Any) -> Operand:
        if not isinstance(value, Array):
            raise TraceError(f"a traced function returns arrays, got {type(value).__name__}")
        return self._operand(value)

    def note(self, leaf: Array) -> None:
        """Remember an array from outside as it is now, before the traced function changes it."""
        if not isinstance(leaf._data, Symbol) and id(leaf) not in self._leaves:
            self._leaves[id(leaf)] = _Leaf(
                leaf, leaf._grad, leaf.version if isinstance(leaf, State) else None
            )

    def note_grad(self, leaf: Array, is_read: bool) -> None:
        """Remember that the traced function reads or replaces an array's gradient."""
        self.note(leaf)
        if id(leaf) not in self._leaves:
            return
        if not is_read:
            self._replaced.add(id(leaf))
        elif id(leaf) not in self._replaced:
            self._read.add(id(leaf))

    @property
    def is_current(self) -> bool:
        """Whether the arrays whose gradients are read have one now just where they had one then.

        To add to a gradient is another thing than to make one.
        """
        return all([(leaf._grad is None) is had_none for leaf, had_none in self._had_none])

    def stage(
        self,
        op: Op,
        inputs: tuple[Array, ...],
        params: dict[str, Any],
        targets: tuple[State, ...] | None,
    ) -> tuple[Array, ...]:
        """Write an op down instead of running it; the interpreter that `apply` calls."""
        operands = tuple(self._operand(array) for array in inputs)
        call = make_call(op, tuple(array.spec for array in inputs), params)
        specs = call.outputs[: len(op.outputs)]
        outputs = tuple(self._symbol(spec) for spec in specs)
        for target in targets or ():
            self._operand(target)
        numbers = tuple(output._data.index for output in outputs)
        self.equations.append(Equation(op, operands, params, numbers, specs, targets))
        return outputs if targets is None else targets

    def _finish(self, result: Any) -> None:
        """Take the outputs, and the gradients that are left on leaves."""
        self.result = map_leaves(result, self._returned)
        for met in list(self._leaves.values()):
            after = met.leaf._grad
            if id(met.leaf) in self._replaced:
                self.gradients.append((met.leaf, None if after is None else self._operand(after)))
        read = [met for key, met in self._leaves.items() if key in self._read]
        self._had_none = [(met.leaf, met.grad is None) for met in read]
        kept: set[int] = {v.number for _, v in self.gradients if isinstance(v, Variable)}
        map_leaves(self.result, lambda v: kept.add(v.number) if isinstance(v, Variable) else None)
        self._plan_release(kept)

    def _require_untouched(self, arguments: list[Array]) -> None:
        for k, array in enumerate(arguments):
            if not isinstance(array._data, Symbol) or array._data.index != k:
                raise TraceError(
                    f"{self.name} assigns to elements of its argument number {k + 1}, which a "
                    "replay cannot do: assign to a copy (x + 0) and return it"
                )

    def _put_back(self) -> None:
        """Leave the arrays from outside as they were before the trace."""
        for met in self._leaves.values():
            met.leaf.grad = met.grad
            if met.version is not None:
                met.leaf.version = met.version

    def _plan_release(self, kept: set[int]) -> None:
        """Note after which equation each value is needed no more."""
        seen = set(kept)
        for equation in reversed(self.equations):
            numbers = {v.number for v in equation.inputs if isinstance(v, Variable)}
            numbers |= set(equation.outputs)
            self._last_use.append(tuple(numbers - seen))
            seen |= numbers
        self._last_use.reverse()

    # ------------------------------------------------------------------ replay

    def __call__(self, *args: Array) -> Any:
        """Replay the equations through the interpreter in charge.

        Raises
        ------
        ShapeError
            If the arrays are not of the shapes, dtypes and devices that were traced.
        """
        given = _specs_of(args)
        if given != self.inputs:
            raise ShapeError(
                f"{self.name} was traced for {_list(self.inputs)}, got {_list(given)}; "
                "trace it again for these"
            )
        values: dict[int, Array] = dict(enumerate(args))

        def value(operand: Operand) -> Array:
            if isinstance(operand, Variable):
                return values[operand.number]
            if not isinstance(operand, GradientOf):
                return operand
            if found[id(operand.leaf)] is None:
                raise GraphError(
                    f"{self.name} was traced while .grad of an array of shape "
                    f"{operand.leaf.shape} held a gradient to add to, and it holds none now; trace "
                    "a function that calls zero_grad() first"
                )
            return found[id(operand.leaf)]

        found = {id(met.leaf): met.leaf._grad for met in self._leaves.values()}
        before, dispatch.state.recording = dispatch.state.recording, False
        try:
            for equation, released in zip(self.equations, self._last_use, strict=True):
                inputs = [value(operand) for operand in equation.inputs]
                if equation.targets is not None:
                    apply_into(equation.targets, equation.op, *inputs, **equation.params)
                else:
                    out = apply(equation.op, *inputs, **equation.params)
                    outputs = out if isinstance(out, tuple) else (out,)
                    values.update(zip(equation.outputs, outputs, strict=True))
                for number in released:
                    values.pop(number, None)
            for leaf, variable in self.gradients:
                leaf.grad = None if variable is None else value(variable)
            return map_leaves(self.result, value)
        finally:
            dispatch.state.recording = before

    # ------------------------------------------------------------------- looks

    def __str__(self) -> str:
        names = {id(state): f"state{k}" for k, state in enumerate(self.states)}

        def show(operand: Operand) -> str:
            if isinstance(operand, Variable):
                return f"v{operand.number}"
            if isinstance(operand, GradientOf):
                return f"{names.get(id(operand.leaf), 'leaf')}.grad"
            if id(operand) in names:
                return names[id(operand)]
            if operand.size == 1:
                return repr(operand.tolist())
            return f"const {spec_text(operand.spec)}"

        lines = [f"{self.name}(" + ", ".join(
            f"v{k}: {spec_text(spec)}" for k, spec in enumerate(self.inputs)) + "):"]  # fmt: skip
        for eq in self.equations:
            if eq.targets is None:
                left = ", ".join(
                    f"v{n}: {spec_text(spec)}" for n, spec in zip(eq.outputs, eq.specs, strict=True)
                )
            else:
                left = ", ".join(names[id(target)] for target in eq.targets)
            params = "".join(f", {name}={value}" for name, value in eq.params.items())
            sign = "=" if eq.targets is None else "<-"
            lines.append(f"  {left} {sign} {eq.op.name}({', '.join(map(show, eq.inputs))}{params})")
        lines.append(f"  return {map_leaves(self.result, show)}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Trace({self.name}: {len(self.equations)} equations, {len(self.states)} states)"


def trace(f: Callable, *args: Array) -> Trace:
    """Run ``f`` once without data and return its equations.

    Parameters
    ----------
    f
        A function of arrays. It may hold a whole training step: forward, ``backward``, the
        optimiser's ``step``.
    args
        Arrays to take shapes, dtypes and devices from.

    Returns
    -------
    Trace
        Call it with arrays of the same shapes to replay the function.

    Raises
    ------
    TraceError
        If ``f`` needs a value (``if loss > 1``), naming the line that reads it.

    Examples
    --------
    >>> from numbagrad.array import asarray
    >>> x = asarray([1.0, 2.0])
    >>> print(trace(lambda x: x * x, x))
    <lambda>(v0: float32[2]):
      v1: float32[2] = multiply(v0, v0)
      return v1
    """
    traced = Trace(getattr(f, "__name__", type(f).__name__))
    traced.inputs = _specs_of(args)
    symbols = []
    for arg in args:
        symbol = traced._symbol(arg.spec)
        symbol.requires_grad = arg.requires_grad
        symbols.append(symbol)
    outer, staging.trace = staging.trace, traced
    try:
        with interpreter(traced.stage):
            traced._finish(f(*symbols))
            traced._require_untouched(symbols)
    finally:
        traced._put_back()
        staging.trace = outer
    return traced


def _specs_of(args: tuple[Array, ...]) -> tuple[Spec, ...]:
    for arg in args:
        if not isinstance(arg, Array):
            raise TypeError(f"a trace takes Arrays, got {type(arg).__name__}: use ng.asarray")
    return tuple(arg.spec for arg in args)


def map_leaves(structure: Any, function: Callable) -> Any:
    """Apply a function to every array or operand of nested tuples, lists and dicts."""
    if isinstance(structure, (tuple, list)):
        items = [map_leaves(item, function) for item in structure]
        named = hasattr(structure, "_fields")  # a namedtuple takes them one by one
        return type(structure)(*items) if named else type(structure)(items)
    if isinstance(structure, dict):
        return {name: map_leaves(item, function) for name, item in structure.items()}
    if structure is None:
        return None
    return function(structure)


def spec_text(spec: Spec) -> str:
    """Return dtype and shape, such as ``float32[2,3]``."""
    return f"{spec.dtype}[{','.join(map(str, spec.shape))}]"


def _list(specs: tuple[Spec, ...]) -> str:
    return "(" + ", ".join(f"{spec_text(spec)} on {spec.device}" for spec in specs) + ")"
