"""`Op` and `apply`: from an operation on arrays to a kernel running on shards.

`apply` hands an op to the interpreter on top of the thread's stack. The eager one runs the kernel
now; the staging one (``compiler/trace.py``) writes an equation down. Then the recorder that
``autodiff`` registered may note the op on the tape. So gradients are traced like anything else.

The eager interpreter decides once for each op, shapes and parameters, and keeps the decision: a
`Plan`. It holds the outputs' specs, how the kernel sees each array, and the shards.
"""

from __future__ import annotations

import inspect
import itertools
import marshal
import operator
import threading
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from itertools import pairwise
from types import CodeType
from typing import Any

import numba
import numpy as np
from numba import get_thread_id, prange

from . import device as devices
from .array import FLOATS, Array, Spec, State, require_same_device, size_of, the_spec
from .errors import NO_ERROR, OutOfMemoryError
from .jit import RETURNS, address_of, entry_address, entry_point, njit, start, words_of

# Sharding. All of it depends on shapes only, so that bits do not depend on the thread count.
# A shard takes at least this long. To wake threads that sleep, as they do while Python works, takes
# 50 to 100 us: for less work they cost more than they gain.
SHARD_NS = 100_000
MAX_SHARDS = 16
MAX_PARTIAL_SHARDS = 8  # each needs its own copy of the output
COMBINES = ("sum", "max", "min")  # what can be done with shards' partial outputs
MAX_PLANS = 1024  # for each op; a program with ever new shapes must not keep them all
NS_PER_FLOP, NS_PER_BYTE = 0.02, 0.1  # one core: 50 GFLOP/s, 10 GB/s


@dataclass(frozen=True)
class Call:
    """An op with its inputs, outputs and parameters settled: what its rules are asked about."""

    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    params: dict[str, Any]

    @property
    def device(self) -> str:
        """Where the call runs."""
        return self.outputs[0].device

    def __getattr__(self, name: str) -> Any:
        try:
            return self.params[name]
        except KeyError:
            raise AttributeError(name) from None


Room = Sequence[tuple[tuple[int, ...], Any]]  # shape and dtype of each scratch array


@dataclass(frozen=True)
class Views:
    """How a kernel sees a call: the shapes it is given and its own parameters."""

    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    scalars: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Split:
    """One way to cut a call into shards along an axis of ``size`` units.

    Attributes
    ----------
    size
        Units along the axis: images, rows, elements.
    inputs
        For each input as the kernel sees it, the leading rows that a unit takes; 0 = all of it.
    outputs
        The same for each output, 0 where a shard is given all of it and writes its own part; or
        how shards' partial outputs combine: ``"sum"``, ``"max"`` or ``"min"``.
    scalars
        ``scalars(scalars, lo, hi)`` returns the kernel parameters of the shard ``lo:hi``.
    grain
        Shards take whole multiples of so many units, the last one the rest: what makes good use of
        the kernel. Any other cut is right too.

    Raises
    ------
    ValueError
        If a partial output combines in another way.
    """

    size: int
    inputs: tuple[int, ...]
    outputs: tuple[int | str, ...]
    scalars: Callable[[tuple, int, int], tuple] | None = None
    grain: int = 1

    def __post_init__(self):
        for rows in self.outputs:
            if isinstance(rows, str) and rows not in COMBINES:
                known = ", ".join(map(repr, COMBINES))
                raise ValueError(f"Split: partial outputs combine by {known}, got {rows!r}")


