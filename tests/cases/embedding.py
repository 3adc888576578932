"""Rows looked up by number, and the gradient that adds up their uses."""

from __future__ import annotations

import numpy as np

import numbagrad as ng
from numbagrad.testing import Case

rng = np.random.default_rng(11)


def lookup(rows: int, features: int, indices: np.ndarray) -> Case:
    return Case(
        f"embedding ({rows}, {features}) by {indices.dtype} {indices.shape}",
        ng.embedding,
        (rng.normal(size=(rows, features)), indices),
        lambda weight, indices: weight[indices],
        ops=("embedding", "embedding_backward"),
    )


CASES = [
    lookup(5, 3, np.array([4, 1, 1, 0, 4, 1])),
    lookup(3, 18, np.array([[2, 0], [2, 2]], np.int32)),
    lookup(4, 1, np.array(3, np.uint8)),
    lookup(2, 3, np.zeros((0, 2), np.int64)),
    lookup(2, 0, np.array([1])),
]
