"""`compile`: a function of arrays, traced and planned once for each kind of arguments."""

from __future__ import annotations

import functools
import inspect
import threading
import types as pytypes
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .. import dispatch
from ..array import Array, asarray
from ..errors import GraphError
from ..jit import is_settled, references
from ..ops.convolution import get_winograd
from .compiled import Executable
from .draw import StepGraph, draw
from .emit_cpu import Source
from .plan import batch_axis, make_plan
from .report import StepReport, report
from .simplify import simplify
from .trace import Trace, trace

SCALARS = (bool, int, str, bytes, type(None), np.dtype, type)


def compile(
    function: Callable | None = None,
    *,
    dynamic: Sequence[str] = (),
    chunk: int | None = None,
) -> CompiledFunction | Callable[[Callable], CompiledFunction]:
    """Compile a function of arrays, such as a whole training step, into fused source.

    At the first call the function runs once without data: its ops are written down, planned and
    emitted as Numba source, which later calls run. Parameters, buffers, an optimiser's state and
    its learning rate are read and changed as the function itself would.

    Parameters
    ----------
    function
        Takes and returns arrays, or tuples, lists and dicts of them. It may call ``backward`` and
        an optimiser's ``step``. Its Python code runs at the first call for each kind of arguments
        only. Floats that it is given are traced like arrays of no dimensions; ints, bools, strings
        and None are fixed, and another value compiles anew, as another shape, dtype or mode of a
        module does.
    dynamic
        ``["batch"]`` writes source that serves any extent of the batch, the first axis of the first
        array: a last, shorter batch is planned anew, in some hundredths of a second, but nothing is
        compiled for it. It runs at its true size, without padding.
    chunk
        How many rows of the batch are walked at a time; by default as many as fit a core's own
        cache.

    Returns
    -------
    CompiledFunction
        Call it as the function. What it returns is not recorded for differentiation: what
        differentiates belongs inside.

    Raises
    ------
    TraceError
        At the call, if the function needs the value of an array (``if loss > 1``); the message
        names the line.

    Examples
    --------
    >>> @compile
    ... def norm(x):
    ...     return (x * x).sum()
    >>> norm(asarray([3.0, 4.0]))
    Array(25., dtype=float32)
    """
    if function is None:
        return functools.partial(compile, dynamic=dynamic, chunk=chunk)
    if not callable(function):
        raise TypeError(f"compile: needs a function, got {type(function).__name__}")
    if chunk is not None and (not isinstance(chunk, int) or chunk < 1):
        raise ValueError(f"compile: chunk must be an int of at least 1, got {chunk!r}")
    if isinstance(dynamic, str) or not set(dynamic) <= {"batch"}:
        raise ValueError(f'compile: dynamic must be [] or ["batch"], got {dynamic!r}')
    return CompiledFunction(function, tuple(dynamic), chunk)