@dataclass(frozen=True, eq=False)
class Op:
    """One operation, declared once for all devices, eager and traced.

    Attributes
    ----------
    name
        What errors and traces call it.
    infer
        ``infer(*input specs, **params)`` returns the output's (shape, dtype), or a tuple with one
        such pair for each of several outputs.
        It checks shapes and dtypes, so errors are the same on every device.
    kernel
        The name of the kernel in ``kernels_cpu`` and ``kernels_cuda``; a user's own op passes
        ``{"cpu": function, "cuda": launcher}``. None for an op that only views a buffer.
    vjp
        ``vjp(grad_out, ...)`` returns the gradient of each input (None: no gradient), written
        with ops. It names what it needs: inputs and outputs (these are saved), parameters,
        ``specs`` (the inputs' specs) and ``needs`` (which gradients are asked for). The first
        output is the differentiable one; further outputs are what a gradient needs later.
    outputs
        Names of the outputs.
    arrange
        ``arrange(call)`` returns the `Views` that the kernel is called with. By default arrays
        are passed as they are and parameters in order.
    split
        ``split(call)`` returns a list of the ways to cut the call into shards, best first. None
        runs whole: a written reason belongs beside it.
    workspace
        ``workspace(call)`` returns (shape, dtype) of each scratch array that a shard wants. Where
        kernels want different ones, a dict has such a function for each device.
    cost
        ``cost(call)`` returns (floating-point operations, bytes moved).
    check
        ``check(position, arrays, call)`` raises the error for a bad value that the kernel found.
        Of the input arrays it may read those of integers: a check that waits keeps no floats.
        With it, the last output is an int64 error flag: the first offender's position.
    formula
        Of an elementwise op: the name of its formula in ``formulas.py``, which takes the inputs'
        elements and then the kernel's parameters. Compiled steps fuse such ops into one loop.
    expand
        ``expand(*inputs, **params)`` returns the output, written with other ops. Compiled steps on
        the CPU run these in place of the kernel, fused with what comes before and after.
    view
        For an op without kernel: ``view(backend, call)`` returns a function of the input's buffer
        that gives the shared one.
    """

    name: str
    infer: Callable
    kernel: str | dict[str, Callable] | None = None
    vjp: Callable | None = None
    outputs: tuple[str, ...] = ("out",)
    arrange: Callable[[Call], Views] | None = None
    split: Callable[[Call], Sequence[Split]] | None = None
    workspace: Callable[[Call], Room] | dict[str, Callable[[Call], Room]] | None = None
    cost: Callable[[Call], tuple[float, float]] | None = None
    check: Callable | None = None
    formula: str | None = None
    expand: Callable | None = None
    view: Callable[[Any, Call], Callable] | None = None
    _plans: dict = field(default_factory=dict, repr=False)

    @cached_property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, from ``infer``'s signature; ``*name`` for any number of them."""
        names = []
        for parameter in inspect.signature(self.infer).parameters.values():
            if parameter.kind is parameter.VAR_POSITIONAL:
                names.append("*" + parameter.name)
            elif parameter.kind is not parameter.KEYWORD_ONLY:
                names.append(parameter.name)
        return tuple(names)

    @cached_property
    def vjp_needs(self) -> tuple[str, ...]:
        """Names that ``vjp`` asks for beyond the output's gradient."""
        return tuple(inspect.signature(self.vjp).parameters)[1:] if self.vjp else ()

    @cached_property
    def vjp_inputs(self) -> tuple[tuple[str, int], ...]:
        """Name and position of each input that ``vjp`` asks for."""
        names = self.input_names
        return tuple((name, names.index(name)) for name in self.vjp_needs if name in names)

    @cached_property
    def vjp_outputs(self) -> tuple[tuple[str, int], ...]:
        """Name and position of each output that ``vjp`` asks for."""
        names = [name for name in self.vjp_needs if name not in self.input_names]
        return tuple((name, self.outputs.index(name)) for name in names if name in self.outputs)

    @cached_property
    def vjp_others(self) -> tuple[str, ...]:
        """What else ``vjp`` asks for: parameters, ``specs`` and ``needs``."""
        arrays = [name for name, _ in self.vjp_inputs + self.vjp_outputs]
        return tuple(name for name in self.vjp_needs if name not in arrays)

    def __repr__(self) -> str:
        return f"Op({self.name})"


#: Every op by name. A user's op that is declared again replaces the old one.
registry: dict[str, Op] = {}


