"""The one table that binds Python's operators and methods onto `Array`."""

from __future__ import annotations

import sys

from .. import autodiff
from .. import device as devices
from ..array import Array, State, from_host
from ..dispatch import state
from ..errors import GraphError
from . import elementwise, indexing, linalg, reduction, shaping


def _swapped(function):
    return lambda x, y: function(y, x)


_OPERATORS = {
    "add": elementwise.add,
    "sub": elementwise.subtract,
    "mul": elementwise.multiply,
    "truediv": elementwise.divide,
    "pow": elementwise.pow,
    "matmul": linalg.matmul,
    "and": elementwise.logical_and,
    "or": elementwise.logical_or,
    "xor": elementwise.logical_xor,
}

_METHODS = {
    "__neg__": elementwise.negative,
    "__abs__": elementwise.abs,
    "__invert__": elementwise.logical_not,
    "__eq__": elementwise.equal,
    "__ne__": elementwise.not_equal,
    "__lt__": elementwise.less,
    "__le__": elementwise.less_equal,
    "__gt__": elementwise.greater,
    "__ge__": elementwise.greater_equal,
    "__hash__": object.__hash__,
    "astype": elementwise.astype,
    "abs": elementwise.abs,
    "exp": elementwise.exp,
    "log": elementwise.log,
    "sqrt": elementwise.sqrt,
    "tanh": elementwise.tanh,
    "sum": reduction.sum,
    "mean": reduction.mean,
    "max": reduction.max,
    "min": reduction.min,
    "argmax": reduction.argmax,
    "permute_dims": shaping.permute_dims,
    "flatten": shaping.flatten,
    "squeeze": shaping.squeeze,
    "take": indexing.take,
    "__getitem__": indexing.getitem,
    "__setitem__": indexing.setitem,
    "__iter__": indexing.iterate,
    "backward": autodiff.backward,
}


def _reshape(x: Array, *shape) -> Array:
    """Return the same elements in another shape: ``x.reshape(2, 3)`` or ``x.reshape((2, 3))``."""
    return shaping.reshape(x, shape[0] if len(shape) == 1 else shape)


def _to(x: Array, device: str) -> Array:
    """Return the value on a device.

    On the one where it is, the buffer is shared. Elsewhere it is a copy, and a new leaf: it
    requires gradients if ``x`` does, but none flow back to ``x``.

    Raises
    ------
    DeviceError
        If the device cannot be used.
    GraphError
        If gradients should flow through ``x`` from one device to another.
    """
    name = devices.resolve(device)
    if name == x.device:
        return shaping.reshape(x, x.shape)
    is_leaf = x._node is None
    if x.requires_grad and state.recording and not is_leaf:
        raise GraphError(
            f"to: gradients do not flow from {x.device!r} to {name!r}; move the leaves that this "
            f"array was computed from, or give up its history: x.detach().to({name!r})"
        )
    moved = from_host(x._host(), name)
    moved.requires_grad = x.requires_grad and is_leaf
    return moved


def _detach(x: Array) -> Array:
    """Return the same value without its history."""
    with autodiff.no_grad():
        return shaping.reshape(x, x.shape)


def bind() -> None:
    """Give `Array` its operators and methods."""
    for name, function in _OPERATORS.items():
        setattr(Array, f"__{name}__", function)
        setattr(Array, f"__r{name}__", _swapped(function))
        setattr(State, f"__i{name}__", _in_place(function))
    for name, function in _METHODS.items():
        setattr(Array, name, function)
    Array.reshape = _reshape
    Array.to = _to
    Array.detach = _detach
    Array.T = property(_transposed)
    Array.__array_namespace__ = lambda self, *, api_version=None: _namespace()


def _in_place(function):
    """Return ``p += y`` for parameters: the new value goes to the old address, in `no_grad`."""

    def method(x, y):
        x[...] = function(x, y)
        return x

    return method


def _transposed(x: Array) -> Array:
    """The matrix transposed; for more dimensions see ``permute_dims``."""
    if x.ndim != 2:
        raise ValueError(f"T is for matrices, got shape {x.shape}; use ng.permute_dims")
    return shaping.permute_dims(x, (1, 0))


def _namespace():
    return sys.modules["numbagrad"]
