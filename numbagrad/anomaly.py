"""`detect_anomaly`: which op made the first NaN or infinity, and where in the user's program."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from .array import Array, Symbol, staging
from .autodiff import Node, observer, tape
from .dispatch import Op, interpreter, state
from .errors import NonFiniteError, TraceError, users_line
from .layers import running_layer


def detect_anomaly(*, infinity: bool = True) -> AbstractContextManager[None]:
    """Raise an error at the op that makes the first NaN or infinity, forward or backward.

    The error names the op, the user's line that called it, and the layer that this was in; in
    ``backward`` it names the op whose gradient is computed, with the line and the layer where
    that op ran.

    Parameters
    ----------
    infinity
        Find infinities too. False is for functions that use them on purpose, as in masks.

    Raises
    ------
    NonFiniteError
        At the first op that makes such a value, or that is given one from outside.
    TraceError
        Inside a traced or compiled function, whose arrays hold no values.

    Notes
    -----
    Every result of floats is read, and on a GPU waited for: training takes several times as long.
    A compiled function runs without these checks; call the function that it was made of. Nodes
    that were made outside are named without their line.

    Examples
    --------
    >>> from numbagrad.array import asarray
    >>> x = asarray([4.0, 0.0], requires_grad=True)
    >>> with detect_anomaly():
    ...     x.sqrt().sum().backward()
    Traceback (most recent call last):
        ...
    numbagrad.errors.NonFiniteError: divide made an infinity at (1,) of shape (2,) (1 of 2 elements
    are not finite), in the gradient of sqrt, which ran at <doctest ...>:2
    """
    if staging.trace is not None:
        raise TraceError(
            f"{users_line()} looks for NaN while a function is traced, when arrays hold no values; "
            "call the function itself, not the compiled one, inside detect_anomaly()"
        )
    return _detecting(infinity)


@contextmanager
def _detecting(infinity: bool) -> Iterator[None]:
    # Where each node's op ran. Weakly: a node that is dropped takes its place with it.
    places: weakref.WeakKeyDictionary[Node, str] = weakref.WeakKeyDictionary()
    before = tape.observer

    def observe(node: Node) -> None:
        places[node] = _place()
        if before is not None:
            before(node)

    check = _checking(state.interpreters[-1], places, infinity)
    with observer(observe), interpreter(check):
        yield


def _place() -> str:
    """Say which line of the user's is running, in which layer."""
    layer = running_layer()
    return f"at {users_line()}" + (f" {layer[1]}" if layer else "")


def _checking(run: Callable, places: Mapping[Node, str], infinity: bool) -> Callable:
    """Return the interpreter that looks at what ops make."""

    def check(op: Op, inputs: tuple[Array, ...], params: dict[str, Any], targets: Any) -> tuple:
        # Targets may be inputs too: afterwards it is too late to look what the op was given.
        given = [_found(x, infinity) for x in inputs] if targets else None
        outputs = run(op, inputs, params, targets)
        for out in outputs:
            made = _found(out, infinity)
            if made:
                given = given or [_found(x, infinity) for x in inputs]
                raise _error(op, made, given, places)
        return outputs

    return check


def _found(x: Array, infinity: bool) -> str | None:
    """Say what of NaN and infinity an array holds, and where; None if nothing."""
    if x.dtype.kind != "f" or isinstance(x._data, Symbol):
        return None
    host = x._host()
    bad = ~np.isfinite(host) if infinity else np.isnan(host)
    if not bad.any():
        return None
    place = tuple(int(i) for i in np.argwhere(bad)[0])
    what = "NaN" if np.isnan(host[place]) else "an infinity"
    return f"{what} at {place} of shape {x.shape} ({bad.sum()} of {x.size} elements are not finite)"


def _error(
    op: Op, made: str, given: list[str | None], places: Mapping[Node, str]
) -> NonFiniteError:
    # What an op merely hands on came from outside, or it would have been found before.
    from_outside = next((found for found in given if found), None)
    what = f"{op.name} was given {from_outside}" if from_outside else f"{op.name} made {made}"
    node = tape.running
    if node is None or tape.region is not None:  # a checkpoint computes again
        where = _place()
    else:
        ran = places.get(node, "before detect_anomaly() was entered")
        where = f"in the gradient of {node.op.name}, which ran {ran}"
    error = NonFiniteError(f"{what}, {where}")
    error.layer = ""  # the layer is in the message: no other is to be put in front of it
    return error


__all__ = ["detect_anomaly"]