def register(op: Op) -> Op:
    """Add an op to the registry and return it."""
    registry[op.name] = op
    return op


# ------------------------------------------------------------- interpreters


class _ThreadState(threading.local):
    def __init__(self):
        self.interpreters: list = [run_eagerly]
        self.recording = True
        self.threads = numba.config.NUMBA_NUM_THREADS  # what Numba uses for this thread's loops


_recorder: Callable | None = None


def set_recorder(recorder: Callable) -> None:
    """Register what notes ops for differentiation: ``recorder(op, inputs, outputs, params)``."""
    global _recorder
    _recorder = recorder


@contextmanager
def interpreter(run: Callable):
    """Send every `apply` of this thread to ``run(op, inputs, params, targets)`` for a while."""
    state.interpreters.append(run)
    try:
        yield
    finally:
        state.interpreters.pop()


def apply(op: Op, /, *inputs: Array, **params: Any) -> Array | tuple[Array, ...]:
    """Run an op and return its output, or the tuple of its outputs."""
    try:
        here = state.__dict__  # this thread's; one look-up, which takes long, for two
        outputs = here["interpreters"][-1](op, inputs, params, None)
        if here["recording"] and op.vjp is not None:
            for array in inputs:
                if array.requires_grad:
                    _recorder(op, inputs, outputs, params)
                    break
    except AttributeError:
        _require_arrays(op, inputs)
        raise
    return outputs[0] if len(outputs) == 1 else outputs


def apply_into(targets: tuple[State, ...], op: Op, /, *inputs: Array, **params: Any) -> None:
    """Run an op and write its outputs into states, in place.

    This is the only way in which a state changes. The targets may be inputs too, if the op's
    kernel reads each element before it writes it (elementwise ones do). Nothing is recorded.
    """
    for target in targets:
        if not isinstance(target, State):
            raise TypeError(f"{op.name}: only Parameters and Buffers are changed in place")
    try:
        state.interpreters[-1](op, inputs, params, targets)
    except AttributeError:
        _require_arrays(op, inputs)
        raise
    for target in targets:
        target.version += 1


def _require_arrays(op: Op, inputs: tuple) -> None:
    """Raise a clear error for what is no Array. Called when one failed, as looking first costs."""
    names = op.input_names
    for k, x in enumerate(inputs):
        if not isinstance(x, Array):
            name = names[min(k, len(names) - 1)]
            if name.startswith("*"):
                name = f"{name[1:]}[{k - len(names) + 1}]"
            raise not_an_array(op.name, name, x) from None


def not_an_array(op: str, name: str, x: Any) -> TypeError:
    """Return the error for an argument of another type."""
    kind = f"{type(x).__module__}.{type(x).__qualname__}".removeprefix("builtins.")
    return TypeError(f"{op}: {name} is a {kind}; ops take Arrays: pass ng.asarray({name})")


# ------------------------------------------------------------------- plans


@dataclass(frozen=True)
class Plan:
    """What the eager interpreter decided for one op on given shapes.

    ``run(inputs, targets)`` runs the kernel and returns the outputs as a tuple of Arrays: the
    targets, or new ones if they are None.
    """

    call: Call
    run: Callable
    views: Views | None = None
    kernel: Callable | None = None
    workspace: tuple[tuple[tuple[int, ...], np.dtype], ...] = ()
    shards: _Shards | None = None


spec_of = operator.attrgetter("spec")  # with `map`, twice as quick as a comprehension


def plan_for(op: Op, inputs: tuple[Array, ...], params: dict[str, Any]) -> Plan:
    """Return the plan of a call, from the op's memory or made now."""
    key = specs = tuple(map(spec_of, inputs))
    if params:
        try:
            # As bytes: 1 is not True there, 0.0 not -0.0, and NaN is NaN. The format's version is
            # the last one that does not depend on who else holds the values.
            key = specs, marshal.dumps(params, 2)
        except ValueError:
            key = None  # it does not know all of them
    plan = op._plans.get(key)
    return _other_plan(op, specs, params, key) if plan is None else plan


