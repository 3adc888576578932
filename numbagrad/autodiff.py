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
from collections.abc import Callable, Sequence
from contextlib import ContextDecorator
from typing import Any

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
        What the op's vjp asked for by name; None once the tape has been used up.
    """

    __slots__ = ("op", "order", "params", "parents", "saved", "specs")

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

    def gradients(self, grad_out: Array) -> tuple[Array | None, ...]:
        """Return the gradient of each input, given that of the output."""
        op = self.op
        if self.saved is None:
            raise GraphError(
                f"{op.name}: this graph was used up by an earlier backward(); compute the "
                "result again, or call the first backward(retain_graph=True)"
            )
        arguments = {}
        saved = iter(self.saved)
        for name, _ in op.vjp_inputs:
            x, data, node, requires_grad, version = next(saved)
            if (
                x._data is not data
                or x._node is not node
                or x.requires_grad is not requires_grad
                or x.version != version
            ):
                x = _restore(op, x, data, node, requires_grad, version)
            arguments[name] = x  # if it is a leaf, it gets the gradient's gradient
        for name, position in op.vjp_outputs:
            arguments[name] = out = Array(*next(saved))
            if position == 0:  # the one that is differentiated: it gets its node back
                out._node, out.requires_grad = self, True
        for name in op.vjp_others:
            if name == "needs":
                arguments[name] = tuple([parent is not None for parent in self.parents])
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


def _restore(op: Op, x: Array, data, node: Node | None, requires_grad: bool, version: int) -> Array:
    """Return an input, which has changed since, as it was when the op ran."""
    if x.version != version:
        raise GraphError(
            f"{op.name}: a Parameter or Buffer of shape {x.shape} that this gradient needs was "
            "changed after the op ran; call backward() before the optimiser's step()"
        )
    before = Array(data, x.spec)
    before._node, before.requires_grad = node, requires_grad
    return before


def _own(array: Array) -> Array:
    """Return the same value, with the same history, as an object of its own."""
    own = Array(array._data, array.spec)
    own.requires_grad, own._node = array.requires_grad, array._node
    return own


def _record(op: Op, inputs, outputs, params) -> None:
    output = outputs[0]
    if output.spec.dtype.kind != "f":
        return
    output._node = Node(op, inputs, outputs, params)
    output.requires_grad = True


dispatch.set_recorder(_record)


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
    leaves = _walk(x, grad, None, retain_graph or create_graph, create_graph)
    for leaf, gradient in leaves:
        # An object of its own, since two leaves may be given one gradient; not a copy of its data.
        leaf.grad = _own(gradient) if leaf.grad is None else leaf.grad + gradient


def _walk(
    x: Array,
    grad: Array | None,
    stop_at: set[int] | None,
    retain_graph: bool,
    create_graph: bool,
) -> list[tuple[Any, Array]]:
    """Return (leaf, gradient) pairs; with `stop_at` (ids), those of these leaves or nodes."""
    if not x.requires_grad:
        raise GraphError(
            "backward(): the result does not depend on any array with requires_grad=True"
            + ("" if state.recording else " (it may have been computed inside no_grad())")
        )
    grad = _initial_gradient(x, grad)
    found: dict[int, tuple[Any, Array]] = {}
    pending: dict[int, tuple[Node, Array]] = {}  # by the node's order
    heap: list[int] = []  # the orders

    def give(parent, gradient: Array) -> None:
        if type(parent) is Node and (stop_at is None or id(parent) not in stop_at):
            order = parent.order
            if order in pending:
                pending[order] = parent, pending[order][1] + gradient
            else:
                pending[order] = parent, gradient
                heapq.heappush(heap, order)
        elif stop_at is None or id(parent) in stop_at:
            before = found.get(id(parent))
            found[id(parent)] = parent, gradient if before is None else before[1] + gradient

    with _Recording(create_graph):
        give(x if x._node is None else x._node, grad)
        while heap:
            node, gradient = pending.pop(heapq.heappop(heap))
            gradients = node.gradients(gradient)
            if not retain_graph:
                node.saved = None
            for parent, spec, gradient in zip(node.parents, node.specs, gradients):
                if parent is None or gradient is None:
                    continue
                if not isinstance(gradient, Array):
                    raise TypeError(
                        f"{node.op.name}: its vjp gave a {type(gradient).__name__}, not an Array"
                    )
                if gradient.spec is not spec and gradient.spec != spec:
                    raise ShapeError(
                        f"{node.op.name}: its vjp gave a gradient of shape {gradient.shape}, "
                        f"dtype {gradient.dtype} on {gradient.device!r} for an input of shape "
                        f"{spec.shape}, dtype {spec.dtype} on {spec.device!r}"
                    )
                give(parent, gradient)
    return list(found.values())


@functools.lru_cache
def _ones(spec: Spec) -> Array:
    return asarray(np.ones(spec.shape, spec.dtype), device=spec.device)


def _initial_gradient(x: Array, grad: Array | None) -> Array:
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
    recording = state.recording
    inputs = tuple(_traced_copy(x) for x in primals)
    sources = [x if x._node is None else x._node for x in inputs]  # before f assigns to one
    depth = _transforms.enter()
    try:
        with enable_grad():
            out = f(*inputs)
    finally:
        _transforms.leave()
    if not isinstance(out, Array):
        raise TypeError(f"vjp: the function must return an Array, got {type(out).__name__}")
    # The gradients are recorded if somebody may differentiate them: a transform further out, or a
    # backward() towards the primals or towards other arrays that f uses, such as parameters.
    linked = any(isinstance(x, Array) and x.requires_grad for x in primals)
    create_graph = depth > 0 or (recording and (linked or _reaches_others(out, sources)))

    def pullback(grad_out: Array | None = None) -> tuple[Array, ...]:
        keys = [id(source) for source in sources]
        found = {}
        if out.requires_grad:
            pairs = _walk(out, grad_out, set(keys), True, create_graph)
            found = {id(parent): gradient for parent, gradient in pairs}
        return tuple(
            found[key] if key in found else asarray(np.zeros(x.shape, x.dtype), device=x.device)
            for key, x in zip(keys, inputs, strict=True)
        )

    visible = out
    if not create_graph and out.requires_grad:
        visible = Array(out._data, out.spec)
    return visible, pullback


def _reaches_others(out: Array, sources: list) -> bool:
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
    wanted = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    @functools.wraps(f)
    def differentiated(*args, **kwargs):
        for position in wanted:
            if not -len(args) <= position < len(args):
                raise TypeError(
                    f"grad: argnums names argument {position}, but {len(args)} were given"
                )
        positions = [position % len(args) for position in wanted]

        def of_wanted(*chosen):
            full = list(args)
            for position, value in zip(positions, chosen, strict=True):
                full[position] = value
            return f(*full, **kwargs)

        value, pullback = vjp(of_wanted, *(args[position] for position in positions))
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
    "Node",
    "Spec",
    "backward",
    "enable_grad",
    "grad",
    "no_grad",
    "value_and_grad",
    "vjp",
]