class CompiledFunction:
    """What `compile` returns: call it as the function that it was made of.

    Attributes
    ----------
    function
        The function itself, as it was written.
    """

    def __init__(self, function: Callable, dynamic: tuple[str, ...], chunk: int | None):
        self.function = function
        self.dynamic = dynamic
        self.chunk = chunk
        self._variants: dict[Any, Executable | Trace] = {}
        self._last: Executable | Trace | None = None
        self._lock = threading.Lock()
        self._modules: dict[tuple, list[Any]] = {}
        self._held: list[Any] = []
        functools.update_wrapper(self, function, updated=())

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else pytypes.MethodType(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function on these arguments, compiled."""
        arrays: list[Array] = []
        shape = _flatten((args, kwargs), arrays)
        key = (shape, self._setting(), *[(x.spec, x.requires_grad) for x in arrays])
        variant = self._variants.get(key)
        if variant is None or not variant.is_current:
            with self._lock:
                variant = self._variants[key] = self._compile(args, kwargs, arrays)
        self._last = variant
        return variant(arrays) if isinstance(variant, Executable) else variant(*arrays)

    def _setting(self) -> tuple:
        """Return all beside the arguments that a trace depends on."""
        seen = tuple([x if isinstance(x, SCALARS) else id(x) for x in around(self.function)])
        if seen not in self._modules:
            found = [value for _, value in captured(self.function)]
            self._modules[seen] = [m for x in found if _is_module(x) for m in x.modules()]
            self._held.append(found)  # so that no other object takes an id
        modes = tuple([module.training for module in self._modules[seen]])
        return modes, seen, dispatch.state.recording, get_winograd()

    def _compile(self, args: tuple, kwargs: dict, arrays: list[Array]) -> Executable | Trace:
        devices = {x.device for x in arrays} or {"cpu"}

        def flat(*symbols: Array) -> Any:
            given_args, given_kwargs = _unflatten((args, kwargs), iter(symbols))
            return self.function(*given_args, **given_kwargs)

        flat.__name__ = getattr(self.function, "__name__", type(self.function).__name__)
        if devices != {"cpu"}:
            return trace(flat, *arrays)
        given = _names_of_arguments(self.function, args, kwargs)
        states = _names_of_states(self.function, args, kwargs)

        def written(arrays: list[Array]) -> tuple[Source, Trace, list[Array]]:
            traced = trace(flat, *arrays)
            equations, folded = simplify(traced)
            plan = make_plan(traced, equations, self.chunk, bool(self.dynamic))
            for buffer, name in zip(plan.arguments, given, strict=True):
                buffer.name = name
            return Source(plan, states), traced, folded

        source, traced, folded = written(arrays)
        batch = batch_axis(traced)
        if self.dynamic and batch > 1:
            twice, _, _ = written([_doubled(x, batch) for x in arrays])
            source.generalise(twice, batch)
        return Executable(source, traced, folded)

    # ------------------------------------------------------------------- looks

    @property
    def source(self) -> str:
        """The emitted source of the last call's variant."""
        return self._compiled().source.text

    @property
    def graph(self) -> StepGraph:
        """The plan of the last call's variant: print it, or let a notebook draw it."""
        return draw(self._compiled().source)

    def report(self) -> StepReport:
        """Return time, arithmetic and memory of each part, over the last calls; print it."""
        return report(self._compiled())

    def _compiled(self) -> Executable:
        if self._last is None:
            raise GraphError(f"{self.__name__} has not been called yet: there is nothing to see")
        if not isinstance(self._last, Executable):
            raise GraphError(f"{self.__name__} ran on a device for which no source is emitted yet")
        return self._last

    def __repr__(self) -> str:
        return f"CompiledFunction({self.__name__}: {len(self._variants)} variants)"


# --------------------------------------------------------------- arguments


def _flatten(value: Any, arrays: list[Array]) -> Any:
    """Take the arrays out of arguments; return what is left, as part of a key."""
    if isinstance(value, Array):
        arrays.append(value)
        return Array
    if isinstance(value, (float, np.floating, np.ndarray)):
        arrays.append(asarray(value, dtype=None if isinstance(value, np.ndarray) else np.float32))
        return Array
    if isinstance(value, (tuple, list)):
        return type(value).__name__, *[_flatten(item, arrays) for item in value]
    if isinstance(value, dict):
        return "dict", *[(name, _flatten(item, arrays)) for name, item in value.items()]
    if isinstance(value, SCALARS):
        return type(value), value
    if _is_module(value):
        return id(value), tuple([module.training for module in value.modules()])
    inside = [x for x in getattr(value, "__dict__", {}).values() if _is_module(x)]
    return id(value), tuple([module.training for x in inside for module in x.modules()])


def _unflatten(value: Any, arrays: Iterator[Array]) -> Any:
    """Put arrays back into arguments, in the order in which `_flatten` took them out."""
    if isinstance(value, (Array, float, np.floating, np.ndarray)):
        return next(arrays)
    if isinstance(value, (tuple, list)):
        items = [_unflatten(item, arrays) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        return {name: _unflatten(item, arrays) for name, item in value.items()}
    return value


def _doubled(x: Array, batch: int) -> Array:
    """Return what stands for an array in a trace of a batch twice as large; it has no data."""
    if not x.shape or x.shape[0] != batch:
        return x
    double = Array(None, x.spec._replace(shape=(2 * batch, *x.shape[1:])))
    double.requires_grad = x.requires_grad
    return double


def _names_of_arguments(function: Callable, args: tuple, kwargs: dict) -> list[str]:
    """Return a name for each array among the arguments."""
    names: list[str] = []
    for name, value in _arguments(function, args, kwargs):
        found: list[Array] = []
        _flatten(value, found)
        names += [name if len(found) == 1 else f"{name}_{k}" for k in range(len(found))]
    return names


def _arguments(function: Callable, args: tuple, kwargs: dict) -> Iterator[tuple[str, Any]]:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    for k, value in enumerate(args):
        single = k < len(parameters) and parameters[k].kind is not inspect.Parameter.VAR_POSITIONAL
        yield (parameters[k].name if single else f"argument{k}"), value
    yield from kwargs.items()


# ---------------------------------------------------------------- captured


def captured(function: Callable) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of what a function reads from around it, through functions it calls."""
    seen: set[int] = set()
    stack: list[tuple[str, Any]] = [("", function)]
    while stack:
        name, value = stack.pop()
        if id(value) in seen or is_settled(value) or isinstance(value, pytypes.ModuleType):
            continue
        seen.add(id(value))
        yield name, value
        if isinstance(value, functools.partial):
            stack += [("", value.func), *((f"{name}_{k}", x) for k, x in enumerate(value.args))]
            stack += value.keywords.items()
        elif isinstance(value, pytypes.MethodType):
            stack += [("", value.__func__), ("self", value.__self__)]
        elif isinstance(value, pytypes.FunctionType) and not is_settled(value, ("numbagrad",)):
            defaults = dict(value.__kwdefaults__ or {})
            code = value.__code__
            given = code.co_varnames[: code.co_argcount][-len(value.__defaults__ or ()) :]
            defaults.update(zip(given, value.__defaults__ or (), strict=False))
            stack += defaults.items()
            stack += [(found, x) for _, found, x in references(value)]
        elif isinstance(value, (tuple, list)):
            stack += [(f"{name}_{k}", item) for k, item in enumerate(value)]
        elif isinstance(value, dict) and name:
            stack += [(f"{name}_{key}", item) for key, item in value.items()]
        elif hasattr(value, "__dict__") and name == "self" and not _is_module(value):
            stack += vars(value).items()


def around(function: Callable) -> Sequence[Any]:
    """Return what a function's own closure and the globals that it names hold now."""
    while isinstance(function, (functools.partial, pytypes.MethodType)):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    cells = getattr(function, "__closure__", None) or ()
    values = [cell.cell_contents for cell in cells]
    code = getattr(function, "__code__", None)
    if code is not None:
        space = function.__globals__
        values += [space[name] for name in code.co_names if name in space]
    return values


def _is_module(value: Any) -> bool:
    return hasattr(value, "training") and callable(getattr(value, "modules", None))


def _names_of_states(function: Callable, args: tuple, kwargs: dict) -> dict[int, str]:
    """Return names for parameters, buffers and an optimiser's states, by their identity."""
    names: dict[int, str] = {}
    found = [*captured(function), *_arguments(function, args, kwargs)]
    found.sort(key=lambda pair: not _is_module(pair[1]))  # models first: they own the parameters
    for name, value in found:
        states = getattr(value, "_named_states", None) or getattr(value, "_states", None)
        if callable(states):
            for path, state in states().items():
                names.setdefault(id(state), f"{name}.{path}" if name else path)
        elif isinstance(value, Array):
            names.setdefault(id(value), name)
    return names


__all__ = ["CompiledFunction", "compile"]