def _other_plan(op: Op, specs: tuple[Spec, ...], params: dict[str, Any], key: tuple | None) -> Plan:
    """Return a plan that is not found by its parameters as bytes, or is yet to be made."""
    _require_hashable(op, params)
    if not all(map(_is_known_to_marshal, params.values())):
        key = specs, tuple(map(_exactly, params.items()))
        plan = op._plans.get(key)
        if plan is not None:
            return plan
    if len(op._plans) >= MAX_PLANS:
        op._plans.clear()
    plan = op._plans[key] = make_plan(op, specs, params)
    return plan


def _is_known_to_marshal(value: Any) -> bool:
    """Return whether ``marshal`` writes a value's type too; a NumPy number is mere bytes to it."""
    if type(value) is tuple:
        return all(map(_is_known_to_marshal, value))
    return type(value) in (bool, int, float, str, type(None))


def _exactly(value: Any) -> Any:
    """Return any other parameter as part of a key."""
    if type(value) is tuple:
        return tuple(map(_exactly, value))
    return type(value), repr(value) if isinstance(value, (float, np.floating)) else value


def _require_hashable(op: Op, params: dict[str, Any]) -> None:
    for name, value in params.items():
        try:
            hash(value)
        except TypeError:
            raise TypeError(
                f"{op.name}: parameter {name} must be hashable, such as a number, a string or a "
                f"tuple; got a {type(value).__name__}"
            ) from None


def make_call(op: Op, specs: tuple[Spec, ...], params: dict[str, Any]) -> Call:
    """Check a call and infer its outputs."""
    device = require_same_device(op.name, specs)
    inferred = op.infer(*specs, **params)
    if len(op.outputs) == 1:
        inferred = (inferred,)
    outputs = tuple(the_spec(tuple(shape), np.dtype(dtype), device) for shape, dtype in inferred)
    if op.check is not None:
        outputs += (the_spec((1,), np.dtype(np.int64), device),)
    return Call(specs, outputs, params)


def make_views(op: Op, call: Call) -> Views:
    """Return how the op's kernel sees a call."""
    if op.arrange is not None:
        views = op.arrange(call)
    else:
        views = Views(
            tuple(spec.shape for spec in call.inputs),
            tuple(spec.shape for spec in call.outputs[: len(op.outputs)]),
            tuple(call.params.values()),
        )
    if op.check is not None and len(views.outputs) == len(op.outputs):
        views = Views(views.inputs, (*views.outputs, (1,)), views.scalars)
    return views


def make_plan(op: Op, specs: tuple[Spec, ...], params: dict[str, Any]) -> Plan:
    """Decide how to run a call: outputs, views, workspace, shards."""
    call = make_call(op, specs, params)
    if op.kernel is None:
        return Plan(call, _run_of_view(op, call))
    views = make_views(op, call)
    kernel = find_kernel(op, call.device)
    workspace = workspace_of(op, call)
    shards = None
    if call.device == "cpu" and op.split is not None:
        shards = _choose_shards(op, call, views, kernel, workspace)
    run = _emit_run(op, call, views, kernel, workspace, shards)
    return Plan(call, run, views, kernel, workspace, shards)


def workspace_of(op: Op, call: Call) -> tuple[tuple[tuple[int, ...], np.dtype], ...]:
    """Return shape and dtype of each scratch array that a call's kernel wants."""
    want = op.workspace
    if isinstance(want, dict):
        want = want.get(call.device)
    return tuple((tuple(shape), np.dtype(dtype)) for shape, dtype in (want(call) if want else ()))


def find_kernel(op: Op, device: str) -> Callable:
    """Return the kernel, or the launcher, of an op on a device.

    Raises
    ------
    DeviceError
        If a user's op has none there.
    """
    if isinstance(op.kernel, dict):
        kernel = op.kernel.get(device)
        if kernel is None:
            raise devices.DeviceError(f"{op.name} has no kernel for device {device!r}")
        return kernel
    return getattr(devices.backend(device).kernels, op.kernel)


