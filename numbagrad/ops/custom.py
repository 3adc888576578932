"""A user's own kernels as an op like any other, and a user's own gradient of a function."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType
from typing import Any

import numpy as np
from numba.core.dispatcher import Dispatcher

from ..array import Array, Spec
from ..autodiff import no_grad, record
from ..dispatch import (
    Call,
    Op,
    Split,
    Views,
    apply,
    not_an_array,
    register,
    registry,
    state,
)
from ..errors import nearest
from ..jit import SETTLED, function_of, is_settled, njit, references
from .shaping import reshape

#: Packages whose functions nobody defines again in a notebook.
_SETTLED = (*SETTLED, "numbagrad")


def custom_op(
    name: str,
    *,
    cpu: Callable,
    cuda: Callable | None = None,
    infer: Callable,
    vjp: Callable | None = None,
    split: Callable[[Call], Sequence[Split]] | None = None,
) -> CustomOp:
    """Make an op of your own kernels: with gradients, and compiled like the built-in ones.

    Parameters
    ----------
    name
        What errors and traces call it. A name declared again replaces the old op; the built-in
        ops' names are taken.
    cpu
        The CPU kernel, a plain function (compiled here) or one with ``@njit``. Its arguments are
        the inputs, the parameters and the output, in this order. Arrays are contiguous; the output
        holds garbage and must be overwritten; nothing is returned. A float parameter arrives in
        the output's dtype.
    cuda
        The function that launches the CUDA kernel: the same arguments and a last one, ``stream``.
        It launches and does nothing else: compiled steps replay what it launched.
    infer
        ``infer(*inputs, **params)`` returns the output's (shape, dtype) from inputs that have
        ``shape`` and ``dtype``, and raises an error if they do not fit. Its positional parameters
        name the inputs, at least one, its keyword-only ones the parameters, with their defaults.
    vjp
        ``vjp(grad_out, ...)`` returns the gradient of each input, None for one that has none, in a
        tuple if there are several inputs. It is written with ops, and names what it needs: inputs,
        ``out``, parameters, ``needs`` (whether each gradient is asked for) and ``specs`` (shape
        and dtype of each input).
    split
        ``split(call)`` returns a list of ways to cut a call into shards
        (`numbagrad.dispatch.Split`), which then run on several threads. None runs in one piece.

    Returns
    -------
    callable
        ``op(*arrays, **params)``. When a function that the CPU kernel calls, or a constant that it
        reads, is defined again, as in a re-run notebook cell, the next call uses the new one.

    Raises
    ------
    TypeError
        If the kernel's, infer's or the vjp's arguments are not those described above.
    ValueError
        If a built-in op has this name.

    Examples
    --------
    >>> from math import exp
    >>> from numbagrad.array import asarray
    >>> from numbagrad.dispatch import Split
    >>> def kernel(x, rate, out):
    ...     for i in range(x.size):
    ...         out[i] = exp(-rate * x[i])
    >>> decay = custom_op(
    ...     "decay",
    ...     cpu=kernel,
    ...     infer=lambda x, *, rate=1.0: (x.shape, x.dtype),
    ...     vjp=lambda grad_out, out, rate: grad_out * out * -rate,
    ...     split=lambda call: [Split(call.outputs[0].size, inputs=(1,), outputs=(1,))],
    ... )
    >>> x = asarray([0.0, 1.0], requires_grad=True)
    >>> y = decay(x, rate=2.0)
    >>> y
    Array([1.        , 0.13533528], dtype=float32, requires_grad=True)
    >>> y.sum().backward()
    >>> x.grad
    Array([-2.        , -0.27067056], dtype=float32)
    """
    return CustomOp(name, cpu, cuda, infer, vjp, split)


class CustomOp:
    """What `custom_op` returns: call it with arrays and, by keyword, parameters.

    Attributes
    ----------
    op : Op
        The op as it stands in the registry.
    """

    def __init__(self, name, cpu, cuda, infer, vjp, split):
        if name in registry and not isinstance(registry[name].kernel, dict):
            raise ValueError(f"custom_op: {name!r} is a built-in op; give yours another name")
        self._kernel = cpu if isinstance(cpu, Dispatcher) else njit(cpu)
        kernels = {"cpu": self._kernel} if cuda is None else {"cpu": self._kernel, "cuda": cuda}
        self.op = Op(name, _checked(name, infer), kernels, vjp, arrange=_views, split=split)
        self._defaults = {
            parameter.name: parameter.default
            for parameter in inspect.signature(infer).parameters.values()
            if parameter.kind is parameter.KEYWORD_ONLY
        }
        _check_signatures(self.op, function_of(self._kernel), tuple(self._defaults))
        self._watched = list(reads(function_of(self._kernel), set()))
        register(self.op)

    def __call__(self, *arrays: Array, **params: Any) -> Array:
        """Run the op."""
        name, wanted = self.op.name, self.op.input_names
        if len(arrays) != len(wanted) and not wanted[-1].startswith("*"):
            raise TypeError(f"{name}: takes inputs {', '.join(wanted)}; got {len(arrays)} arrays")
        for unknown in params.keys() - self._defaults.keys():
            raise TypeError(f"{name}: no parameter {unknown!r}; {nearest(unknown, self._defaults)}")
        params = self._defaults | params
        for parameter, value in params.items():
            if value is inspect.Parameter.empty:
                raise TypeError(f"{name}: parameter {parameter!r} is missing")
        if any(scope.get(read) is not found for scope, read, found in self._watched):
            self._recompile()
        return apply(self.op, *arrays, **params)

    def __repr__(self) -> str:
        return f"custom_op({self.op.name!r})"

    def _recompile(self) -> None:
        """Compile the kernel, and the user's functions that it calls, for the globals of now."""
        watched = list(reads(function_of(self._kernel), set()))
        callees = [found for _, _, found in watched if isinstance(found, Dispatcher)]
        for dispatcher in (*reversed(callees), self._kernel):
            if isinstance(dispatcher, Dispatcher) and not is_settled(dispatcher, _SETTLED):
                dispatcher._compiler._failed_cache.clear()  # Numba remembers errors, too
                dispatcher.recompile()
        self.op._plans.clear()
        self._watched = watched


