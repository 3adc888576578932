"""Batch normalisation: outputs, gradients, and the running statistics."""

from __future__ import annotations

import numpy as np

import numbagrad as ng
from numbagrad import device
from numbagrad.array import State
from numbagrad.testing import Case

rng = np.random.default_rng(13)

MEAN, VAR = np.array([1, -2, 0]), np.array([2, 1, 4])


def states(like: ng.Array) -> tuple[State, State]:
    """Return running statistics for the channels of an array."""
    channels = like.shape[-1:]
    return tuple(
        State(
            device.backend(like.device).from_host(np.resize(value, channels).astype(like.dtype)),
            like.spec._replace(shape=channels),
        )
        for value in (MEAN, VAR)
    )


def batch_norm(training: bool, **options):
    def function(x, weight, bias):
        return ng.batch_norm(x, weight, bias, *states(x), training=training, **options)

    return function


def running(which: int, momentum: float):
    def function(x, weight, bias):
        pair = states(x)
        ng.batch_norm(x, weight, bias, *pair, training=True, momentum=momentum)
        return pair[which]

    return function


def reference(x, weight, bias, training, eps=1e-5):
    rows, channels = tuple(range(x.ndim - 1)), x.shape[-1]
    mean, var = np.resize(MEAN, channels), np.resize(VAR, channels)
    if training:
        mean, var = x.mean(rows), x.var(rows)
    return (x - mean) / np.sqrt(var + eps) * weight + bias


def running_reference(x, which, momentum):
    rows = tuple(range(x.ndim - 1))
    batch = (x.mean(rows), x.var(rows, ddof=1))[which]
    return (1 - momentum) * (MEAN, VAR)[which] + momentum * batch


def arrays(*shape: int) -> tuple[np.ndarray, ...]:
    channels = shape[-1]
    return (
        rng.normal(size=shape) * 2 + 1,
        rng.normal(size=channels) + 1,
        rng.normal(size=channels),
    )


STATISTICS = ("batch_norm_moments", "batch_norm_statistics", "batch_norm_update")
GRADIENTS = ("batch_norm_backward_sums", "batch_norm_backward_input")

CASES = [
    *[
        Case(
            f"batch_norm {shape} in training, eps={eps}",
            batch_norm(True, eps=eps),
            arrays(*shape),
            lambda *inputs, eps=eps: reference(*inputs, True, eps),
            ops=("batch_norm", *STATISTICS, *GRADIENTS),
        )
        for shape, eps in [((5, 3), 1e-5), ((2, 2, 2, 3), 0.1), ((3, 37), 1e-3)]
    ],
    Case(
        "batch_norm in evaluation",
        batch_norm(False),
        arrays(2, 2, 3),
        lambda *inputs: reference(*inputs, False),
    ),
    Case("batch_norm of nothing in evaluation", batch_norm(False), arrays(0, 3)),
    *[
        Case(
            f"running {name}",
            running(which, 0.25),
            arrays(4, 3),
            lambda x, weight, bias, which=which: running_reference(x, which, 0.25),
            grad=False,
        )
        for which, name in enumerate(("mean", "variance"))
    ],
]
