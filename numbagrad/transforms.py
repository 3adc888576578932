"""Functions of functions that need the tape and ops: `jacobian`, `hessian`, `checkpoint`."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .array import Array, Spec, State, asarray, staging
from .autodiff import (
    Node,
    Region,
    as_it_was,
    enable_grad,
    evaluate,
    grad,
    of_arguments,
    region,
    tape,
    zeros_of,
)
from .dispatch import Op, interpreter, state
from .errors import DTypeError, GraphError
from .ops import stack
from .ops.elementwise import COPY

# --------------------------------------------------------- jacobian, hessian


def jacobian(f: Callable[..., Array], argnums: int | Sequence[int] = 0) -> Callable:
    """Return a function that gives all partial derivatives of ``f``.

    Parameters
    ----------
    f
        A function whose result is one array, of any shape.
    argnums
        Which positional arguments to differentiate: an int, or several.

    Returns
    -------
    callable
        With ``f``'s arguments; returns the Jacobian, of shape ``out.shape + x.shape`` as JAX and
        ``torch.func`` have it: element ``[i..., j...]`` is the derivative of ``out[i...]`` by
        ``x[j...]``. For several ``argnums`` a tuple, with one for each.

    Notes
    -----
    A row is a backward pass, a column one through the backward pass (see `jvp`). Whichever are
    fewer are computed, one after the other, from a single evaluation of ``f``.

    Examples
    --------
    >>> jacobian(lambda x: x * x)(asarray([1.0, 2.0, 3.0]))
    Array([[2., 0., 0.],
           [0., 4., 0.],
           [0., 0., 6.]], dtype=float32)
    """

    @functools.wraps(f, updated=())
    def differentiated(*args: Any, **kwargs: Any) -> Any:
        of_wanted, primals = of_arguments("jacobian", f, argnums, args, kwargs)
        run = evaluate("jacobian", of_wanted, primals)
        out, inputs = run.out.spec, run.specs
        if out.dtype.kind != "f":
            raise DTypeError(f"jacobian: the function must return floats, got dtype {out.dtype}")
        if out.size <= sum(spec.size for spec in inputs):
            rows = [run.pullback(unit) for unit in _units(out)]
            stacks = [_stacked([row[k] for row in rows], 0, x) for k, x in enumerate(inputs)]
        else:
            push = run.pushforward()
            zeros = tuple(map(zeros_of, inputs))
            stacks = [
                _stacked([push((*zeros[:k], unit, *zeros[k + 1 :])) for unit in _units(x)], -1, out)
                for k, x in enumerate(inputs)
            ]
        results = tuple(
            matrix.reshape(out.shape + x.shape) for matrix, x in zip(stacks, inputs, strict=True)
        )
        return results[0] if isinstance(argnums, int) else results

    return differentiated


def _units(spec: Spec) -> Iterator[Array]:
    """Yield for each element the array in which it is 1 and all others are 0."""
    for k in range(spec.size):
        unit = np.zeros(spec.size, spec.dtype)
        unit[k] = 1
        yield asarray(unit.reshape(spec.shape), device=spec.device)


def _stacked(arrays: list[Array], axis: int, spec: Spec) -> Array:
    """Stack any number of arrays of a spec."""
    return stack(arrays, axis=axis) if arrays else zeros_of(spec._replace(shape=(0,)))


def hessian(f: Callable[..., Array], argnums: int | Sequence[int] = 0) -> Callable:
    """Return a function that gives all second derivatives of ``f``.

    Parameters
    ----------
    f
        A function whose result is a scalar array.
    argnums
        Which positional arguments to differentiate: an int, or several.

    Returns
    -------
    callable
        With ``f``'s arguments; returns the Hessian, of shape ``x.shape + x.shape`` as JAX and
        ``torch.func`` have it. For several ``argnums`` a tuple of tuples: ``[i][j]`` holds the
        derivatives by argument i and argument j, of shape ``x_i.shape + x_j.shape``.

    Notes
    -----
    It is the `jacobian` of the gradient: one pass through the recorded gradient for each element
    that is differentiated by.

    Examples
    --------
    >>> hessian(lambda x: (x * x * x).sum())(asarray([1.0, 2.0]))
    Array([[ 6.,  0.],
           [ 0., 12.]], dtype=float32)
    """
    if isinstance(argnums, int):
        return functools.wraps(f, updated=())(jacobian(grad(f, argnums), argnums))
    rows = [jacobian(grad(f, one), tuple(argnums)) for one in argnums]

    @functools.wraps(f, updated=())
    def differentiated(*args: Any, **kwargs: Any) -> Any:
        return tuple(row(*args, **kwargs) for row in rows)

    return differentiated


# --------------------------------------------------------------- checkpoint


def checkpoint(f: Callable) -> Callable:
    """Return ``f``, of which the tape keeps the arguments only and computes the rest again.

    ``backward`` calls ``f`` a second time when it gets there: a deep network's activations give
    way to one forward pass more. Values and gradients are the same to the bit: the second call
    draws the same random numbers, reads Buffers as they were, and changes none, so running
    statistics are updated once.

    Parameters
    ----------
    f
        A function of arrays, or a layer. It may use other arrays and parameters, which get their
        gradients too. It must do the same each time (random numbers come from ``ng.random``'s
        generators) and have no effects but on Parameters and Buffers; its arrays are arguments of
        their own, not elements of a list or dict.

    Returns
    -------
    callable
        With ``f``'s arguments and result.

    Raises
    ------
    GraphError
        In ``backward``, if the second call does something else than the first did, or a parameter
        that it reads has been changed meanwhile.

    Notes
    -----
    Inside `compile` and ``trace``, ``f`` is called as it is: the compiler plans all memory itself,
    and decides what is computed again. A checkpoint inside another one takes effect when the outer
    one computes again. Griewank and Walther, "Algorithm 799: revolve" (ACM TOMS, 2000); Chen et
    al., "Training Deep Nets with Sublinear Memory Cost" (2016).

    Examples
    --------
    >>> x = asarray([0.5, 1.0], requires_grad=True)
    >>> y = checkpoint(lambda x: (x * x).exp().sum())(x)
    >>> y.backward()
    >>> x.grad
    Array([1.2840254, 5.4365635], dtype=float32)
    """

    @functools.wraps(f, updated=())
    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        around = tape.region
        forgets = isinstance(around, _Checkpoint) and not around.is_again
        if forgets or staging.trace is not None or not state.recording:
            return f(*args, **kwargs)
        part = _Checkpoint(f, args, kwargs, around)
        with region(part), interpreter(part.watching(state.interpreters[-1])):
            result = f(*args, **kwargs)
        part.has_ended = True
        return result

    return checkpointed


class _Checkpoint(Region):
    """The part of the tape that one call of a checkpointed function makes.

    In the first call its nodes are given the part itself in place of what they would save. In the
    second one, the ops give what they save to the nodes of the first, in the same order.
    """

    def __init__(self, f: Callable, args: tuple, kwargs: dict[str, Any], around: Any):
        self.name = f"checkpoint({getattr(f, '__name__', type(f).__name__)})"
        self._f = f
        self._args = [_remembered(x) for x in args]
        self._kwargs = {key: _remembered(x) for key, x in kwargs.items()}
        self._around = around  # one that computes again: it says which nodes are ours
        # Weakly, as nodes hold the part: a tape that is dropped must not wait for the collector.
        self._nodes: list[tuple[weakref.ref[Node], Op, tuple[Spec, ...]]] = []
        self._read: dict[int, tuple[State, int]] = {}  # with their versions
        self._before: dict[int, tuple[State, Array]] = {}  # those that were changed
        self._shadows: dict[int, Array] = {}  # what stands for these in the second call
        self._rest: Iterator | None = None
        self.has_ended = False  # the first call

    @property
    def is_again(self) -> bool:
        """Whether the second call is running."""
        return self._rest is not None

    def watching(self, run: Callable) -> Callable:
        """Return the first call's interpreter, which notes the states that it meets."""

        def watched(op: Op, inputs: tuple, params: dict[str, Any], targets: Any) -> tuple:
            for x in inputs:
                if isinstance(x, State) and id(x) not in self._before:
                    self._read.setdefault(id(x), (x, x.version))
            for target in targets or ():
                if id(target) not in self._before:
                    (value,) = run(COPY, (target,), {}, None)
                    self._before[id(target)] = target, value
            return run(op, inputs, params, targets)

        return watched

    def take(self, node: Node) -> Node:
        """Return the node for an op: a new one without what it saves, or that of the first call."""
        if not self.is_again:
            if self._around is not None:
                node = self._around.take(node)
            self._nodes.append((weakref.ref(node), node.op, node.specs))
            if node.saved is not None:
                node.saved = self
            return node
        reference, op, specs = next(self._rest, (None, None, None))
        if op is not node.op or specs != node.specs:
            before = "had ended" if op is None else f"ran {op.name}"
            raise GraphError(
                f"{self.name}: the second call runs {node.op.name} where the first {before}; the "
                "function must do the same each time it is called"
            )
        first = reference()
        if first is None:  # nothing depends on it any more
            return node
        if first.saved is self:
            first.saved = [self._as_read(*entry) for entry in node.saved]
        return first

    def _as_read(self, x: Any, *rest: Any) -> tuple:
        """Return what a node saves, with the value that a state had when it was read."""
        if id(x) not in self._shadows:
            return x, *rest
        shadow = self._shadows[id(x)]
        return shadow, shadow._data, None, False, 0

    def compute_again(self) -> None:
        """Call the function a second time, to give the nodes what they save."""
        if self.is_again or not self.has_ended:
            raise GraphError(f"{self.name}: backward() was called inside the function")
        for x, version in self._read.values():
            if x.version != version and id(x) not in self._before:
                raise GraphError(
                    f"{self.name}: a Parameter or Buffer of shape {x.shape} that the function "
                    "reads was changed after its first call; call backward() before the "
                    "optimiser's step()"
                )
        args = [recalled(self) for recalled in self._args]
        kwargs = {key: recalled(self) for key, recalled in self._kwargs.items()}
        changed: list[State] = []
        run = self._shadowing(state.interpreters[-1], changed)
        self._rest = iter(self._nodes)
        try:
            with region(self), interpreter(run), enable_grad():
                self._f(*args, **kwargs)
            if next(self._rest, None) is not None:
                raise GraphError(
                    f"{self.name}: the second call ends before the first one did; the function "
                    "must do the same each time it is called"
                )
        finally:
            self._rest, self._shadows = None, {}
            for x in changed:
                x.version -= 1

    def _shadowing(self, run: Callable, changed: list[State]) -> Callable:
        """Return the second call's interpreter: states are as they were, and stay as they are."""
        shadows = self._shadows = {key: value for key, (_, value) in self._before.items()}

        def shadowed(op: Op, inputs: tuple, params: dict[str, Any], targets: Any) -> tuple:
            inputs = tuple([shadows.get(id(x), x) for x in inputs])
            outputs = run(op, inputs, params, None)
            if targets is None:
                return outputs
            for target, value in zip(targets, outputs):
                shadows[id(target)] = value
            changed.extend(targets)  # `apply_into` counts changes that there were none of
            return targets

        return shadowed


def _remembered(x: Any) -> Callable[[Region], Any]:
    """Return a function that gives an argument as it is now."""
    if not isinstance(x, Array):
        return lambda part: x
    now = x, x._data, x._node, x.requires_grad, x.version
    return lambda part: as_it_was(part, *now)


__all__ = ["checkpoint", "hessian", "jacobian"]