# ------------------------------------------------------------------- eager


def run_eagerly(
    op: Op, inputs: tuple[Array, ...], params: dict[str, Any], targets: tuple[State, ...] | None
) -> tuple[Array, ...]:
    """Run the op's kernel now. With `targets`, its outputs are written into them."""
    try:
        plan = plan_for(op, inputs, params)
        if targets is not None:
            _require_fitting_targets(op, plan.call, targets)
        return plan.run(inputs, targets)
    except MemoryError as error:
        raise OutOfMemoryError(f"{op.name}: {error}") from None


def _run_of_view(op: Op, call: Call) -> Callable:
    """Return what runs an op that has no kernel and looks at its input's buffer in another way."""
    backend = devices.backend(call.device)
    view, spec = op.view(backend, call), call.outputs[0]

    def run(inputs: tuple[Array], targets: None) -> tuple[Array]:
        (x,) = inputs
        data = view(x._data)
        if isinstance(x, State):
            data = backend.copy(data)  # the state will change
        return (Array(data, spec),)

    return run


def _emit_run(op, call, views, kernel, workspace, shards) -> Callable:
    """Emit the function that runs a plan. For a sum of two small matrices it is

        def run(inputs, targets):
            x0, x1, = inputs
            if targets is None:
                out0 = Array(new_out0(), spec_out0)
            else:
                out0, = targets
            returned = kernel(flat(x0._data), flat(x1._data), param0, flat(out0._data))
            if returned is not None:
                refuse(returned)
            return out0,

    Loops over inputs and outputs would do the same, but take longer than a small kernel.
    """
    backend = devices.backend(call.device)
    known = {"Array": Array}  # what the names in the text stand for
    known |= {"flat": backend.flat, "reshape": backend.reshape}
    known["refuse"] = partial(_refuse_returned, kernel)
    known["check"] = partial(check_flag, op, call)
    if shards:
        known["kernel"] = shards.run
    else:
        known["kernel"] = entry_point(kernel, _stand_ins(call, views, workspace, views.scalars))

    def name(what: str, value: Any) -> str:
        known[what] = value
        return what

    def new(array: str, spec: Spec) -> str:
        allocate = name(f"new_{array}", backend.allocator(spec.shape, spec.dtype))
        return f"Array({allocate}(), {name(f'spec_{array}', spec)})"

    def seen_by_kernel(array: str, spec: Spec, shape: tuple[int, ...]) -> str:
        if spec.shape == tuple(shape):
            return f"{array}._data"
        if len(shape) == 1:
            return f"flat({array}._data)"
        return f"reshape({array}._data, {name(f'shape_{array}', shape)})"

    inputs = [f"x{k}" for k in range(len(call.inputs))]
    outputs = [f"out{k}" for k in range(len(op.outputs))]
    written = [*outputs, "flag"] if op.check else outputs
    scratch = [] if shards else [f"scratch{k}" for k in range(len(workspace))]
    if scratch:
        known["workspace"] = backend.workspace(workspace)
    arguments = [*map(seen_by_kernel, inputs, call.inputs, views.inputs)]
    if not shards:
        arguments += [name(f"param{k}", value) for k, value in enumerate(views.scalars)]
    arguments += map(seen_by_kernel, written, call.outputs, views.outputs)
    if not shards:
        arguments += scratch
        arguments += [name(f"launch{k}", x) for k, x in enumerate(backend.launch_arguments)]
    made = [new(array, spec) for array, spec in zip(written, call.outputs, strict=True)]
    text = f"""
def run(inputs, targets):
    {", ".join(inputs)}, = inputs
    if targets is None:
        {"; ".join(f"{out} = {array}" for out, array in zip(outputs, made, strict=False))}
    else:
        {", ".join(outputs)}, = targets
    {f"flag = {made[-1]}" if op.check else ""}
    {f"{', '.join(scratch)}, = workspace()" if scratch else ""}
    returned = kernel({", ".join(arguments)})
    if returned is not None:
        refuse(returned)
    {"check(inputs, flag._data)" if op.check else ""}
    return {", ".join(outputs)},
"""
    exec(_compiled(text), known)
    return known["run"]