def reads(function: Callable, seen: set[Callable]) -> Iterator[tuple[dict, str, Any]]:
    """Yield (namespace, name, value) of what a function and its callees read, callers first."""
    seen.add(function)
    for namespace, name, found in references(function):
        if namespace.get("__name__", "").partition(".")[0] in _SETTLED:
            continue
        yield namespace, name, found
        callee = function_of(found)
        ours = isinstance(callee, FunctionType) and not is_settled(callee, _SETTLED)
        if ours and callee not in seen:
            yield from reads(callee, seen)


def _checked(name: str, infer: Callable) -> Callable:
    """Return `infer` with its result looked at."""

    @functools.wraps(infer)
    def checked(*inputs: Spec, **params: Any) -> tuple[tuple[int, ...], np.dtype]:
        result = infer(*inputs, **params)
        try:
            shape, dtype = result
            return tuple(shape), np.dtype(dtype)
        except (TypeError, ValueError):
            raise TypeError(f"{name}: infer must return (shape, dtype), got {result!r}") from None

    return checked


def _check_signatures(op: Op, kernel: Callable, params: tuple[str, ...]) -> None:
    taken = list(inspect.signature(kernel).parameters)
    inputs = op.input_names
    if not inputs:
        raise TypeError(f"{op.name}: infer must take at least one input before its parameters")
    if len(taken) != len(inputs) + len(params) + 1 and not inputs[-1].startswith("*"):
        raise TypeError(
            f"{op.name}: the CPU kernel's arguments must be {', '.join((*inputs, *params, 'out'))} "
            f"(as infer names inputs and parameters), got {', '.join(taken)}"
        )
    _check_vjp(op, params)


def _check_vjp(op: Op, params: tuple[str, ...]) -> None:
    known = (*op.input_names, *op.outputs, *params, "needs", "specs")
    for name in op.vjp_needs:
        if name not in known:
            raise TypeError(f"{op.name}: vjp asks for {name!r}; {nearest(name, known)}")


