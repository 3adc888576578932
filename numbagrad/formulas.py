"""Elementwise formulas, written once and bound to each target.

A formula is plain Python built from a few primitives (``exp``, ``where``, ``maximum``, ...) that
are *not* defined here: `bind` gives the same code another meaning for each target. With NumPy's
primitives it is the float64 reference of the tests, with those of ``simd`` it works on vectors
inside CPU kernels, with scalar ones inside CUDA kernels.

Formulas are free of branches (lanes of a vector cannot branch): ``where`` chooses. Numbers are
written ``const(x, 0.5)``, a constant of ``x``'s dtype, so float32 stays float32.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable

import numpy as np

# ruff: noqa: F821  (the primitives are bound later)

PRIMITIVES = (
    "const",
    "where",
    "maximum",
    "minimum",
    "sqrt",
    "exp",
    "log",
    "tanh",
    "erf",
    "power",
)


# ------------------------------------------------------------ two operands


def add(x, y):
    return x + y


def subtract(x, y):
    return x - y


def multiply(x, y):
    return x * y


def divide(x, y):
    return x / y


def larger(x, y):
    return maximum(x, y)


def smaller(x, y):
    return minimum(x, y)


def raised(x, y):
    return power(x, y)


def equal(x, y):
    return x == y


def not_equal(x, y):
    return x != y


def less(x, y):
    return x < y


def less_equal(x, y):
    return x <= y


def greater(x, y):
    return x > y


def greater_equal(x, y):
    return x >= y


def logical_and(x, y):
    return x & y


def logical_or(x, y):
    return x | y


def logical_xor(x, y):
    return x ^ y


# ------------------------------------------------------------- one operand


def logical_not(x):
    return ~x


def negative(x):
    return -x


def absolute(x):
    return abs(x)


def exponential(x):
    return exp(x)


def logarithm(x):
    return log(x)


def square_root(x):
    return sqrt(x)


def hyperbolic_tangent(x):
    return tanh(x)


def error_function(x):
    return erf(x)


def sigmoid(x):
    """1 / (1 + exp(-x)), through exp(-|x|) <= 1 so that nothing overflows."""
    small = exp(-abs(x))
    return where(x >= const(x, 0), const(x, 1), small) / (small + const(x, 1))


def relu(x):
    return maximum(x, const(x, 0))


def leaky_relu(x, slope):
    return where(x > const(x, 0), x, x * slope)


def gelu(x):
    """x Phi(x), Phi the normal distribution function (Hendrycks and Gimpel, 2016)."""
    return x * const(x, 0.5) * (erf(x * const(x, math.sqrt(0.5))) + const(x, 1))


# ---------------------------------------------------------------- gradients


def relu_backward(x, grad_out):
    return where(x > const(x, 0), grad_out, const(x, 0))


def leaky_relu_backward(x, grad_out, slope):
    return where(x > const(x, 0), grad_out, grad_out * slope)


def bind(primitives: dict[str, Callable], decorate: Callable = lambda f: f) -> types.ModuleType:
    """Return the formulas with their primitives bound to one target.

    Parameters
    ----------
    primitives
        A function for each name in ``PRIMITIVES``.
    decorate
        What compiles a function for the target, such as ``njit``.

    Returns
    -------
    types.ModuleType
        The formulas as attributes.

    Examples
    --------
    >>> float(reference.relu(np.float64(-2.0)))
    0.0
    """
    bound = types.ModuleType(f"{__name__}_bound")
    scope = {name: primitives[name] for name in PRIMITIVES}
    scope |= {"math": math, "abs": abs, "__name__": __name__}
    for name, formula in list(globals().items()):
        if isinstance(formula, types.FunctionType) and name not in ("bind",):
            function = types.FunctionType(formula.__code__, scope, name)
            function.__doc__ = formula.__doc__
            setattr(bound, name, decorate(function))
    return bound


def _erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf, otypes=[np.float64])(x)


#: The formulas in NumPy's float64: what every target is held against.
reference = bind(
    {
        "const": lambda x, value: value,
        "where": np.where,
        "maximum": np.maximum,
        "minimum": np.minimum,
        "sqrt": np.sqrt,
        "exp": np.exp,
        "log": np.log,
        "tanh": np.tanh,
        "erf": _erf,
        "power": np.power,
    }
)
