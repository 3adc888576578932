"""Each formula in its CPU kernel, against NumPy in float64: over ordinary and extreme values."""

import numpy as np
import pytest

import numbagrad as ng
from numbagrad import formulas

# Units in the last place of the dtype that a result may be off, and how it may be off near 0:
# a formula that subtracts or cuts off has an absolute error, in units of epsilon.
ULP = {
    "exp": (2, 0),
    "log": (2, 0),
    "sqrt": (1, 0),
    "tanh": (3, 0),
    "erf": (3, 0),
    "sigmoid": (4, 0),
    "relu": (0, 0),
    "gelu": (4, 8),
}
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
    limits = np.finfo(dtype)
    allowed = ulps * np.maximum(np.spacing(np.abs(rounded)), limits.tiny) + near_zero * limits.eps
    off = np.abs(result[~special].astype(np.float64) - expected[~special])
    worst = np.argmax(off / np.maximum(allowed[~special], limits.tiny))
    assert (off <= allowed[~special]).all(), f"{name}({x[~special][worst]!r}) is off {off[worst]}"


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
