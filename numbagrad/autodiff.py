"""Reverse-mode differentiation by a tape.

Every op that runs on an array with ``requires_grad`` leaves a `Node`: the op, its parameters, the
nodes of its inputs, and the values that its ``vjp`` asked for by name. ``backward`` walks the
nodes from the last to the first and calls each op's ``vjp`` once. Since a ``vjp`` is written with
ops, it can be recorded as well: that is all there is to gradients of gradients.

Sources: Baydin et al., "Automatic Differentiation in Machine Learning: a Survey" (JMLR, 2018);
Griewank and Walther, "Evaluating Derivatives" (2008), chapter 3.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ContextDecorator, contextmanager
from typing import Any, NamedTuple

import numpy as np

from . import dispatch
from .array import FLOATS, Array, Spec, asarray
from .dispatch import Op, spec_of, state
from .errors import DTypeError, GraphError, ShapeError

_order = itertools.count(0, -1)  # downwards: the node that was made last comes first


class Node:
    """One op on the tape.

    Attributes
    ----------
    parents
        For each input the node that made it, the leaf array itself, or None without gradient.
    saved
        What the op's vjp asked for by name; None once the tape has been used up; the `Region` that
        can compute it again if it was not kept.
    """

    __slots__ = ("__weakref__", "op", "order", "params", "parents", "saved", "specs")

    # Plain loops and tuples: comprehensions and objects would take as long as a small op's kernel.
    def __init__(self, op: Op, inputs, outputs, params):
        self.op = op
        self.params = params
        self.order = next(_order)
        parents = []
        for x in inputs:
            parents.append((x._node or x) if x.requires_grad else None)
        self.parents = parents
        self.specs = tuple(map(spec_of, inputs))
        saved = []
        for _, position in op.vjp_inputs:
            x = inputs[position]
            saved.append((x, x._data, x._node, x.requires_grad, x.version))
        for _, position in op.vjp_outputs:
            # Not the object: an output that the node holds and that holds the node would be a
            # cycle, and its memory would wait for the garbage collector.
            saved.append((outputs[position]._data, outputs[position].spec))
        self.saved = saved

    def _save_again(self) -> None:
        while isinstance(self.saved, Region):
            self.saved.compute_again()  # a region inside it may be left to do the same
        if self.saved is None:
            raise GraphError(
                f"{self.op.name}: this graph was used up by an earlier backward(); compute the "
                "result again, or call the first backward(retain_graph=True)"
            )

    def gradients(
        self, grad_out: Array, wanted: set[int] | None = None
    ) -> tuple[Array | None, ...]:
        """Return the gradient of each input, given that of the output.

        With `wanted` (ids of leaves and nodes) the vjp is asked for these only.
        """
        op = self.op
        if type(self.saved) is not list:
            self._save_again()
        arguments = {}
        saved = iter(self.saved)
        for name, _ in op.vjp_inputs:
            # The object itself if it can be: a leaf gets the gradient's gradient.
            arguments[name] = as_it_was(op, *next(saved))
        for name, position in op.vjp_outputs:
            arguments[name] = out = Array(*next(saved))
            if position == 0:  # the one that is differentiated: it gets its node back
                out._node, out.requires_grad = self, True
        for name in op.vjp_others:
            if name == "needs":
                arguments[name] = tuple(
                    [
                        parent is not None and (wanted is None or id(parent) in wanted)
                        for parent in self.parents
                    ]
                )
            elif name == "specs":
                arguments[name] = self.specs
            else:
                arguments[name] = self.params[name]
        grads = op.vjp(grad_out, **arguments)
        grads = grads if isinstance(grads, tuple) else (grads,)
        if len(grads) != len(self.parents):
            raise GraphError(
                f"{op.name}: its vjp returned {len(grads)} gradients for "
                f"{len(self.parents)} inputs; return one for each, None where there is none"
            )
        return grads


def as_it_was(
    reader: Op | Region,
    x: Array,
    data: Any,
    node: Node | None,
    requires_grad: bool,
    version: int,
) -> Array:
    """Return an array as it was when it was read: itself, unless it has changed since."""
    if x.version != version:
        raise GraphError(
            f"{reader.name}: a Parameter or Buffer of shape {x.shape} that this gradient needs was "
            "changed after the op ran; call backward() before the optimiser's step()"
        )
    if x._data is data and x._node is node and x.requires_grad is requires_grad:
        return x
    before = Array(data, x.spec)
    before._node, before.requires_grad = node, requires_grad
    return before


def _own(array: Array) -> Array:
    """Return the same value, with the same history, as an object of its own."""
    own = Array(array._data, array.spec)
    own.requires_grad, own._node = array.requires_grad, array._node
    return own


class Region(ABC):
    """A part of the tape that does not keep what its nodes save: see `checkpoint`."""

    name: str  # for errors

    @abstractmethod
    def take(self, node: Node) -> Node:
        """Return the node that an op which has just run is to have."""

    @abstractmethod
    def compute_again(self) -> None:
        """Give the region's nodes what they save."""


