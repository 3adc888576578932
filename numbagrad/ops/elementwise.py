"""Elementwise ops, with broadcasting: arithmetic, comparisons, activations, casts."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from ..array import DTYPES, FLOATS, Array, Spec, asarray
from ..dispatch import Call, Op, Split, Views, apply, not_an_array, register
from ..errors import DTypeError, ShapeError, nearest

# ------------------------------------------------------------- arguments


def require_arrays(op: str, **named: Any) -> None:
    """Raise unless all arguments, given by their names, are Arrays."""
    for name, x in named.items():
        if not isinstance(x, Array):
            raise not_an_array(op, name, x)


def as_ints(op: str, name: str, value: Any) -> tuple[int, ...]:
    """Return an int, or a sequence of ints, as a tuple; whatever else is refused."""
    if type(value) is int:  # the usual cases, and the quick ones
        return (value,)
    if type(value) is tuple and set(map(type, value)) == {int}:
        return value
    try:
        many = (value,) if isinstance(value, (int, np.integer)) else tuple(value)
    except TypeError:
        many = (None,)
    if not all(isinstance(one, (int, np.integer)) for one in many):
        raise TypeError(f"{op}: {name} must be an int or a tuple of ints, got {value!r}")
    return tuple(int(one) for one in many)


# ---------------------------------------------------------------- dtypes


def result_type(op: str, *dtypes: np.dtype) -> np.dtype:
    """Return the dtype that operands of these dtypes are brought to.

    As NumPy's, with one difference: beside a float, an integer takes that float's dtype, so that
    float32 never silently becomes float64.
    """
    floats = [dtype for dtype in dtypes if dtype.kind == "f"]
    result = np.result_type(*(floats or dtypes))
    if result not in DTYPES:
        raise DTypeError(f"{op}: no dtype holds {' and '.join(map(str, dtypes))}; cast one first")
    return result


@lru_cache(maxsize=4096)
def require_float(op: str, *specs: Spec) -> None:
    """Raise unless all operands have one float dtype."""
    for spec in specs:
        if spec.dtype not in FLOATS:
            raise DTypeError(f"{op}: needs float32 or float64, got {spec.dtype}; use x.astype()")
    require_same_dtype(op, *specs)


def require_same_dtype(op: str, *specs: Spec) -> None:
    """Raise unless all operands have one dtype."""
    kinds = {spec.dtype for spec in specs}
    if len(kinds) > 1:
        names = " and ".join(sorted(map(str, kinds)))
        raise DTypeError(f"{op}: operands have dtypes {names}; use x.astype()")


def promote(op: str, *operands: Any) -> tuple[Array, ...]:
    """Turn operands into arrays of one dtype on one device.

    Numbers, NumPy's scalars too, take the dtype and device of the arrays beside them; a float
    beside integers makes both float32.
    """
    if len(operands) == 2:  # the usual cases, and the quick ones: alike, or a number beside floats
        x, y = operands
        if isinstance(x, Array):
            if isinstance(y, Array):
                if x.spec.dtype is y.spec.dtype:
                    return operands
            elif type(y) in (int, float) and x.spec.dtype.kind == "f":
                return x, _constant(y, x.spec.dtype, x.spec.device)
        elif type(x) in (int, float) and isinstance(y, Array) and y.spec.dtype.kind == "f":
            return _constant(x, y.spec.dtype, y.spec.device), y
    arrays = [x for x in operands if isinstance(x, Array)]
    if not arrays:
        arrays = operands = [asarray(x) for x in operands]
    operands = [_number(x) for x in operands]
    device = arrays[0].device
    dtypes = {x.dtype for x in arrays}
    for x in operands:
        if isinstance(x, Array) or (type(x) is float and arrays[0].dtype.kind == "f"):
            continue
        if isinstance(x, float) and not any(dtype.kind == "f" for dtype in dtypes):
            dtypes = dtypes | {np.dtype(np.float32)}
        elif isinstance(x, int) and not isinstance(x, bool) and dtypes == {np.dtype(bool)}:
            dtypes = dtypes | {np.dtype(np.int64)}
        elif not isinstance(x, (bool, int, float, np.ndarray, list, tuple)):
            raise TypeError(f"{op}: cannot use {type(x).__name__} as an operand")
        elif isinstance(x, (np.ndarray, list, tuple)):
            dtypes = dtypes | {asarray(x).dtype}
    dtype = dtypes.pop() if len(dtypes) == 1 else result_type(op, *dtypes)
    return tuple(
        [
            (x if x.dtype == dtype else astype(x, dtype))
            if isinstance(x, Array)
            else _constant(x, dtype, device)
            for x in operands
        ]
    )


def _number(x: Any) -> Any:
    """Return a NumPy scalar as the Python number that it stands for."""
    return x.item() if isinstance(x, np.generic) else x


def _constant(x: Any, dtype: np.dtype, device: str) -> Array:
    if isinstance(x, int) and not _fits(x, dtype):
        raise OverflowError(f"{x} does not fit {dtype}")
    if isinstance(x, (bool, int, float)):
        return _number_constant(x, math.copysign(1, x), dtype, device)
    return asarray(np.asarray(x, dtype), device=device)


@lru_cache(maxsize=1024, typed=True)
def _number_constant(x: float, sign: float, dtype: np.dtype, device: str) -> Array:
    """Make a number an array, once; ``sign`` tells 0.0 from -0.0, which are equal."""
    return asarray(np.asarray(x, dtype), device=device)


def _fits(x: int, dtype: np.dtype) -> bool:
    """Return whether a dtype can hold a number, if it is one of integers."""
    return dtype.kind not in "iu" or np.iinfo(dtype).min <= x <= np.iinfo(dtype).max


# --------------------------------------------------------------- broadcasting


def broadcast_shape(op: str, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that operands broadcast to, or raise an error that names them."""
    if len(set(shapes)) == 1:
        return shapes[0]
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        listed = " and ".join(map(str, shapes))
        raise ShapeError(
            f"{op}: shapes {listed} do not broadcast; aligned from the right, extents must be "
            "equal or 1"
        ) from None


