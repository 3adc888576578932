"""Softmax and losses."""

from __future__ import annotations

import numpy as np

import numbagrad as ng
from numbagrad.testing import Case

rng = np.random.default_rng(3)


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return -np.log(np.take_along_axis(softmax(logits), labels[..., None], -1)[..., 0])


def along(axis: int, shape: tuple[int, ...]) -> list[Case]:
    x = rng.normal(size=shape) * 3
    return [
        Case(
            f"softmax {shape} along {axis}",
            lambda x: ng.softmax(x, axis),
            (x,),
            lambda x: softmax(x, axis) if x.size else x,
            ops=("softmax", "softmax_backward"),
        ),
        Case(
            f"log_softmax {shape} along {axis}",
            lambda x: ng.log_softmax(x, axis),
            (x,),
            lambda x: np.log(softmax(x, axis)) if x.size else x,
            ops=("log_softmax", "log_softmax_backward"),
        ),
    ]


def entropy(shape: tuple[int, ...], reduction: str, dtype: str = "int64") -> Case:
    labels = rng.integers(0, shape[-1], shape[:-1]).astype(dtype)
    reduce = {"mean": np.mean, "sum": np.sum, "none": np.asarray}[reduction]
    return Case(
        f"softmax_cross_entropy {shape}, {dtype}, {reduction}",
        lambda x, labels: ng.softmax_cross_entropy(x, labels, reduction=reduction),
        (rng.normal(size=shape) * 2, labels),
        lambda x, labels: reduce(cross_entropy(x, labels)),
        ops=("softmax_cross_entropy", "softmax_cross_entropy_backward"),
    )


def smoothed(shape: tuple[int, ...], smoothing: float, reduction: str = "mean") -> Case:
    labels = rng.integers(0, shape[-1], shape[:-1])
    reduce = {"mean": np.mean, "none": np.asarray}[reduction]
    return Case(
        f"softmax_cross_entropy {shape} smoothed by {smoothing}, {reduction}",
        lambda x, labels: ng.softmax_cross_entropy(
            x, labels, reduction=reduction, label_smoothing=smoothing
        ),
        (rng.normal(size=shape) * 2, labels),
        lambda x, labels: reduce(
            (1 - smoothing) * cross_entropy(x, labels) - smoothing * np.log(softmax(x)).mean(-1)
        ),
    )


def mse(shape: tuple[int, ...], reduction: str) -> Case:
    reduce = {"mean": np.mean, "sum": np.sum, "none": np.asarray}[reduction]
    return Case(
        f"mse_loss {shape}, {reduction}",
        lambda x, y: ng.mse_loss(x, y, reduction=reduction),
        (rng.normal(size=shape), rng.normal(size=shape)),
        lambda x, y: reduce((x - y) ** 2),
    )


CASES = [
    *along(-1, (3, 5)),
    *along(0, (4, 3)),
    *along(1, (2, 3, 5)),
    *along(-1, (2, 21)),
    *along(-1, (2, 67)),
    *along(-1, (0, 3)),
    *along(1, (2, 0)),
    Case(
        "softmax of large numbers",
        ng.softmax,
        (np.array([[1e4, 1e4 - 1, -1e4]]),),
        softmax,
        grad=False,  # finite differences of numbers so large have no digits
    ),
    entropy((5, 3), "mean"),
    entropy((2, 2, 4), "none", "uint8"),
    entropy((3, 18), "sum", "int32"),
    entropy((0, 4), "sum"),
    Case(
        "softmax_cross_entropy of one vector",
        lambda x, label: ng.softmax_cross_entropy(x, label),
        (rng.normal(size=3), np.array(2)),
        cross_entropy,
    ),
    smoothed((3, 4), 0.2),
    smoothed((2, 2, 3), 1.0, "none"),
    mse((3, 2), "mean"),
    mse((3,), "sum"),
    mse((2, 2), "none"),
]