class _Tape(threading.local):
    """What else hears of this thread's nodes.

    Attributes
    ----------
    region
        The region that new nodes belong to.
    observer
        Is told of each new node.
    running
        The node whose gradients are being computed, if there is an observer.
    is_heard
        Whether there is a region or an observer: one look-up for each op.
    """

    def __init__(self):
        self.region: Region | None = None
        self.observer: Callable[[Node], None] | None = None
        self.running: Node | None = None
        self.is_heard = False


tape = _Tape()


@contextmanager
def region(inside: Region | None) -> Iterator[None]:
    """Let the nodes that are made meanwhile belong to a region, or to none."""
    before, tape.region = tape.region, inside
    tape.is_heard = inside is not None or tape.observer is not None
    try:
        yield
    finally:
        tape.region = before
        tape.is_heard = before is not None or tape.observer is not None


@contextmanager
def observer(told: Callable[[Node], None]) -> Iterator[None]:
    """Let a function hear of each node that is made meanwhile."""
    before, tape.observer = tape.observer, told
    tape.is_heard = True
    try:
        yield
    finally:
        tape.observer = before
        tape.is_heard = before is not None or tape.region is not None


def record(op: Op, inputs: Sequence[Array], outputs: Sequence[Array], params: dict) -> None:
    """Note an op that has run on the tape, as its first output's node."""
    output = outputs[0]
    if output.spec.dtype.kind != "f":
        return
    node = Node(op, inputs, outputs, params)
    if tape.is_heard:
        if tape.observer is not None:
            tape.observer(node)
        if tape.region is not None:
            node = tape.region.take(node)
    output._node = node
    output.requires_grad = True


dispatch.set_recorder(record)


# --------------------------------------------------------- recording or not


class _Recording(ContextDecorator):
    """Switches recording on or off for this thread; a context manager and a decorator."""

    def __init__(self, on: bool):
        self._on = on

    def __enter__(self):
        _outside.recording.append(state.recording)
        state.recording = self._on

    def __exit__(self, *exception):
        state.recording = _outside.recording.pop()


class _Outside(threading.local):
    """What held outside each `_Recording` that this thread is in."""

    def __init__(self):
        self.recording: list[bool] = []


_outside = _Outside()


def no_grad() -> ContextDecorator:
    """Run ops without recording them.

    Examples
    --------
    >>> x = asarray([1.0], requires_grad=True)
    >>> with no_grad():
    ...     y = x * x
    >>> y.requires_grad
    False
    """
    return _Recording(False)


def enable_grad() -> ContextDecorator:
    """Record ops again inside `no_grad`."""
    return _Recording(True)


# ----------------------------------------------------------------- backward


def backward(
    x: Array, grad: Array | None = None, *, retain_graph: bool = False, create_graph: bool = False
) -> None:
    """Add to each leaf's ``.grad`` the gradient of ``x``.

    Parameters
    ----------
    x
        The result; a scalar unless ``grad`` is given.
    grad
        The gradient of ``x`` itself, of its shape and dtype; 1 by default.
    retain_graph
        Keep what the tape saved, for another ``backward``.
    create_graph
        Record the gradients, so that they can be differentiated again.

    Raises
    ------
    GraphError
        If ``x`` does not depend on anything with ``requires_grad``, or its tape is used up.
    ShapeError
        If ``x`` is not a scalar and no ``grad`` is given, or ``grad`` has another shape.
    """
    start = [(x, _initial_gradient(x, grad))]
    leaves = _walk(start, None, None, retain_graph or create_graph, create_graph)
    for leaf, gradient in leaves:
        # An object of its own, since two leaves may be given one gradient; not a copy of its data.
        leaf.grad = _own(gradient) if leaf.grad is None else leaf.grad + gradient