@lru_cache(maxsize=1024)
def _compiled(text: str) -> CodeType:
    return compile(text, "<plan written by numbagrad.dispatch>", "exec")


def _stand_ins(call: Call, views: Views, workspace: Sequence, scalars: Sequence) -> list:
    """Return arguments of the types that the kernel will be given, with empty arrays."""
    shapes = [*views.inputs, *views.outputs, *(shape for shape, _ in workspace)]
    dtypes = [spec.dtype for spec in (*call.inputs, *call.outputs)] + [d for _, d in workspace]
    arrays = [np.empty((0,) * len(shape), d) for shape, d in zip(shapes, dtypes, strict=True)]
    return [*arrays[: len(call.inputs)], *scalars, *arrays[len(call.inputs) :]]


def _refuse_returned(kernel: Callable, returned: Any) -> None:
    raise TypeError(RETURNS.format(kernel.__name__, type(returned).__name__))


def check_flag(op: Op, call: Call, inputs: tuple[Array | None, ...], flag: Any) -> None:
    """Look whether a kernel found a bad value, or have it looked at later.

    Inputs that are floats may be None: see `Op.check`.
    """
    backend = devices.backend(call.device)
    arrays = tuple(map(_as_now, inputs)) if backend.defers_checks else inputs
    backend.check(partial(_raise_bad_value, op, flag, arrays, call))


def _require_fitting_targets(op: Op, call: Call, targets: tuple[State, ...]) -> None:
    for target, spec in zip(targets, call.outputs, strict=False):
        if target.spec != spec:
            raise ValueError(
                f"{op.name}: a state of shape {target.shape}, dtype {target.dtype} on "
                f"{target.device!r} cannot take a value of shape {spec.shape}, dtype {spec.dtype} "
                f"on {spec.device!r}"
            )


def _as_now(x: Array | None) -> Array | None:
    """Keep what a later check may read: integers, whatever becomes of `x`; floats are let go."""
    if x is None or x.dtype in FLOATS:
        return None
    data = devices.backend(x.device).copy(x._data) if isinstance(x, State) else x._data
    return Array(data, x.spec)


def _raise_bad_value(op: Op, flag, inputs: tuple[Array, ...], call: Call, read: Callable) -> None:
    position = int(read(flag)[0])
    if position != NO_ERROR:
        op.check(position, inputs, call)


# ------------------------------------------------------------------ shards


