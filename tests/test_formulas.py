"""Each formula in its CPU kernel, against NumPy in float64: over ordinary and extreme values."""

import numpy as np
import pytest

import numbagrad as ng
from numbagrad import formulas, kernels_cpu
from numbagrad.dispatch import registry
from numbagrad.jit import cpu_features

# Units in the last place of float32 that a result may be off, as its formula says, and how it may
# be off near 0: a formula that subtracts or cuts off has an absolute error, in units of epsilon.
ULP = {
    "exp": (1.0, 0),
    "log": (0.9, 0),
    "sqrt": (0.5, 0),
    "tanh": (1.4, 0),
    "erf": (1.6, 0),
    "sigmoid": (2.4, 0),
    "relu": (0, 0),
    "gelu": (4, 8),
}
SLACK = 1 if {"fma", "neon"} & cpu_features() else 2  # unfused multiply-adds round more often
REFERENCES = {
    "exp": "exponential",
    "log": "logarithm",
    "sqrt": "square_root",
    "tanh": "hyperbolic_tangent",
    "erf": "error_function",
}

ORDINARY = np.concatenate([np.linspace(-12, 12, 4001), np.geomspace(1e-8, 1, 500)])
EXTREME = np.array([0, 1e-40, 1e-30, 1e-10, 20, 80, 88.6, 88.8, 103, 104, 700, 1e10, 1e38, np.inf])
VALUES = np.concatenate([ORDINARY, EXTREME, -EXTREME, [np.nan]])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ULP)
def test_formula(name, dtype):
    x = VALUES.astype(dtype)
    result = getattr(ng, name)(ng.asarray(x)).numpy()
    reference = getattr(formulas.reference, REFERENCES.get(name, name))
    with np.errstate(all="ignore"):
        expected = reference(x.astype(np.float64))
        rounded = expected.astype(dtype)  # overflow makes inf
    assert result.dtype == dtype

    special = ~np.isfinite(rounded)
    np.testing.assert_array_equal(result[special], rounded[special])
    ulps, near_zero = ULP[name]
    ulps = ulps * SLACK if dtype == "float32" else max(2, ulps)  # the C library's and NumPy's
    limits = np.finfo(dtype)
    allowed = ulps * np.maximum(np.spacing(np.abs(rounded)), limits.tiny) + near_zero * limits.eps
    off = np.abs(result[~special].astype(np.float64) - expected[~special])
    worst = np.argmax(off / np.maximum(allowed[~special], limits.tiny))
    assert (off <= allowed[~special]).all(), f"{name}({x[~special][worst]!r}) is off {off[worst]}"


def float32_numbers():
    """Return every 997th of all float32 numbers, and those around each power of two."""
    powers = np.arange(0, 2**32, 2**23)
    bits = [np.arange(0, 2**32, 997), powers, powers + 1, (powers - 1) % 2**32]
    return np.concatenate(bits).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("name", ["exp", "log", "tanh", "erf", "sigmoid"])
def test_every_size_of_float32(name):
    x = np.concatenate([float32_numbers(), VALUES.astype(np.float32)])
    result = getattr(ng, name)(ng.asarray(x)).numpy()
    with np.errstate(all="ignore"):
        expected = getattr(formulas.reference, REFERENCES.get(name, name))(x.astype(np.float64))
        rounded = expected.astype(np.float32)
    finite = np.isfinite(rounded)
    np.testing.assert_array_equal(result[~finite], rounded[~finite])  # NaN, too, where NaN is due
    np.testing.assert_array_equal(np.signbit(result[finite]), np.signbit(rounded[finite]))
    off = np.abs(result[finite].astype(np.float64) - expected[finite])
    ulps = off / np.spacing(np.abs(rounded[finite]))  # of denormal numbers, too
    worst = np.argmax(ulps)
    assert ulps[worst] <= ULP[name][0] * SLACK, f"{name}({x[finite][worst]!r}): {ulps[worst]} ulp"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_leaky_relu(dtype):
    x = VALUES[~np.isnan(VALUES)].astype(dtype)
    result = ng.leaky_relu(ng.asarray(x), 0.25).numpy()
    np.testing.assert_array_equal(result, np.where(x > 0, x, x * x.dtype.type(0.25)))


@pytest.mark.parametrize("name", ["sigmoid", "gelu", "tanh"])
def test_gradients_of_extreme_values_are_finite(name):
    x = ng.asarray([-1e4, -100.0, 0.0, 100.0, 1e4], requires_grad=True)
    getattr(ng, name)(x).sum().backward()
    assert np.isfinite(x.grad.numpy()).all()


def test_formulas_of_ops():
    fused = {op.formula for op in registry.values() if op.formula}
    assert {"add", "relu", "gelu_backward", "leaky_relu_backward", "exponential"} <= fused
    for formula in fused:
        assert callable(getattr(kernels_cpu.vector, formula)), formula