def _walk(
    roots: list[tuple[Array, Array]],
    stop_at: set[int] | None,
    wanted: set[int] | None,
    retain_graph: bool,
    create_graph: bool,
) -> list[tuple[Any, Array]]:
    """Return (leaf, gradient) pairs, from results and their gradients.

    With `stop_at` (ids), those of these leaves or nodes; with `wanted`, what `_leading_to` gives
    for them, nothing is computed that does not lead there.
    """
    found: dict[int, tuple[Any, Array]] = {}
    pending: dict[int, tuple[Node, Array]] = {}  # by the node's order
    heap: list[int] = []  # the orders

    def give(parent, gradient: Array) -> None:
        if wanted is not None and id(parent) not in wanted:
            return
        if type(parent) is Node and (stop_at is None or id(parent) not in stop_at):
            order = parent.order
            if order in pending:
                pending[order] = parent, pending[order][1] + gradient
            else:
                pending[order] = parent, gradient
                heapq.heappush(heap, order)
        else:
            before = found.get(id(parent))
            found[id(parent)] = parent, gradient if before is None else before[1] + gradient

    outer, is_observed = tape.running, tape.observer is not None
    try:
        # What a walk records belongs to no region: it may end before the region does.
        with _Recording(create_graph), region(None):
            for out, gradient in roots:
                give(out if out._node is None else out._node, gradient)
            while heap:
                node, gradient = pending.pop(heapq.heappop(heap))
                if is_observed:
                    tape.running = node
                gradients = node.gradients(gradient, wanted)
                if not retain_graph:
                    node.saved = None
                for parent, spec, gradient in zip(node.parents, node.specs, gradients):
                    if parent is None or gradient is None:
                        continue
                    if type(gradient) is not Array or gradient.spec is not spec:
                        _require_fitting(node.op, gradient, spec)
                    give(parent, gradient)
                gradients = gradient = None  # or they would live while the next node runs
    finally:
        tape.running = outer
    return list(found.values())


def _require_fitting(op: Op, gradient: Any, spec: Spec) -> None:
    if not isinstance(gradient, Array):
        raise TypeError(f"{op.name}: its vjp gave a {type(gradient).__name__}, not an Array")
    if gradient.spec != spec:
        raise ShapeError(
            f"{op.name}: its vjp gave a gradient of shape {gradient.shape}, "
            f"dtype {gradient.dtype} on {gradient.device!r} for an input of shape "
            f"{spec.shape}, dtype {spec.dtype} on {spec.device!r}"
        )


def _leading_to(stop_at: set[int], outs: list[Array]) -> set[int]:
    """Return the ids of `stop_at`, and of the nodes behind results that depend on one of them."""
    nodes: dict[int, Node] = {}
    ahead = [out._node for out in outs]
    while ahead:
        node = ahead.pop()
        if type(node) is Node and id(node) not in stop_at and node.order not in nodes:
            nodes[node.order] = node
            ahead += node.parents
    leading = set(stop_at)
    for order in sorted(nodes, reverse=True):  # the first that was made comes first
        for parent in nodes[order].parents:
            if parent is not None and id(parent) in leading:
                leading.add(id(nodes[order]))
                break
    return leading


@functools.lru_cache
def _ones(spec: Spec) -> Array:
    return asarray(np.ones(spec.shape, spec.dtype), device=spec.device)


