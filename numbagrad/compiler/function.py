"""`compile`: a function of arrays, traced and planned once for each kind of arguments."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import operator
import os
import site
import sys
import sysconfig
import threading
import types as pytypes
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np

from .. import dispatch
from ..array import FLOATS, Array, Spec, State, asarray
from ..errors import GraphError, OutOfMemoryError, ShapeError, TraceError
from ..jit import OURS, announce, is_settled, references
from ..ops.convolution import get_winograd
from .compiled import CPUExecutable, Executable
from .compiled_cuda import CUDAExecutable
from .draw import StepGraph, draw
from .emit_cpu import General
from .emit_cpu import Source as CPUSource
from .emit_cuda import Source as CUDASource
from .export import export
from .plan import Decisions, Plan, batch_axis, make_device_plan, make_plan
from .report import StepReport, report
from .simplify import simplify
from .trace import Trace, spec_text, trace

SCALARS = (bool, int, str, bytes, type(None), np.dtype, type)
PLAIN = {bool, int, str, bytes, type(None)}
NOT_OBJECTS = (type, pytypes.FunctionType, pytypes.MethodType, pytypes.BuiltinFunctionType,
               functools.partial, numba.core.dispatcher.Dispatcher)  # fmt: skip
CONTAINERS = (list, dict, tuple, pytypes.SimpleNamespace, pytypes.MethodType, functools.partial)
MAX_VARIANTS = 64  # of a function; what was compiled stays on disk
MAX_GENERAL = 8  # sources for any batch that are looked through
MAX_CAPTURED = 10_000  # things around a function
MAX_MARKS = 1_000  # states of what is around it that are told apart


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
        compiled for it, unless it is a single row. It runs at its true size, without padding. On a
        GPU each batch size has a source of its own.
    chunk
        How many rows of the batch are walked at a time; by default as many as fit a core's own
        cache. On a GPU each kernel sees the whole batch.

    Returns
    -------
    CompiledFunction
        Call it as the function. What it returns is not recorded for differentiation: what
        differentiates belongs inside. Where an argument is differentiated (`numbagrad.grad` of it,
        or ``requires_grad``), and inside another compiled function, the function itself runs.

    Notes
    -----
    What the function reads from around it is compared at each call: closures, globals, lists, and
    the attributes of modules, optimisers and other objects, NumPy arrays of up to 1 MiB number by
    number; larger ones are taken to stay as they are, and so are installed libraries.

    A bad value that a kernel finds, such as a label out of range, is reported when the whole step
    has run; on a GPU at the next read of an array, as in ops.

    On a GPU each step makes the same launches, on memory that stays where it is: of fused kernels
    for elementwise ops that follow on each other, and of the ops' own kernels for all others.

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
    if chunk is not None and (type(chunk) is not int or chunk < 1):
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
        functools.update_wrapper(self, function, updated=())
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        self.function = function
        self.dynamic = dynamic
        self.chunk = chunk
        self._variants: dict[Any, list[Executable | Trace]] = {}
        self._last: Executable | Trace | None = None
        self._has_said = False  # that another shape compiles anew
        self._lock = threading.Lock()
        self._surroundings = Surroundings(function)
        self._held: list[Any] = []  # arguments that keys know by their ids
        # What serves any batch: decisions by the ops, sources.
        self._decisions: dict[tuple[str, ...], Decisions] = {}
        self._general: deque[General] = deque(maxlen=MAX_GENERAL)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else pytypes.MethodType(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function on these arguments, compiled."""
        arrays: list[Array] = []
        objects: list[Any] = []
        if not kwargs and set(map(type, args)) == {Array}:  # mostly, and seen fastest
            shape, arrays = len(args), list(args)
        else:
            shape = _flatten((args, kwargs), arrays, objects)
            arrays = _as_arrays(arrays)
        if len(dispatch.state.interpreters) > 1 or (
            dispatch.state.recording and any([x.requires_grad for x in arrays])
        ):
            return self.function(*args, **kwargs)  # someone traces it, or differentiates it
        key = self._key(shape, arrays, objects)
        for variant in self._variants.get(key, ()):
            if variant.is_current:
                break
        else:
            with self._lock:
                variant = self._add_variant(shape, args, kwargs, arrays, objects)
        self._last = variant
        return variant(arrays) if isinstance(variant, Executable) else variant(*arrays)

    def _key(self, shape: Any, arrays: list[Array], objects: list[Any]) -> tuple:
        """Return all that a trace depends on, but for what a variant itself looks at."""
        mark = self._surroundings.mark(objects)
        specs = [x.spec for x in arrays]
        return shape, mark, dispatch.state.recording, get_winograd(), *specs

    def _add_variant(self, shape, args, kwargs, arrays, objects) -> Executable | Trace:
        if len(self._variants) >= MAX_VARIANTS:  # each holds memory
            self._variants.clear()
            self._held.clear()
        before = self._other_shapes(self._key(shape, arrays, objects), len(arrays))
        with self._surroundings.changed_by_tracing():
            variant = self._compile(args, kwargs, arrays, before)
        known = self._variants.setdefault(self._key(shape, arrays, objects), [])
        known[:] = [variant, *known[: MAX_VARIANTS - 1]]
        self._held.append(objects)
        return variant

    def _other_shapes(self, key: tuple, count: int) -> tuple[Spec, ...] | None:
        """Return the last specs compiled for, if nothing but shapes and dtypes is new."""
        others = [
            known
            for known in self._variants
            if known[: len(known) - count] == key[: len(key) - count]
        ]
        return None if key in others or not others else others[-1][len(key) - count :]

    def _say_once(
        self, source: CPUSource | CUDASource, names: list[str], before, after: tuple[Spec, ...]
    ) -> None:
        """Say that other shapes compile anew, unless source emitted before serves them, too.

        With ``before`` None nothing was compiled for other shapes.
        """
        if before is None:
            return
        variants = [variant for known in self._variants.values() for variant in known]
        known = {variant.source.text for variant in variants if isinstance(variant, Executable)}
        if self._has_said or source.text in known:
            return
        self._has_said = True
        pairs = [
            (name, old, new)
            for name, old, new in zip(names, before, after, strict=True)
            if old != new
        ]
        changes = [f"{name} {spec_text(new)}, before {spec_text(old)}" for name, old, new in pairs]
        serves = not self.dynamic and all(
            old.shape and new.shape and old._replace(shape=new.shape[:1] + old.shape[1:]) == new
            for _, old, new in pairs
        )
        hint = ' (compile(dynamic=["batch"]) would serve any batch)' if serves else ""
        announce(f"{self.__name__} again: {'; '.join(changes)}{hint}")

    def _compile(
        self, args: tuple, kwargs: dict, arrays: list[Array], before: tuple[Spec, ...] | None
    ) -> Executable | Trace:
        def flat(*symbols: Array) -> Any:
            given_args, given_kwargs = _unflatten((args, kwargs), iter(symbols))
            return self.function(*given_args, **given_kwargs)

        flat.__name__ = getattr(self.function, "__name__", type(self.function).__name__)
        given = _names_of_arguments(self.function, args, kwargs)
        states = _names_of_states(self.function, args, kwargs)
        traced = trace(flat, *arrays)
        devices = {spec.device for spec in traced.inputs}
        devices |= {spec.device for equation in traced.equations for spec in equation.specs}
        if devices == {"cuda"}:
            equations, folded = simplify(traced)
            plan = make_device_plan(traced, equations)
            source = CUDASource(_named(plan, given), states)
            self._say_once(source, given, before, traced.inputs)
            return _on_device(CUDAExecutable, source, traced, folded)
        if "cuda" in devices:
            return traced

        def written(traced: Trace) -> tuple[CPUSource, list[Array]]:
            equations, folded = simplify(traced)
            plan = make_plan(traced, equations, self.chunk, bool(self.dynamic), self._decisions)
            if self.dynamic:
                self._decisions.setdefault(plan.decisions.ops, plan.decisions)
            return CPUSource(_named(plan, given), states), folded

        source, folded = written(traced)
        batch = batch_axis(traced)
        if self.dynamic and not any(map(source.follow, self._general)) and batch > 1:
            # A function that does not take other batches is compiled for this one alone.
            with contextlib.suppress(ShapeError, TraceError, IndexError, ValueError):
                batches = batch, 2 * batch, batch + 1
                others = [
                    written(trace(flat, *[_of_batch(x, batch, other) for x in arrays]))[0]
                    for other in batches[1:]
                ]
                source.generalise(others, batches)
                if source.general is not None:
                    self._general.appendleft(source.general)
        self._say_once(source, given, before, traced.inputs)
        return _on_device(CPUExecutable, source, traced, folded)

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
        """Return time, arithmetic and memory of each part, over the last calls; print it.

        Of a step on a GPU it holds arithmetic and memory of each launch, but no times.
        """
        return report(self._compiled())

    def export(self, path: str | Path) -> None:
        """Write the last call's variant as a Python module that needs only Numba and NumPy.

        Its arrays go into an .npz file beside it. The module's ``step`` takes and returns NumPy
        arrays, and changes its ``states``, a dict by name, in place.

        Parameters
        ----------
        path
            Where; it ends in ``.py``. Its folder is made if missing.

        Raises
        ------
        GraphError
            Before the first call, after one on a GPU, or if a kernel of a user's has no source to
            be written.
        """
        executable = self._compiled()
        if not isinstance(executable, CPUExecutable):
            raise GraphError(
                f"{self.__name__} ran on 'cuda', and what is exported runs on a CPU: call it with "
                "arrays on 'cpu' first"
            )
        export(executable, path)

    def _compiled(self) -> Executable:
        if self._last is None:
            raise GraphError(f"{self.__name__} has not been called yet: there is nothing to see")
        if not isinstance(self._last, Executable):
            raise GraphError(f"{self.__name__} ran on arrays of several devices, op by op")
        return self._last

    def __repr__(self) -> str:
        return f"CompiledFunction({self.__name__}: {len(self._variants)} variants)"


