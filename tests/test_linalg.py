"""Matrix products beyond their cases: large enough for threads."""

import numpy as np
import pytest

import numbagrad as ng
from numbagrad import dispatch
from numbagrad.dispatch import apply, plan_for, registry
from numbagrad.ops.linalg import nothing

MATMUL = registry["matmul"]


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_one_product_is_spread_over_threads(transpose_a, transpose_b, monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(333, 200)), rng.normal(size=(200, 150))
    expected = a @ b
    arrays = [
        ng.asarray((x.T if transpose else x).astype(np.float32))
        for x, transpose in ((a, transpose_a), (b, transpose_b))
    ]
    none = nothing(np.dtype(np.float32), "cpu")
    arrays.append(none)
    params = {"transpose_a": transpose_a, "transpose_b": transpose_b, "relu": False}
    assert plan_for(MATMUL, tuple(arrays), params).shards.count > 1
    out = apply(MATMUL, *arrays, **params).numpy()
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)

    monkeypatch.setattr(dispatch, "MAX_SHARDS", 1)
    MATMUL._plans.clear()
    whole = apply(MATMUL, *arrays, **params).numpy()
    MATMUL._plans.clear()
    np.testing.assert_array_equal(out, whole)


def test_linear_names_what_is_no_array():
    with pytest.raises(TypeError, match=r"linear: weight is a numpy\.ndarray; ops take Arrays"):
        ng.linear(ng.asarray([1.0]), np.ones((1, 2), np.float32))


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("rows", [1, 8])
def test_infinities_do_not_meet_zeros_of_our_own(rows, steps):
    a, b = np.ones((rows, steps), np.float32), np.ones((steps, 2), np.float32)
    b[0, 0] = np.inf
    np.testing.assert_array_equal((ng.asarray(a) @ ng.asarray(b)).numpy(), a @ b)