def _views(call: Call) -> Views:
    """Pass arrays as they are and floats in the output's dtype, so that float32 stays float32."""
    out = call.outputs[0]
    scalars = tuple(
        out.dtype.type(value) if isinstance(value, float) and out.dtype.kind == "f" else value
        for value in call.params.values()
    )
    return Views(tuple(spec.shape for spec in call.inputs), (out.shape,), scalars)


# ------------------------------------------------------- one's own gradient


def custom_vjp(
    f: Callable[..., Any], vjp: Callable[..., Any], *, outputs: Sequence[str] = ("out",)
) -> Callable[..., Array]:
    """Return ``f`` with a gradient of your own in place of that of the ops it is made of.

    Parameters
    ----------
    f
        A function of ops. Its positional parameters are the arrays to be differentiated by, its
        keyword-only ones anything else. The tape sees nothing of what it does: arrays that it
        uses besides get no gradient.
    vjp
        ``vjp(grad_out, ...)`` returns the gradient of each input, None for one that has none, in a
        tuple if there are several inputs. It is written with ops, so it can be differentiated
        again, and names what it needs: inputs, outputs, ``f``'s keywords, ``needs`` (whether each
        gradient is asked for) and ``specs`` (shape and dtype of each input).
    outputs
        The names of what ``f`` returns, if that is a tuple. The first is the result; the others
        are kept for ``vjp``.

    Returns
    -------
    callable
        With ``f``'s arguments; returns its (first) result.

    Raises
    ------
    TypeError
        If ``vjp`` asks for something unknown, or ``f`` does not return the outputs.
    GraphError, ShapeError
        In ``backward``, if ``vjp`` returns another number of gradients than there are inputs, or
        one of another shape or dtype than its input.

    Examples
    --------
    >>> from numbagrad.array import asarray
    >>> from numbagrad.ops import exp, log
    >>> softplus = custom_vjp(  # exp(100) is infinity, and its gradient would be NaN
    ...     lambda x: log(1.0 + exp(x)), lambda grad_out, x: grad_out / (1.0 + exp(-x))
    ... )
    >>> x = asarray([0.0, 100.0], requires_grad=True)
    >>> softplus(x).sum().backward()
    >>> x.grad
    Array([0.5, 1. ], dtype=float32)
    """
    name = getattr(f, "__name__", type(f).__name__)
    op = Op(name, f, None, vjp, outputs=tuple(outputs))
    signature = inspect.signature(f)
    taken = signature.parameters.values()
    params = tuple(
        parameter.name for parameter in taken if parameter.kind is parameter.KEYWORD_ONLY
    )
    if not op.input_names:
        raise TypeError(f"custom_vjp: {name} must take at least one array")
    _check_vjp(op, params)

    @functools.wraps(f, updated=())
    def with_own_gradient(*arrays: Array, **given: Any) -> Array:
        bound = signature.bind(*arrays, **given)
        bound.apply_defaults()
        for parameter, x in zip(_endless(op.input_names), bound.args, strict=False):
            if not isinstance(x, Array):
                raise not_an_array(name, parameter, x)
        with no_grad():
            returned = f(*bound.args, **bound.kwargs)
            results = returned if isinstance(returned, tuple) else (returned,)
            if len(results) != len(outputs) or not all(isinstance(x, Array) for x in results):
                kinds = ", ".join(type(x).__name__ for x in results)
                raise TypeError(
                    f"{name}: must return {len(outputs)} Array{'s' * (len(outputs) > 1)} "
                    f"({', '.join(outputs)}), got {kinds or 'nothing'}"
                )
            # Another object: it may be an input, and it is given a node.
            results = (reshape(results[0], results[0].shape), *results[1:])
        if state.recording and any(x.requires_grad for x in bound.args):
            record(op, bound.args, results, bound.kwargs)
        return results[0]

    return with_own_gradient


def _endless(names: tuple[str, ...]) -> Iterator[str]:
    """Yield the inputs' names; the last one again and again if it stands for any number."""
    yield from names
    while names[-1].startswith("*"):
        yield names[-1]


__all__ = ["CustomOp", "custom_op", "custom_vjp"]