# --------------------------------------------------------------- arguments


def _flatten(value: Any, arrays: list, objects: list) -> Any:
    """Take arrays and floats out of arguments; return what is left, as part of a key.

    Parameters and buffers stay what they are: the function reads and changes them in place.
    """
    if isinstance(value, (Array, float, np.floating, np.ndarray)) and not isinstance(value, State):
        arrays.append(value)
        return Array
    if isinstance(value, (tuple, list)):
        parts = [_flatten(item, arrays, objects) for item in value]
        return type(value), *parts
    if isinstance(value, dict):
        return dict, *[(name, _flatten(item, arrays, objects)) for name, item in value.items()]
    if isinstance(value, SCALARS):
        return type(value), value
    objects.append(value)
    return id(value)


def _as_arrays(found: list) -> list[Array]:
    """Make arrays of what `_flatten` took out; floats are as the arrays beside them."""
    if all([isinstance(x, Array) for x in found]):
        return found
    devices = {x.device for x in found if isinstance(x, Array)}
    device = devices.pop() if len(devices) == 1 else None
    dtypes = {x.dtype for x in found if isinstance(x, Array) and x.dtype in FLOATS}
    dtype = np.float64 if dtypes == {np.dtype(np.float64)} else np.float32
    return [
        x if isinstance(x, Array)
        else asarray(x) if isinstance(x, np.ndarray)
        else asarray(x, dtype=dtype, device=device)
        for x in found
    ]  # fmt: skip


