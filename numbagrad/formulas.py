"""Elementwise formulas, written once and bound to each target.

A formula is plain Python built from a few primitives (``exp``, ``where``, ``maximum``, ...) that
are *not* defined here: `bind` gives the same code another meaning for each target. With NumPy's
primitives it is the float64 reference of the tests, with those of ``simd`` it works on vectors
inside CPU kernels, with scalar ones inside CUDA kernels.

Formulas are free of branches (lanes of a vector cannot branch): ``where`` chooses. Numbers are
written ``const(x, 0.5)``, a constant of ``x``'s dtype, so float32 stays float32.

Some of the primitives are formulas themselves: in float32, on the CPU, ``exp`` and its like are
the polynomials at the end, built from still simpler primitives that reach the bits of a number.
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
    # and of the float32 polynomials
    "fma",
    "copysign",
    "bits",
    "from_bits",
    "to_float",
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


def chosen(condition, x, y):
    return where(condition, x, y)


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
    """1 / (1 + exp(-x)), through exp(-|x|) <= 1 so that nothing overflows; off by 2.4 ulp."""
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


def tanh_backward(out, grad_out):
    """The slope of tanh by what it gave: 1 - tanh(x)^2."""
    return grad_out * (const(out, 1) - out * out)


def sigmoid_backward(out, grad_out):
    """The slope of the sigmoid by what it gave."""
    return grad_out * (out * (const(out, 1) - out))


def relu_backward(x, grad_out):
    """The slope of relu; x may be relu(x), too, which is positive where x is."""
    return where(x > const(x, 0), grad_out, const(x, 0))


def leaky_relu_backward(x, grad_out, slope):
    return where(x > const(x, 0), grad_out, grad_out * slope)


def gelu_backward(x, grad_out):
    """The slope of gelu: Phi(x) + x phi(x), phi the normal density."""
    phi = exp(x * x * const(x, -0.5)) * const(x, 1 / math.sqrt(2 * math.pi))
    below = (erf(x * const(x, math.sqrt(0.5))) + const(x, 1)) * const(x, 0.5)
    return grad_out * (below + x * phi)


# ------------------------------------------------------------- optimisers

TINY = 2.0**-126  # the smallest float32 with all its digits


def settled(x):
    """x, or 0 where it is tiny.

    An average of gradients that have become 0 halves for ever, down to numbers with ever fewer
    digits, which take the processor five times as long.
    """
    return where(abs(x) < const(x, TINY), const(x, 0), x)


FORMULAS = tuple(value for value in globals().values() if isinstance(value, types.FunctionType))


# --------------------------------------------------- float32 functions by polynomials
#
# No vector version of the C library's functions comes with Numba, so these are our own: reduce
# the argument to a short interval, take a polynomial there, scale the result back. Coefficients
# are minimax fits in float64 (least squares on 2000 Chebyshev points, reweighted by the error
# until that is level), rounded to float32 from the lowest order up, the rest fitted again each
# time. "Off by 0.7 ulp" is the largest error, in units of the last place, found when all float32
# numbers were tried, on a processor with fma. Bare numbers take the dtype of the vectors beside
# them. The functions are for vectors of float32 only: `bits` are then 32-bit integers.

INFINITY, NAN = math.inf, math.nan
ROUNDING = 1.5 * 2.0**23  # a float32 added to this is rounded to a whole number, in the last bits
ROUNDING_BITS = 0x4B400000  # the bits of it
ONE_OVER_LN2 = 1.4426950408889634
# ln 2 in two parts: times a whole number below 2^9, the first, of 15 bits, is exact.
LN2_HIGH = 0.693145751953125
LN2_LOW = 1.42860682030941723e-6


def two_to_the(n):
    """2^n of whole numbers from -126 to 127: n is put where the exponent stands."""
    return from_bits((n + 127) << 23)


def exp_parts(x):
    """Return n and p with e^x = 2^n (1 + p), n a whole number and |p| < 0.42."""
    rounded = fma(x, ONE_OVER_LN2, ROUNDING)
    n = rounded - ROUNDING
    r = fma(n, -LN2_LOW, fma(n, -LN2_HIGH, x))  # x - n ln 2
    p = fma(r, 1.9763382443e-4, 1.3932342408e-3)
    p = fma(r, p, 8.3335442469e-3)
    p = fma(r, p, 4.1666492820e-2)
    p = fma(r, p, 1.6666665673e-1)
    p = fma(r, p, 0.5)
    return bits(rounded) - ROUNDING_BITS, fma(r * r, p, r)


def exp_float32(x):
    """e^x, off by 1.0 ulp."""
    vanishes = x < -104  # kept from the products below: underflow costs 150 cycles
    n, p = exp_parts(where(vanishes, 0, where(x > 89, 89, x)))  # from 89 on it is inf
    half = n >> 1  # 2^n itself may be too large or too small for a float32
    return where(vanishes, 0, (p + 1) * two_to_the(half) * two_to_the(n - half))


def expm1_float32(x):
    """e^x - 1 for |x| < 87, with all its digits near 0; off by 1.5 ulp."""
    n, p = exp_parts(x)
    scale = two_to_the(n)
    return fma(scale, p, scale - 1)


def log_float32(x):
    """ln x, off by 0.9 ulp: x = 2^n (1 + f) with f from sqrt(1/2) - 1 to sqrt(2) - 1."""
    tiny = x < 2.0**-126
    shifted = bits(where(tiny, x * 2.0**23, x)) - 0x3F3504F3  # the bits of sqrt(1/2)
    n = to_float(shifted >> 23)
    n = where(tiny, n - 23, n)
    f = from_bits((shifted & 0x7FFFFF) + 0x3F3504F3) - 1
    p = fma(f, -7.6364390552e-2, 1.2762217224e-1)
    p = fma(f, p, -1.3159610331e-1)
    p = fma(f, p, 1.4201579988e-1)
    p = fma(f, p, -1.6623409092e-1)
    p = fma(f, p, 2.0001241565e-1)
    p = fma(f, p, -2.5000819564e-1)
    p = fma(f, p, 3.3333331347e-1)
    p = fma(f, p, -0.5)
    p = fma(f * f, p, n * LN2_LOW)
    result = fma(n, LN2_HIGH, f + p)
    result = where(x < 0, NAN, where(x == 0, -INFINITY, result))
    return where(x < INFINITY, result, x)


def tanh_float32(x):
    """1 - 2 / (e^2a + 1) with a = |x|, and a polynomial where that loses digits; off by 1.4 ulp."""
    a = abs(x)
    n, p = exp_parts(2 * where(a > 9.1, 9.1, a))  # from there on it is 1
    large = 1 - 2 / fma(two_to_the(n), p + 1, 1)
    b = x * x
    p = fma(b, -5.8926390484e-3, 2.0794818178e-2)
    p = fma(b, p, -5.3783860058e-2)
    p = fma(b, p, 1.3331930339e-1)
    p = fma(b, p, -3.3333298564e-1)
    small = fma(a * b, p, a)
    return copysign(where(a < 0.6, small, large), x)


def erf_float32(x):
    """1 - exp(-t) with t = -ln(1 - erf(|x|)) a polynomial of |x|; off by 1.6 ulp."""
    a = abs(x)
    a = where(a > 3.95, 3.95, a)  # from there on it is 1
    t = fma(a, -9.3152420959e-6, 1.1822055239e-4)
    t = fma(a, t, -6.3510751351e-4)
    t = fma(a, t, 1.6716002719e-3)
    t = fma(a, t, -1.6546757251e-4)
    t = fma(a, t, -1.9149985164e-2)
    t = fma(a, t, 1.0277687758e-1)
    t = fma(a, t, 6.3661950827e-1)
    t = fma(a, t, -5.8635382771e-8)  # the digits of 2 / sqrt(pi) that the next number lacks
    t = fma(a, 1.1283792257, a * t)
    return copysign(expm1_float32(-t), x)


FLOAT32_FUNCTIONS = (
    two_to_the,
    exp_parts,
    exp_float32,
    expm1_float32,
    log_float32,
    tanh_float32,
    erf_float32,
)


def bind(
    primitives: dict[str, Callable],
    decorate: Callable = lambda f: f,
    functions: tuple[Callable, ...] = FORMULAS,
) -> types.ModuleType:
    """Return the formulas with their primitives bound to one target.

    Parameters
    ----------
    primitives
        A function for each of the ``PRIMITIVES`` that the formulas name.
    decorate
        What compiles a function for the target, such as ``njit``.
    functions
        What to bind: ``FORMULAS`` or ``FLOAT32_FUNCTIONS``.

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
    named = {name for formula in functions for name in formula.__code__.co_names}
    scope = globals() | {name: primitives[name] for name in PRIMITIVES if name in named}
    for formula in functions:
        function = types.FunctionType(formula.__code__, scope, formula.__name__)
        function.__doc__ = formula.__doc__
        scope[formula.__name__] = decorate(function)  # for those that call it
        setattr(bound, formula.__name__, scope[formula.__name__])
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