def _initial_gradient(x: Array, grad: Array | None) -> Array:
    if not x.requires_grad:
        raise GraphError(
            "backward(): the result does not depend on any array with requires_grad=True"
            + ("" if state.recording else " (it may have been computed inside no_grad())")
        )
    if grad is None:
        if x.size != 1:
            raise ShapeError(
                f"backward(): the result has shape {x.shape}, not one element; reduce it first "
                "(x.sum(), x.mean()) or pass the gradient to start from"
            )
        return _own(_ones(x.spec))
    if not isinstance(grad, Array):
        raise TypeError(
            f"backward(): grad is a {type(grad).__name__}; pass an Array of shape {x.shape}"
        )
    if grad.shape != x.shape or grad.dtype != x.dtype or grad.device != x.device:
        raise ShapeError(
            f"backward(): grad has shape {grad.shape}, dtype {grad.dtype} on {grad.device!r}; "
            f"the result has shape {x.shape}, dtype {x.dtype} on {x.device!r}"
        )
    return grad


# ------------------------------------------------- functions of functions


def _traced_copy(x: Array) -> Array:
    """Return an array with x's value that gradients can be asked for, still linked to x."""
    if not isinstance(x, Array):
        x = asarray(x)
    if x.dtype not in FLOATS:
        raise DTypeError(f"only floats can be differentiated, got dtype {x.dtype}")
    with enable_grad():
        alias = x.reshape(x.shape)  # a node of its own, if x is differentiated further out
    alias.requires_grad = True
    return alias


def vjp(f: Callable[..., Array], *primals: Array) -> tuple[Array, Callable[[Array], tuple]]:
    """Evaluate ``f`` and return its result with the pullback of gradients.

    Parameters
    ----------
    f
        A function from arrays to one array.
    primals
        Where to evaluate it.

    Returns
    -------
    out : Array
        ``f(*primals)``.
    pullback : callable
        ``pullback(grad_out)`` returns a tuple: the gradient of each primal, zeros for one that
        the result does not depend on. It can be called more than once. Result and gradients stay
        linked to arrays with ``requires_grad`` that ``f`` uses besides; under `no_grad` they
        are cut off.

    Examples
    --------
    >>> out, pullback = vjp(lambda x: x * x, asarray([1.0, 3.0]))
    >>> pullback(asarray([1.0, 1.0]))
    (Array([2., 6.], dtype=float32),)
    """
    run = evaluate("vjp", f, primals)
    return run.visible_out, run.pullback


class Evaluation(NamedTuple):
    """A function's result, on a tape that ends at its inputs.

    Attributes
    ----------
    sources
        For each input the node or the leaf that the tape ends at.
    wanted
        The nodes that lead to the sources, if not all do.
    create_graph
        Whether derivatives are to be recorded, as somebody may differentiate them.
    """

    out: Array
    sources: tuple[Any, ...]
    specs: tuple[Spec, ...]
    wanted: set[int] | None
    create_graph: bool

    @property
    def _keys(self) -> set[int]:
        return {id(source) for source in self.sources}

    @property
    def visible_out(self) -> Array:
        """The result as the caller gets it: without history, unless it is of use further out."""
        if self.create_graph or not self.out.requires_grad:
            return self.out
        return Array(self.out._data, self.out.spec)

    def pullback(self, grad_out: Array | None = None) -> tuple[Array, ...]:
        """Return each input's gradient, given the result's."""
        found = {}
        if self.out.requires_grad:
            start = [(self.out, _initial_gradient(self.out, grad_out))]
            found = _by_id(_walk(start, self._keys, self.wanted, True, self.create_graph))
        return tuple(
            found[id(source)] if id(source) in found else zeros_of(spec)
            for source, spec in zip(self.sources, self.specs, strict=True)
        )

    def pushforward(self) -> Callable[[Sequence[Array]], Array]:
        """Return the function from the inputs' tangents to the result's."""
        out, sources, create_graph = self.out, self.sources, self.create_graph
        if not out.requires_grad:
            return lambda tangents: zeros_of(out.spec)
        # A pullback is linear, so it does not matter where it is differentiated: at 0.
        cotangent = zeros_of(out.spec)
        cotangent.requires_grad = True
        gradients = _by_id(_walk([(out, cotangent)], self._keys, self.wanted, True, True))
        # Not to the inputs again, which the recorded pass depends on as well.
        wanted = _leading_to({id(cotangent)}, list(gradients.values()))

        def push(tangents: Sequence[Array]) -> Array:
            start = [
                (gradients[id(source)], tangent)
                for source, tangent in zip(sources, tangents, strict=True)
                if id(source) in gradients and gradients[id(source)].requires_grad
            ]
            found = _walk(start, {id(cotangent)}, wanted, True, create_graph)
            return found[0][1] if found else zeros_of(out.spec)

        return push