def _unflatten(value: Any, arrays: Iterator[Array]) -> Any:
    """Put arrays back into arguments, in the order in which `_flatten` took them out."""
    if isinstance(value, (Array, float, np.floating, np.ndarray)) and not isinstance(value, State):
        return next(arrays)
    if isinstance(value, (tuple, list)):
        items = [_unflatten(item, arrays) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        return {name: _unflatten(item, arrays) for name, item in value.items()}
    return value


def _of_batch(x: Array, batch: int, other: int) -> Array:
    """Return what stands for an array in a trace of another batch; it has no data."""
    if not x.shape or x.shape[0] != batch:
        return x
    changed = Array(None, x.spec._replace(shape=(other, *x.shape[1:])))
    changed.requires_grad = x.requires_grad
    return changed


def _named(plan: Plan, arguments: list[str]) -> Plan:
    """Give a plan's arguments their names."""
    for buffer, name in zip(plan.arguments, arguments, strict=True):
        buffer.name = name
    return plan


def _on_device(kind: type[Executable], source: Any, traced: Trace, folded: list) -> Executable:
    """Return a step that is ready to run, in memory of its own."""
    try:
        return kind(source, traced, folded)
    except MemoryError as error:
        raise OutOfMemoryError(f"compiled {source.plan.name}: {error}") from None


def _names_of_arguments(function: Callable, args: tuple, kwargs: dict) -> list[str]:
    """Return a name for each array among the arguments."""
    names: list[str] = []
    for name, value in _arguments(function, args, kwargs):
        found: list = []
        _flatten(value, found, [])
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


# ------------------------------------------------------------- surroundings


def captured(function: Callable) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of what a function reads from around it.

    That goes through functions of the user's that it calls, lists, and the attributes of objects.
    """
    seen: set[int] = set()
    stack: list[tuple[str, Any]] = [("", function)]
    while stack and len(seen) < MAX_CAPTURED:
        name, value = stack.pop()
        if id(value) in seen or isinstance(value, (pytypes.ModuleType, type)):
            continue
        seen.add(id(value))
        yield name, value
        if not is_settled(value) and not _is_our_own(value) and not _is_of_a_library(value):
            stack += _inside(name, value)


def _is_of_a_library(value: Any) -> bool:
    """Return whether a function is installed, or a thing is made by the standard library.

    These are taken to stay as they are: behind a logger, say, are hundreds of things.
    """
    if isinstance(value, pytypes.FunctionType):
        return _is_installed(value.__code__.co_filename)
    if isinstance(value, CONTAINERS) or hasattr(value, "__wrapped__"):
        return False  # they hold what is the user's
    return type(value).__module__.partition(".")[0] in sys.stdlib_module_names


@functools.lru_cache(maxsize=10_000)
def _is_installed(file_name: str) -> bool:
    """Return whether a source file is the standard library's or an installed package's."""
    return file_name.startswith(("<frozen ", *_installed_folders()))


@functools.cache
def _installed_folders() -> tuple[str, ...]:
    named = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders = {*named, *site.getsitepackages(), site.getusersitepackages()}
    return tuple(os.path.join(folder, "") for folder in folders)


def _is_our_own(value: Any) -> bool:
    """Return whether a thing is of this package, and none that a user sets attributes of."""
    ours = is_settled(type(value), OURS) or is_settled(value, OURS)
    return ours and not (_is_module(value) or hasattr(value, "_states"))


def _inside(name: str, value: Any) -> list[tuple[str, Any]]:
    """Return what one thing holds or reads, by name."""
    if isinstance(value, functools.partial):
        parts = [(f"{name}_{k}", x) for k, x in enumerate(value.args)]
        return [("", value.func), *parts, *value.keywords.items()]
    if isinstance(value, pytypes.MethodType):
        return [("", value.__func__), ("self", value.__self__)]
    if isinstance(value, pytypes.FunctionType):
        defaults = zip(reversed(value.__code__.co_varnames[: value.__code__.co_argcount]),
                       reversed(value.__defaults__ or ()), strict=False)  # fmt: skip
        named = (value.__kwdefaults__ or {}).items()
        return [*defaults, *named, *((found, x) for _, found, x in references(value))]
    if isinstance(value, (tuple, list)):
        return [(f"{name}_{k}", item) for k, item in enumerate(value)]
    if isinstance(value, dict):
        return [(f"{name}_{key}" if name else str(key), item) for key, item in value.items()]
    if _is_module(value):  # its parts have names of their own: see `_names_of_states`
        return [("", item) for item in vars(value).values()]
    return list(getattr(value, "__dict__", {}).items())


class Surroundings:
    """What a function reads from around it, to be compared at each call.

    Watched are the closure and the globals of the function and of functions of the user's that it
    calls, lists and dicts found there, and the attributes of objects: modules, optimisers, the
    user's own.
    """

    def __init__(self, function: Callable):
        self.function = function
        self._watched: list[Any] | None = None
        self._ignored: set[int] = set()
        self._held: list[list[Any]] = []  # so that no other object takes an id
        self._numbers: dict[tuple, tuple[int, _Look]] = {}  # of all marks that were seen
        self._count = itertools.count()
        self._last: _Look | None = None

    @contextlib.contextmanager
    def changed_by_tracing(self) -> Iterator[None]:
        """Find out anew what to watch, but for what the function itself changes when it runs.

        A list that it appends to, say: a compiled function no longer does, and need not compile
        each time for that.
        """
        before = {id(holder): (holder, _mark_of(holder)) for holder in self._watched or ()}
        yield
        for key, (holder, mark) in before.items():
            if _mark_of(holder) != mark:
                self._ignored.add(key)
        found = _holders(self.function)
        self._last = None
        self._watched = [holder for holder in found if id(holder) not in self._ignored]
        self._held.append(found)

    def mark(self, objects: list[Any]) -> int:
        """Return a key that differs when something watched does.

        Parameters
        ----------
        objects
            Arguments that are no arrays and no plain values: they are watched, too.
        """
        last = self._last
        if last is not None and last.is_the_same(objects):
            return last.mark
        if self._watched is None:
            self._watched = _holders(self.function)
            self._held.append(self._watched)
        holders = [*self._watched, *(found for value in objects for found in _holders(value))]
        look = _Look(objects, holders)
        marks = tuple(map(_mark_of, holders))
        if len(self._numbers) >= MAX_MARKS:  # what was compiled under a number is not found again
            self._numbers.clear()
        # Marks know things by their ids: the look holds them, so that no other thing takes one.
        look.mark, _ = self._numbers.setdefault(marks, (next(self._count), look))
        self._last = look
        return look.mark


class _Look:
    """What holders held at a call: at the next one it is mostly the very same, seen at a glance.

    The things held are compared by their identity, in loops that are C's.
    """

    mark: int

    def __init__(self, objects: list[Any], holders: list[Any]):
        self.objects = objects
        self.holders = holders  # keeps them alive
        self.functions = [x for x in holders if isinstance(x, pytypes.FunctionType)]
        self.owners = [x for x in holders if not isinstance(x, (pytypes.FunctionType, list, dict))]
        self.spaces = [x.__dict__ for x in self.owners]
        dicts = [*self.spaces, *(x for x in holders if isinstance(x, dict))]
        lists = [x for x in holders if isinstance(x, list)]
        self.parts = [*dicts, *lists, *(x.values() for x in dicts)]  # names, items, values
        self.sizes = list(map(len, self.parts))
        self.around = [_around(x) for x in self.functions]
        self.held = list(itertools.chain.from_iterable(self.parts))
        known = [*self.held, *itertools.chain.from_iterable(self.around)]
        self.arrays = [x for x in known if isinstance(x, Array)]
        self.need_gradients = [x.requires_grad for x in self.arrays]
        self.numbers = [(x, x.shape, x.dtype, x.tobytes()) for x in known if _is_compared(x)]

    def is_the_same(self, objects: list[Any]) -> bool:
        return (
            _are_the_same(objects, self.objects)
            and list(map(len, self.parts)) == self.sizes
            and all(map(operator.is_, itertools.chain.from_iterable(self.parts), self.held))
            and all(map(operator.is_, map(_get_space, self.owners), self.spaces))
            and all(map(_are_the_same, map(_around, self.functions), self.around))
            and list(map(_get_requires_grad, self.arrays)) == self.need_gradients
            and all([_has_still(*each) for each in self.numbers])
        )


_get_space = operator.attrgetter("__dict__")
_get_requires_grad = operator.attrgetter("requires_grad")
COMPARED_BYTES = 1 << 20  # of a NumPy array: a larger one is taken to stay as it is


def _is_compared(value: Any) -> bool:
    return (
        isinstance(value, np.ndarray)
        and value.nbytes <= COMPARED_BYTES
        and not value.dtype.hasobject
    )


def _has_still(x: np.ndarray, shape: tuple[int, ...], dtype: np.dtype, numbers: bytes) -> bool:
    """Return whether an array is still what it was, bit for bit."""
    return x.shape == shape and x.dtype == dtype and x.tobytes() == numbers


def _are_the_same(values: list[Any], others: list[Any]) -> bool:
    return len(values) == len(others) and all(map(operator.is_, values, others))


def _add_held_by(holder: Any, now: list[Any]) -> None:
    """Append what a function, a list, a dict or an object holds now."""
    if isinstance(holder, pytypes.FunctionType):
        now += _around(holder)
    elif isinstance(holder, list):
        now += holder
    else:
        space = holder if isinstance(holder, dict) else holder.__dict__
        now += space
        now += space.values()


def _holders(value: Any) -> list[Any]:
    """Return a thing and all that it reaches which may come to hold something else."""
    kinds = (pytypes.FunctionType, list, dict)
    return [
        found
        for _, found in captured(value)
        if isinstance(found, kinds)
        or (hasattr(found, "__dict__") and not isinstance(found, NOT_OBJECTS))
        or _is_module(found)
        if not _is_our_own(found) and not _is_of_a_library(found)
    ]


def _mark_of(holder: Any) -> tuple:
    """Return a key of what something holds: plain values as they are, others by their identity."""
    held: list[Any] = []
    _add_held_by(holder, held)
    return tuple(map(_mark_of_value, held))


def _mark_of_value(x: Any) -> Any:
    kind = type(x)
    if kind is float or isinstance(x, np.floating):
        return kind, repr(x)  # tells -0.0 from 0.0, and takes nan for nan
    if kind in PLAIN or isinstance(x, np.generic):
        return kind, x
    if _is_compared(x):
        return id(x), x.shape, x.dtype.str, x.tobytes()
    return (id(x), x.requires_grad) if isinstance(x, Array) else id(x)


def _around(function: pytypes.FunctionType) -> list[Any]:
    """Return what a function's closure, its defaults and the globals that it names hold now."""
    values = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    values += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    space = function.__globals__
    values += [space[name] for name in _names(function.__code__) if name in space]
    return values


@functools.lru_cache(maxsize=10_000)
def _names(code: pytypes.CodeType) -> tuple[str, ...]:
    """Return the names that a function's code uses, and that of functions inside it."""
    inside = [_names(x) for x in code.co_consts if isinstance(x, pytypes.CodeType)]
    return tuple(dict.fromkeys([*code.co_names, *itertools.chain(*inside)]))


def _is_filled(cell: pytypes.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


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
