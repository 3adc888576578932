"""Embedding: what errors say, and sums that do not depend on threads."""

import numpy as np
import pytest

import numbagrad as ng
from numbagrad.errors import DTypeError, ShapeError

WEIGHT = ng.asarray(np.arange(8, dtype=np.float32).reshape(4, 2))


@pytest.mark.parametrize("bad", [4, -1])
def test_an_index_out_of_range(bad):
    message = rf"embedding: indices\[0, 1\] is {bad}; a weight of shape \(4, 2\) has rows 0 to 3"
    with pytest.raises(IndexError, match=message):
        ng.embedding(WEIGHT, ng.asarray([[0, bad], [bad, 0]]))


def test_refuses():
    with pytest.raises(TypeError, match="embedding: indices is a list; ops take Arrays"):
        ng.embedding(WEIGHT, [1])
    with pytest.raises(DTypeError, match="indices must be integers, got float32"):
        ng.embedding(WEIGHT, ng.asarray([1.0]))
    with pytest.raises(ShapeError, match=r"weight must be \(rows, features\), got shape \(3,\)"):
        ng.embedding(ng.asarray([1.0, 2.0, 3.0]), ng.asarray([1]))
    with pytest.raises(DTypeError, match="needs float32 or float64, got int64"):
        ng.embedding(ng.asarray([[1]]), ng.asarray([0]))


def test_the_gradient_of_many_uses_is_exact_and_the_same_for_any_threads():
    rng = np.random.default_rng(0)
    indices = rng.integers(0, 50, 20_000)
    grad_out = rng.normal(size=(20_000, 24)).astype(np.float32)
    weight = ng.asarray(np.zeros((50, 24), np.float32))
    _, pullback = ng.vjp(lambda weight: ng.embedding(weight, ng.asarray(indices)), weight)
    most, results = ng.get_num_threads(), []
    try:
        for count in (1, most):
            ng.set_num_threads(count)
            results.append(pullback(ng.asarray(grad_out))[0].numpy())
    finally:
        ng.set_num_threads(most)
    np.testing.assert_array_equal(*results)
    expected = np.zeros((50, 24))
    np.add.at(expected, indices, grad_out.astype(np.float64))
    np.testing.assert_allclose(results[0], expected, rtol=1e-5, atol=1e-4)