def shard_bounds(size: int, shards: int, grain: int = 1) -> np.ndarray:
    """Cut ``size`` units into ``shards``: shard ``t`` is ``bounds[t]:bounds[t + 1]``.

    Their sizes differ by one grain at most, but for the last grain, which may be a part.
    """
    grains = -(-size // grain)
    bounds = [min(grains * t // shards * grain, size) for t in range(shards + 1)]
    return np.array(bounds, np.int64)


def _choose_shards(op, call, views, kernel, workspace) -> _Shards | None:
    """Take the split with the most shards worth a thread each, the first of equals.

    None runs in one piece: no split gives two.
    """
    if op.cost is not None:
        flops, moved = op.cost(call)
    else:
        flops = 0
        moved = sum(spec.size * spec.dtype.itemsize for spec in (*call.inputs, *call.outputs))
    worth = int(max(flops * NS_PER_FLOP, moved * NS_PER_BYTE) // SHARD_NS)
    splits = op.split(call)
    if isinstance(splits, Split):
        raise TypeError(f"{op.name}: split must return a list of Splits, got a Split")
    best = None
    for split in splits:
        partial = any(isinstance(rows, str) for rows in split.outputs)
        grains = -(-split.size // split.grain)
        count = min(worth, grains, MAX_PARTIAL_SHARDS if partial else MAX_SHARDS)
        if count >= 2 and (best is None or count > best[1]):
            best = split, count
    if best is None:
        return None
    if not (getattr(kernel, "_can_compile", True) and all(map(_is_plain, views.scalars))):
        return None  # a user's kernel that takes what the words of a shard cannot hold
    split, count = best
    bounds = shard_bounds(split.size, count, split.grain)
    return _Shards(split, bounds, views, kernel, workspace, call)


def _is_plain(value: Any) -> bool:
    """Return whether `words_of` knows a parameter's type."""
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, (bool, int, float, np.number, np.bool_, np.ndarray))


class _Shards:
    """A call cut into shards, run by one loop on Numba's threads."""

    def __init__(self, split, bounds, views, kernel, workspace, call):
        self.split, self.bounds, self.kernel = split, bounds, kernel
        self.count = len(bounds) - 1
        whole = views.scalars
        self.scalars = [
            split.scalars(whole, int(lo), int(hi)) if split.scalars else whole
            for lo, hi in pairwise(bounds)
        ]
        # A partial output is as many arrays as there are shards; workspace, as can be in use.
        copies = min(self.count, numba.config.NUMBA_NUM_THREADS)
        self.one_each = copies == self.count
        shapes = tuple(
            (self.count, *shape) if isinstance(rows, str) else shape
            for rows, shape in zip(split.outputs, views.outputs, strict=True)
        )
        allocator = devices.backend("cpu").allocator
        self.partial = [
            allocator(shape, spec.dtype) if isinstance(rows, str) else None
            for rows, shape, spec in zip(split.outputs, shapes, call.outputs, strict=True)
        ]
        self.workspace = devices.CPU.workspace(workspace, copies)
        if not numba.config.DISABLE_JIT:
            dtypes = [spec.dtype for spec in (*call.inputs, *call.outputs)]
            pairs = zip((*views.inputs, *shapes), dtypes, strict=True)
            self._lay_out_words(pairs, len(call.inputs))

    def _lay_out_words(self, arrays, inputs: int) -> None:
        """Prepare each shard's arguments as words, which lack but the addresses of the arrays."""
        arrays = [np.empty(shape, dtype) for shape, dtype in arrays]  # anywhere
        scratch = [np.empty(shape, dtype) for shape, dtype in self.workspace.wanted]
        rows, kinds = [], set()
        for shard in range(self.count):
            arguments = self._arguments(shard, arrays[:inputs], arrays[inputs:], scratch)
            rows.append([words_of(argument) for argument in arguments])
            kinds.add(tuple(map(numba.typeof, arguments)))
        if len(kinds) > 1:
            raise TypeError(
                f"{self.kernel.__name__}: its parameters must have the same types in all shards; "
                "see what the op's split returns"
            )
        self.entry = entry_address(self.kernel, arguments)
        places = list(itertools.accumulate(map(len, rows[0]), initial=0))
        end = len(arguments)
        kept = [*range(inputs), *range(end - len(arrays) - len(scratch) + inputs, end)]
        self.addresses = np.array([places[k] for k in kept], np.intp)
        self.words = np.array([list(itertools.chain(*row)) for row in rows], np.int64)
        self.words[:, self.addresses] -= [*map(address_of, (*arrays, *scratch))]
        for k, array in enumerate(scratch, len(arrays)):
            self.words[:, self.addresses[k] + 1] = array.strides[0]

    def run(self, *arrays: np.ndarray) -> None:
        """Run the kernel on its inputs and outputs."""
        count = len(self.split.inputs)
        inputs, outputs = arrays[:count], arrays[count:]
        outs = [new() if new else out for out, new in zip(outputs, self.partial)]
        scratch = self.workspace()
        if numba.config.DISABLE_JIT:
            for shard in range(self.count):
                self.kernel(*self._arguments(shard, inputs, outs, scratch))
        else:
            now = np.zeros(self.words.shape[1], np.int64)
            now[self.addresses] = [*map(address_of, (*inputs, *outs, *scratch))]
            failed = run_rows(self.entry, self.words + now, self.one_each)
            if failed >= 0:
                self._raise_again(failed, inputs, outs, scratch)
        for out, part, rows in zip(outputs, outs, self.split.outputs):
            if rows == "sum":
                _sum_partials(part.reshape(-1), self.count, size_of(out.shape), out.reshape(-1))
            elif isinstance(rows, str):
                getattr(np, rows)(part, axis=0, out=out)

    def _raise_again(self, shard: int, inputs: list, outputs: list, scratch: list) -> None:
        """Run a shard that failed as a Python function, which raises what a thread could not."""
        self.kernel(*self._arguments(shard, inputs, outputs, scratch))
        raise RuntimeError(f"kernel {self.kernel.__name__} failed in shard {shard}, but only once")

    def _arguments(self, shard: int, inputs: list, outputs: list, scratch: list) -> list:
        """Return what the kernel is given for a shard: a unit takes so many rows of an array."""
        lo, hi = self.bounds[shard : shard + 2]

        def cut(array, rows):
            if isinstance(rows, str):
                return array[shard]
            return array[lo * rows : hi * rows] if rows else array

        ins = map(cut, inputs, self.split.inputs)
        outs = map(cut, outputs, self.split.outputs)
        return [*ins, *self.scalars[shard], *outs, *(array[0] for array in scratch)]


def _sum_partials(parts: np.ndarray, count: int, size: int, out: np.ndarray) -> None:
    devices.backend("cpu").kernels.sum_forward(parts, count, size, parts.dtype.type(1), out)


def run_rows(entry: int, words: np.ndarray, one_each: bool) -> int:
    """Run what lies at `entry` once for each row of `words`, its arguments, spread over threads.

    With `one_each` every row has workspace of its own, else every thread. Returns the first row
    for which the kernel raised, or -1.
    """
    if _threads == 1 or len(words) == 1:
        return _run_in_turn(entry, words)
    if state.threads != _threads:
        numba.set_num_threads(_threads)
        state.threads = _threads
    return _run_on_threads(entry, words, one_each)


@njit
def _run_in_turn(entry, words):
    """Run each row on the calling thread."""
    failed = -1
    for row in range(words.shape[0]):
        if start(entry, words, row, 0) != 0 and failed < 0:
            failed = row
    return failed


@njit(parallel=True)
def _run_on_threads(entry, words, one_each):
    """Run the rows on Numba's threads."""
    status = np.empty(words.shape[0], np.int32)
    for row in prange(status.size):
        room = np.int64(row) if one_each else np.int64(get_thread_id())
        status[row] = start(entry, words, row, room)
    failed = -1
    for row in range(status.size):
        if status[row] != 0 and failed < 0:
            failed = row
    return failed


# ----------------------------------------------------------------- threads


_threads: int = numba.config.NUMBA_NUM_THREADS


def set_num_threads(n: int) -> None:
    """Set how many threads CPU kernels use, whichever Python thread calls them.

    At the start it is as many as Numba has: ``$NUMBA_NUM_THREADS``, or one for each core.
    Results do not depend on it, to the last bit. A Python thread's next kernel that runs on several
    threads sets Numba's own number for that thread, as ``numba.set_num_threads`` would; calling
    that function beside this one is not noticed.

    Raises
    ------
    ValueError
        If ``n`` is not between 1 and the number of threads that Numba started with.
    """
    global _threads
    most = numba.config.NUMBA_NUM_THREADS
    if not isinstance(n, int) or not 1 <= n <= most:
        raise ValueError(f"set_num_threads: n must be between 1 and {most}, got {n!r}")
    _threads = n


def get_num_threads() -> int:
    """Return how many threads CPU kernels use: see `set_num_threads`."""
    return _threads


state = _ThreadState()