@lru_cache(maxsize=4096)
def layout_of(out: tuple[int, ...], *shapes: tuple[int, ...]) -> np.ndarray:
    """Return the collapsed shape of a broadcast and the strides of each operand.

    Dimensions that every operand walks alike are merged, so that a kernel sees few of them, and
    the last one long. Row 0 is the shape; row 1 + k the strides of operand k in elements, 0 where
    it repeats.
    """
    rows = [list(out)] + [_strides(shape, len(out)) for shape in shapes]
    columns = [column for column in zip(*rows, strict=True) if column[0] != 1]
    merged: list[list[int]] = []
    for column in columns:
        if merged and all(
            stride == inner * column[0]
            for stride, inner in zip(merged[-1][1:], column[1:], strict=True)
        ):
            merged[-1] = [merged[-1][0] * column[0], *column[1:]]
        else:
            merged.append(list(column))
    if not merged:
        merged = [[1] + [0] * len(shapes)]
    # Shared by all calls and never written to. It is not marked read-only all the same: for Numba
    # that would be another type, and so another compilation of each kernel.
    return np.array(merged, np.int64).T.copy()


def _strides(shape: tuple[int, ...], ndim: int) -> list[int]:
    strides, step = [0] * ndim, 1
    for axis in range(1, len(shape) + 1):
        extent = shape[-axis]
        strides[-axis] = step if extent != 1 else 0
        step *= extent
    return strides


def flat(call: Call, *scalars: Any) -> Views:
    """See every array as one long row."""
    return Views(
        tuple((spec.size,) for spec in call.inputs),
        tuple((spec.size,) for spec in call.outputs),
        scalars,
    )


def broadcast_views(call: Call) -> Views:
    """See operands as flat, with the layout that tells how they broadcast."""
    out = call.outputs[0].shape
    return flat(call, layout_of(out, *(spec.shape for spec in call.inputs)))