def _by_id(pairs: list[tuple[Any, Array]]) -> dict[int, Array]:
    return {id(parent): gradient for parent, gradient in pairs}


def evaluate(
    name: str, f: Callable[..., Array], primals: Sequence[Array], others: Sequence[Array] = ()
) -> Evaluation:
    """Evaluate a function on a tape; `others` are arrays that derivatives depend on besides."""
    recording = state.recording
    inputs = tuple(_traced_copy(x) for x in primals)
    sources = tuple(x if x._node is None else x._node for x in inputs)  # before f assigns to one
    specs = tuple(map(spec_of, inputs))
    depth = _transforms.enter()
    try:
        # Derivatives are wanted at once: a region around would have to compute all again for them.
        with enable_grad(), region(None):
            out = f(*inputs)
    finally:
        _transforms.leave()
    if not isinstance(out, Array):
        raise TypeError(f"{name}: the function must return an Array, got {type(out).__name__}")
    # The gradients are recorded if somebody may differentiate them: a transform further out, or a
    # backward() towards the primals or towards other arrays that f uses, such as parameters.
    linked = any(isinstance(x, Array) and x.requires_grad for x in (*primals, *others))
    others_matter = _reaches_others(out, sources)
    create_graph = depth > 0 or (recording and (linked or others_matter))
    wanted = _leading_to({id(source) for source in sources}, [out]) if others_matter else None
    return Evaluation(out, sources, specs, wanted, create_graph)


def zeros_of(spec: Spec) -> Array:
    """Return zeros of a shape and dtype, on a device."""
    return asarray(np.zeros(spec.shape, spec.dtype), device=spec.device)


def jvp(
    f: Callable[..., Array], primals: Sequence[Array], tangents: Sequence[Array]
) -> tuple[Array, Array]:
    """Evaluate ``f`` and return its result with the derivative along a direction.

    Parameters
    ----------
    f
        A function from arrays to one array.
    primals
        Where to evaluate it: a tuple, one array for each argument.
    tangents
        The direction: for each primal an array of its shape and dtype.

    Returns
    -------
    out : Array
        ``f(*primals)``.
    tangent : Array
        The sum over inputs of Jacobian times tangent; of the result's shape and dtype. Zeros if
        the result does not depend on the primals.

    Raises
    ------
    ShapeError
        If primals and tangents do not fit together.

    Notes
    -----
    Ops declare one derivative, ``vjp``, which multiplies by the transposed Jacobian and is linear
    in the gradient that it is given. Its own transpose, which is the ``vjp`` of the ``vjp``,
    multiplies by the Jacobian itself: exactly, not by differences. So the cost is that of ``f``,
    one backward pass and another one through that, whatever the number of inputs, and the memory
    of a tape of both: 2 to 3 times ``f``'s time for networks (LeNet 2.2), 5 where each op takes
    microseconds. J. Townsend, "A new trick for calculating Jacobian vector products" (2017).
    A `custom_vjp` whose rule is not linear in ``grad_out`` has no such transpose: then the rule's
    derivative at 0 is used.

    Examples
    --------
    >>> jvp(lambda x, y: x * y, (asarray(2.0), asarray(3.0)), (asarray(1.0), asarray(10.0)))
    (Array(6., dtype=float32), Array(23., dtype=float32))
    """
    primals, tangents = _checked_tangents(primals, tangents)
    run = evaluate("jvp", f, primals, tangents)
    return run.visible_out, run.pushforward()(tangents)