def split_broadcast(call: Call) -> list[Split]:
    """Cut along the first collapsed dimension; an operand that repeats along it stays whole."""
    out = call.outputs[0]
    layout = layout_of(out.shape, *(spec.shape for spec in call.inputs))
    units = int(layout[0, 0])
    steps = tuple(int(stride) for stride in layout[1:, 0])
    return [Split(units, steps, (out.size // max(units, 1),) * len(call.outputs))]


def split_flat(call: Call) -> list[Split]:
    """Cut everything into runs of elements."""
    return [Split(call.outputs[0].size, (1,) * len(call.inputs), (1,) * len(call.outputs))]


# ----------------------------------------------------------------- declaring


def _as_array(x: Any) -> Array:
    return x if isinstance(x, Array) else asarray(x)


_KINDS = {"f": "float32 or float64", "fiu": "numbers", "b": "bool", "fiub": "any dtype"}


def _require_kind(op: str, spec: Spec, kinds: str) -> None:
    if spec.dtype.kind not in kinds:
        raise DTypeError(f"{op}: needs {_KINDS[kinds]}, got {spec.dtype}; use x.astype()")


def _formula(op: str) -> str:
    """Return what the formula of an op is called: not as the primitive that it is made of."""
    return {
        "abs": "absolute",
        "erf": "error_function",
        "exp": "exponential",
        "log": "logarithm",
        "maximum": "larger",
        "minimum": "smaller",
        "pow": "raised",
        "sqrt": "square_root",
        "tanh": "hyperbolic_tangent",
    }.get(op, op)


def _unary(name: str, vjp: Any, kinds: str = "f") -> Op:
    def infer(x):
        _require_kind(name, x, kinds)
        return x.shape, x.dtype

    return register(
        Op(
            name,
            infer,
            f"{name}_forward",
            vjp,
            arrange=flat,
            split=split_flat,
            cost=_cheap,
            formula=_formula(name),
        )
    )


def _cheap(call: Call) -> tuple[float, float]:
    moved = sum(spec.size * spec.dtype.itemsize for spec in (*call.inputs, *call.outputs))
    return 0, moved


def _binary(name: str, vjp: Any, result: Any = None, kinds: str = "fiu") -> Op:
    def infer(x, y):
        require_same_dtype(name, x, y)
        _require_kind(name, x, kinds)
        return broadcast_shape(name, x.shape, y.shape), result or x.dtype

    return register(
        Op(
            name,
            infer,
            f"{name}_forward",
            vjp,
            arrange=broadcast_views,
            split=split_broadcast,
            cost=_cheap,
            formula=_formula(name),
        )
    )


def _unbroadcast(grad: Array, spec: Spec) -> Array:
    """Sum a gradient over the axes along which its operand was repeated."""
    extra = grad.ndim - len(spec.shape)
    repeated = tuple(
        axis
        for axis, extent in enumerate(grad.shape)
        if axis < extra or (spec.shape[axis - extra] == 1 and extent != 1)
    )
    return grad.sum(axis=repeated).reshape(spec.shape)


def _each(needs: tuple[bool, ...], specs: tuple[Spec, ...], *gradients: Any) -> tuple:
    """Compute the gradients that are asked for, each summed to its operand's shape."""
    found = []  # a loop, as a comprehension takes longer
    for needed, spec, gradient in zip(needs, specs, gradients):
        grad = gradient() if needed else None
        if grad is not None and grad.spec.shape != spec.shape:
            grad = _unbroadcast(grad, spec)
        found.append(grad)
    return tuple(found)


# --------------------------------------------------------------- arithmetic

_ADD = _binary("add", lambda grad_out, needs, specs: _each(
    needs, specs, lambda: grad_out, lambda: grad_out))  # fmt: skip
_SUBTRACT = _binary("subtract", lambda grad_out, needs, specs: _each(
    needs, specs, lambda: grad_out, lambda: -grad_out))  # fmt: skip
_MULTIPLY = _binary("multiply", lambda grad_out, x, y, needs, specs: _each(
    needs, specs, lambda: grad_out * y, lambda: grad_out * x))  # fmt: skip
_DIVIDE = _binary("divide", lambda grad_out, x, y, needs, specs: _each(
    needs, specs, lambda: grad_out / y, lambda: -grad_out * x / (y * y)), kinds="f")  # fmt: skip


def _pow_vjp(grad_out, x, y, out, needs, specs):
    # x^(y-1) is inf at x = 0, y = 0, where the slope is 0; ln x matters only where x > 0.
    def by_x():
        slope = where(y == 0, 0.0, y * pow(x, where(y == 0, 1.0, y) - 1.0))
        return grad_out * slope

    def by_y():
        return grad_out * where(x > 0, out * log(where(x > 0, x, 1.0)), 0.0)

    return _each(needs, specs, by_x, by_y)


_POW = _binary("pow", _pow_vjp, kinds="f")


def _share(grad_out, wins, tie):
    """Give the gradient to the operand that wins; at a tie, half to each, which is symmetric."""
    return grad_out * (astype(wins, grad_out.dtype) + astype(tie, grad_out.dtype) * 0.5)


def _maximum_vjp(grad_out, x, y, needs, specs):
    tie = x == y
    return _each(
        needs, specs, lambda: _share(grad_out, x > y, tie), lambda: _share(grad_out, y > x, tie)
    )


def _minimum_vjp(grad_out, x, y, needs, specs):
    tie = x == y
    return _each(
        needs, specs, lambda: _share(grad_out, x < y, tie), lambda: _share(grad_out, y < x, tie)
    )


_MAXIMUM = _binary("maximum", _maximum_vjp)
_MINIMUM = _binary("minimum", _minimum_vjp)


def add(x: Any, y: Any) -> Array:
    """Return ``x + y``, broadcast.

    Examples
    --------
    >>> add(asarray([1.0, 2.0]), 1)
    Array([2., 3.], dtype=float32)
    """
    x, y = promote("add", x, y)
    return apply(_ADD, x, y)


def subtract(x: Any, y: Any) -> Array:
    """Return ``x - y``, broadcast."""
    x, y = promote("subtract", x, y)
    return apply(_SUBTRACT, x, y)


def multiply(x: Any, y: Any) -> Array:
    """Return ``x * y``, broadcast."""
    x, y = promote("multiply", x, y)
    return apply(_MULTIPLY, x, y)


def divide(x: Any, y: Any) -> Array:
    """Return ``x / y``, broadcast; integers are divided as float32."""
    x, y = promote("divide", x, y)
    if x.dtype.kind != "f":
        x, y = astype(x, np.float32), astype(y, np.float32)
    return apply(_DIVIDE, x, y)


def pow(x: Any, y: Any) -> Array:
    """Return ``x`` to the power ``y``, broadcast.

    Integers are raised to whole, non-negative Python numbers only; make them floats for others.

    Examples
    --------
    >>> pow(asarray([2.0, 3.0]), 0.5)
    Array([1.4142135, 1.7320508], dtype=float32)
    >>> pow(asarray([2, 3]), 3)
    Array([ 8, 27], dtype=int64)
    """
    y = _number(y)
    if isinstance(x, Array) and isinstance(y, (int, float)):
        if y == 2:
            return multiply(x, x)  # exact, and the commonest power
        if x.dtype.kind in "iu" and isinstance(y, int) and y >= 0:
            return _power_of_integers(x, y)
    return apply(_POW, *promote("pow", x, y))


def _power_of_integers(x: Array, exponent: int) -> Array:
    """Raise to a whole power by squaring: x^5 = x (x^2)^2."""
    result = add(multiply(x, 0), 1)
    while exponent:
        if exponent & 1:
            result = multiply(result, x)
        x, exponent = multiply(x, x), exponent >> 1
    return result


def maximum(x: Any, y: Any) -> Array:
    """Return the larger of each pair, broadcast; NaN if either is.

    The gradient goes to the larger one, and half to each at a tie.
    """
    x, y = promote("maximum", x, y)
    return apply(_MAXIMUM, x, y)


def minimum(x: Any, y: Any) -> Array:
    """Return the smaller of each pair, broadcast; NaN if either is."""
    x, y = promote("minimum", x, y)
    return apply(_MINIMUM, x, y)


# --------------------------------------------------------------- comparison


def _compare(name: str) -> Any:
    op = _binary(name, None, result=np.dtype(bool), kinds="fiub")

    def function(x: Any, y: Any) -> Array:
        return apply(op, *promote(name, *_comparable(x, y)))

    symbols = {"equal": "==", "not_equal": "!=", "less": "<", "less_equal": "<="}
    symbols |= {"greater": ">", "greater_equal": ">="}
    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"Return the booleans ``x {symbols[name]} y``, broadcast."
    return function


def _comparable(x: Any, y: Any) -> tuple[Any, Any]:
    """Widen an integer array beside an int that its dtype cannot hold: ``uint8 == -1`` is False."""
    x, y = _number(x), _number(y)
    if isinstance(x, Array) and isinstance(y, int) and not _fits(y, x.dtype):
        x = astype(x, np.int64)
    elif isinstance(y, Array) and isinstance(x, int) and not _fits(x, y.dtype):
        y = astype(y, np.int64)
    return x, y


equal = _compare("equal")
not_equal = _compare("not_equal")
less = _compare("less")
less_equal = _compare("less_equal")
greater = _compare("greater")
greater_equal = _compare("greater_equal")


# -------------------------------------------------------------------- logic

_LOGICAL_AND = _binary("logical_and", None, kinds="b")
_LOGICAL_OR = _binary("logical_or", None, kinds="b")
_LOGICAL_XOR = _binary("logical_xor", None, kinds="b")
_LOGICAL_NOT = _unary("logical_not", None, kinds="b")


def logical_and(x: Any, y: Any) -> Array:
    """Return where both of two boolean arrays hold, broadcast; also written ``x & y``.

    Examples
    --------
    >>> x = asarray([-1.0, 0.5, 2.0])
    >>> (x > 0) & (x < 1)
    Array([False,  True, False], dtype=bool)
    """
    return apply(_LOGICAL_AND, *promote("logical_and", x, y))


def logical_or(x: Any, y: Any) -> Array:
    """Return where one or both of two boolean arrays hold, broadcast; also written ``x | y``."""
    return apply(_LOGICAL_OR, *promote("logical_or", x, y))


def logical_xor(x: Any, y: Any) -> Array:
    """Return where just one of two boolean arrays holds, broadcast; also written ``x ^ y``."""
    return apply(_LOGICAL_XOR, *promote("logical_xor", x, y))


def logical_not(x: Any) -> Array:
    """Return where a boolean array does not hold; also written ``~x``."""
    return apply(_LOGICAL_NOT, _as_array(x))


# ----------------------------------------------------------------- choosing


def _where_infer(condition, x, y):
    if condition.dtype != bool:
        raise DTypeError(f"where: the condition must be bool, got {condition.dtype}")
    require_same_dtype("where", x, y)
    return broadcast_shape("where", condition.shape, x.shape, y.shape), x.dtype


def _where_vjp(grad_out, condition, needs, specs):
    return _each(
        needs,
        specs,
        lambda: None,
        lambda: where(condition, grad_out, 0.0),
        lambda: where(condition, 0.0, grad_out),
    )


_WHERE = register(
    Op(
        "where",
        _where_infer,
        "where_forward",
        _where_vjp,
        arrange=broadcast_views,
        split=split_broadcast,
        cost=_cheap,
        formula="chosen",
    )
)


def where(condition: Any, x: Any, y: Any) -> Array:
    """Return ``x`` where the condition holds, else ``y``, all three broadcast.

    Examples
    --------
    >>> where(asarray([True, False]), asarray([1.0, 2.0]), 0.0)
    Array([1., 0.], dtype=float32)
    """
    if not isinstance(condition, Array):
        others = [v for v in (x, y) if isinstance(v, Array)]
        condition = asarray(condition, device=others[0].device if others else None)
    if not isinstance(x, Array) and not isinstance(y, Array):
        x = asarray(x, device=condition.device)
    return apply(_WHERE, condition, *promote("where", x, y))


# -------------------------------------------------------- dtype, copy, repeat


def _cast_infer(x, *, dtype):
    return x.shape, dtype


def _cast_vjp(grad_out, specs):
    return astype(grad_out, specs[0].dtype)


_CAST = register(
    Op(
        "cast",
        _cast_infer,
        "cast_forward",
        _cast_vjp,
        arrange=flat,
        split=split_flat,
        cost=_cheap,
    )
)
COPY = register(
    Op(
        "copy",
        lambda x: (x.shape, x.dtype),
        "copy_forward",
        lambda grad_out: grad_out,
        arrange=flat,
        split=split_flat,
        cost=_cheap,
    )
)


_NAMES = {dtype: str(dtype) for dtype in DTYPES}


def astype(x: Array, dtype: Any) -> Array:
    """Return ``x`` in another dtype; floats become integers by dropping their fraction.

    The result is an array of its own: assigning to its elements leaves ``x`` alone.
    """
    require_arrays("astype", x=x)
    if dtype is None:
        raise TypeError("astype: dtype must be named, got None")
    try:
        wanted = np.dtype(dtype)
        name = _NAMES.get(wanted)
    except TypeError:
        name = None
    if name is None:
        hint = nearest(str(dtype), map(str, DTYPES))
        raise DTypeError(f"astype: dtype {dtype} is not supported; {hint}")
    return x.reshape(x.shape) if x.dtype == wanted else apply(_CAST, x, dtype=name)


def copy(x: Array) -> Array:
    """Return a new array with the values of ``x``."""
    return apply(COPY, x)


def _broadcast_infer(x, *, shape):
    if broadcast_shape("broadcast_to", x.shape, shape) != shape:
        raise ShapeError(f"broadcast_to: shape {x.shape} does not broadcast to {shape}")
    return shape, x.dtype


_BROADCAST_TO = register(
    Op(
        "broadcast_to",
        _broadcast_infer,
        "broadcast_to_forward",
        lambda grad_out, specs: _unbroadcast(grad_out, specs[0]),
        arrange=broadcast_views,
        split=split_broadcast,
        cost=_cheap,
    )
)


def broadcast_to(x: Array, shape: int | tuple[int, ...]) -> Array:
    """Return ``x`` repeated to a shape."""
    require_arrays("broadcast_to", x=x)
    shape = as_ints("broadcast_to", "shape", shape)
    return x.reshape(shape) if x.shape == shape else apply(_BROADCAST_TO, x, shape=shape)


# ------------------------------------------------------- functions of one x

_NEGATIVE = _unary("negative", lambda grad_out: -grad_out, kinds="fiu")
_ABS = _unary(
    "abs",
    lambda grad_out, x: where(x > 0, grad_out, where(x < 0, -grad_out, 0.0)),
    kinds="fiu",
)
_EXP = _unary("exp", lambda grad_out, out: grad_out * out)
_LOG = _unary("log", lambda grad_out, x: grad_out / x)
_SQRT = _unary("sqrt", lambda grad_out, out: grad_out / (out * 2.0))
_TANH = _unary("tanh", lambda grad_out, out: apply(_TANH_BACKWARD, out, grad_out))
_ERF = _unary("erf", lambda grad_out, x: grad_out * (exp(-x * x) * (2.0 / np.pi**0.5)))
_SIGMOID = _unary("sigmoid", lambda grad_out, out: apply(_SIGMOID_BACKWARD, out, grad_out))
_RELU = _unary("relu", lambda grad_out, out: apply(_RELU_BACKWARD, out, grad_out))
_GELU = _unary("gelu", lambda grad_out, x: apply(_GELU_BACKWARD, x, grad_out))


# Their gradients are ops of their own: one pass over memory instead of one for each term. An op
# below is linear in `grad_y`, the gradient of y = f(x), so its gradient by that is itself. Its
# other operand is x, or y where the slope is simpler by that.


def _pair_infer(name):
    def infer(x, grad_y, **params):
        require_float(name, x, grad_y)
        return x.shape, x.dtype

    return infer


def _backward(name: str, by_x: Any) -> Op:
    """Register the gradient of a function of one x; ``by_x(grad_out, x, grad_y)`` is its own."""

    def vjp(grad_out, x, grad_y, needs):
        grad_x = by_x(grad_out, x, grad_y) if needs[0] else None
        return grad_x, apply(op, x, grad_out) if needs[1] else None

    op = Op(
        name,
        _pair_infer(name),
        name,
        vjp,
        arrange=flat,
        split=split_flat,
        cost=_cheap,
        formula=name,
    )
    return register(op)


def _gelu_curve(grad_out, x, grad_y):
    # d/dx (Phi(x) + x phi(x)) = (2 - x^2) phi(x)
    phi = exp(x * x * -0.5) * (1.0 / (2.0 * np.pi) ** 0.5)
    return grad_out * grad_y * (2.0 - x * x) * phi


_TANH_BACKWARD = _backward(
    "tanh_backward", lambda grad_out, out, grad_y: grad_out * grad_y * out * -2.0
)
_SIGMOID_BACKWARD = _backward(
    "sigmoid_backward", lambda grad_out, out, grad_y: grad_out * grad_y * (1.0 - out * 2.0)
)
_RELU_BACKWARD = _backward("relu_backward", lambda grad_out, x, grad_y: None)
_GELU_BACKWARD = _backward("gelu_backward", _gelu_curve)


def _slope(call: Call) -> Views:
    return flat(call, call.inputs[0].dtype.type(call.slope))


def _leaky_infer(x, *, slope):
    require_float("leaky_relu", x)
    return x.shape, x.dtype


_LEAKY_RELU = register(
    Op(
        "leaky_relu",
        _leaky_infer,
        "leaky_relu_forward",
        lambda grad_out, x, slope: _leaky_relu_backward(x, grad_out, slope),
        arrange=_slope,
        split=split_flat,
        cost=_cheap,
        formula="leaky_relu",
    )
)
_LEAKY_RELU_BACKWARD = register(
    Op(
        "leaky_relu_backward",
        _pair_infer("leaky_relu_backward"),
        "leaky_relu_backward",
        lambda grad_out, x, slope: (None, _leaky_relu_backward(x, grad_out, slope)),
        arrange=_slope,
        split=split_flat,
        cost=_cheap,
        formula="leaky_relu_backward",
    )
)


def _leaky_relu_backward(x: Array, grad_out: Array, slope: float) -> Array:
    return apply(_LEAKY_RELU_BACKWARD, x, grad_out, slope=slope)


def negative(x: Array) -> Array:
    """Return ``-x``."""
    return apply(_NEGATIVE, _as_array(x))


def abs(x: Array) -> Array:
    """Return ``|x|``; the gradient at 0 is 0."""
    return apply(_ABS, _as_array(x))


def exp(x: Array) -> Array:
    """Return e to the power ``x``."""
    return apply(_EXP, _as_array(x))


def log(x: Array) -> Array:
    """Return the natural logarithm."""
    return apply(_LOG, _as_array(x))


def sqrt(x: Array) -> Array:
    """Return the square root."""
    return apply(_SQRT, _as_array(x))


def tanh(x: Array) -> Array:
    """Return the hyperbolic tangent."""
    return apply(_TANH, _as_array(x))


def erf(x: Array) -> Array:
    """Return the error function, 2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x."""
    return apply(_ERF, _as_array(x))


def sigmoid(x: Array) -> Array:
    """Return ``1 / (1 + exp(-x))``."""
    return apply(_SIGMOID, _as_array(x))


def relu(x: Array) -> Array:
    """Return ``max(x, 0)``; the gradient at 0 is 0.

    Examples
    --------
    >>> relu(asarray([-1.0, 2.0]))
    Array([0., 2.], dtype=float32)
    """
    return apply(_RELU, _as_array(x))


def leaky_relu(x: Array, slope: float = 0.01) -> Array:
    """Return ``x`` where it is positive, else ``slope * x``."""
    return apply(_LEAKY_RELU, _as_array(x), slope=float(slope))


def gelu(x: Array) -> Array:
    """Return ``x Phi(x)``, Phi the normal distribution function.

    Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016); the exact form, by ``erf``.
    """
    return apply(_GELU, _as_array(x))


__all__ = [
    "abs",
    "add",
    "astype",
    "broadcast_to",
    "copy",
    "divide",
    "equal",
    "erf",
    "exp",
    "gelu",
    "greater",
    "greater_equal",
    "leaky_relu",
    "less",
    "less_equal",
    "log",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "maximum",
    "minimum",
    "multiply",
    "negative",
    "not_equal",
    "pow",
    "relu",
    "sigmoid",
    "sqrt",
    "subtract",
    "tanh",
    "where",
]