def _checked_tangents(primals: Any, tangents: Any) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    for name, given in (("primals", primals), ("tangents", tangents)):
        if not isinstance(given, (tuple, list)):
            raise TypeError(
                f"jvp: {name} must be a tuple with one array for each argument of the function, "
                f"got {type(given).__name__}; a single one is passed as (x,)"
            )
    if len(primals) != len(tangents):
        raise ShapeError(f"jvp: {len(primals)} primals need as many tangents, got {len(tangents)}")
    primals = tuple(x if isinstance(x, Array) else asarray(x) for x in primals)
    tangents = tuple(
        t if isinstance(t, Array) else asarray(t, dtype=x.dtype, device=x.device)
        for x, t in zip(primals, tangents, strict=True)
    )
    for k, (x, t) in enumerate(zip(primals, tangents, strict=True)):
        if x.spec != t.spec:
            raise ShapeError(
                f"jvp: tangents[{k}] has shape {t.shape}, dtype {t.dtype} on {t.device!r}; "
                f"primals[{k}] has shape {x.shape}, dtype {x.dtype} on {x.device!r}"
            )
    return primals, tangents


def _reaches_others(out: Array, sources: Sequence) -> bool:
    """Say whether a result depends on a leaf that is not among the sources."""
    seen = {id(source) for source in sources}
    found = [out if out._node is None else out._node] if out.requires_grad else []
    while found:
        one = found.pop()
        if id(one) in seen:
            continue
        if not isinstance(one, Node):
            return True
        seen.add(id(one))
        found += [parent for parent in one.parents if parent is not None]
    return False


class _Transforms(threading.local):
    """How many functional transforms this thread is inside of: inner ones must record."""

    depth = 0

    def enter(self) -> int:
        self.depth += 1
        return self.depth - 1

    def leave(self) -> None:
        self.depth -= 1


_transforms = _Transforms()


def of_arguments(
    name: str, f: Callable, argnums: int | Sequence[int], args: tuple, kwargs: dict[str, Any]
) -> tuple[Callable[..., Array], tuple[Array, ...]]:
    """Return ``f`` as a function of some of its arguments, the others fixed; and those."""
    wanted = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    for position in wanted:
        if not -len(args) <= position < len(args):
            raise TypeError(
                f"{name}: argnums names argument {position}, but {len(args)} were given"
            )
    positions = [position % len(args) for position in wanted]

    def of_wanted(*chosen: Array) -> Array:
        full = list(args)
        for position, value in zip(positions, chosen, strict=True):
            full[position] = value
        return f(*full, **kwargs)

    return of_wanted, tuple(args[position] for position in positions)


def value_and_grad(f: Callable[..., Array], argnums: int | Sequence[int] = 0) -> Callable:
    """Return a function that gives ``f``'s value and its gradient.

    Parameters
    ----------
    f
        A function whose result is a scalar array.
    argnums
        Which positional arguments to differentiate: an int, or several.

    Returns
    -------
    callable
        With ``f``'s arguments; returns ``(value, gradient)``, or ``(value, tuple of gradients)``
        for several ``argnums``.

    Examples
    --------
    >>> value, slope = value_and_grad(lambda x: x * x * x)(asarray(2.0))
    >>> value.item(), slope.item()
    (8.0, 12.0)
    """

    @functools.wraps(f)
    def differentiated(*args, **kwargs):
        of_wanted, primals = of_arguments("grad", f, argnums, args, kwargs)
        value, pullback = vjp(of_wanted, *primals)
        if value.size != 1:
            raise ShapeError(f"grad: the function must return a scalar, got shape {value.shape}")
        grads = pullback()
        return value, grads[0] if isinstance(argnums, int) else grads

    return differentiated


def grad(f: Callable[..., Array], argnums: int | Sequence[int] = 0) -> Callable:
    """Return a function that gives the gradient of ``f``; see `value_and_grad`.

    Examples
    --------
    >>> cube = lambda x: x * x * x
    >>> grad(cube)(asarray(2.0)).item(), grad(grad(cube))(asarray(2.0)).item()
    (12.0, 12.0)
    """
    both = value_and_grad(f, argnums)

    @functools.wraps(f)
    def differentiated(*args, **kwargs):
        return both(*args, **kwargs)[1]

    return differentiated


__all__ = [
    "Evaluation",
    "Node",
    "Region",
    "Spec",
    "as_it_was",
    "backward",
    "enable_grad",
    "evaluate",
    "grad",
    "jvp",
    "no_grad",
    "observer",
    "of_arguments",
    "record",
    "region",
    "tape",
    "value_and_grad",
    "vjp",
    "zeros_of",
]
