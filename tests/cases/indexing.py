"""Reading ``x[key]``, and assigning to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import numbagrad as ng
from numbagrad.testing import Case

rng = np.random.default_rng(4)


def array(*shape: int) -> np.ndarray:
    return rng.normal(size=shape)


def read(name: str, key: Any, x: np.ndarray, ops: tuple[str, ...] = ()) -> Case:
    return Case(f"x[{name}]", lambda x: x[key], (x,), lambda x: x[key], ops=ops)


def replaced(copy: Callable, key: Any) -> Callable:
    def function(x, value):
        x = copy(x)
        x[key] = value
        return x

    return function


def write(name: str, key: Any, x: np.ndarray, value: np.ndarray, ops: tuple[str, ...] = ()) -> Case:
    return Case(
        f"x[{name}] = v", replaced(ng.copy, key), (x, value), replaced(np.copy, key), ops=ops
    )


ALL = slice(None)
I, J = np.array([1, -2, 1]), np.array([[0], [-1]])
MASK = np.array([[True, False, True], [False, True, False]])


def before_and_after(x):
    """Assign between two uses: each must have the gradient of the value it saw."""
    y = x * 2
    before = y * y
    y[1:] = before[:-1]
    return before + y * y * y


def before_and_after_reference(x):
    before = 4 * x * x
    after = np.concatenate([2 * x[:1], before[:-1]])
    return before + after**3


CASES = [
    read("1", 1, array(2, 3), ops=("rows",)),
    read("1, -1", (1, -1), array(2, 3), ops=("slice", "set_slice")),
    read("...", ..., array()),
    read("1:3", slice(1, 3), array(4, 2), ops=("rows",)),
    read("::-2, None, 1:", (slice(None, None, -2), None, slice(1, None)), array(4, 3)),
    read("..., 0, 2:0:-1", (..., 0, slice(2, 0, -1)), array(2, 2, 3)),
    read("2:1", slice(2, 1), array(3, 2)),
    read("i", I, array(3, 2), ops=("take", "take_backward")),
    read(":, i", (ALL, I), array(2, 3, 2), ops=("take", "take_backward")),
    read("i, j", (I, J), array(3, 2, 2), ops=("ravel_index",)),
    read("i, :, j", (I, ALL, J), array(3, 2, 2)),
    read("1, ::2, i", (1, slice(None, None, 2), I), array(2, 3, 2)),
    read("[]", np.zeros(0, np.int64), array(3, 2)),
    read("mask", MASK, array(2, 3, 2)),
    read("mask, 0", (MASK, 0), array(2, 3, 2)),
    Case(
        "x[i] of integers",
        lambda x, i: x[i],
        (np.arange(6).reshape(3, 2), I.astype(np.int8)),
        lambda x, i: x[i],
        grad=False,
    ),
    Case(
        "take",
        lambda x, i: ng.take(x, i, axis=1),
        (array(2, 3, 2), np.array([[2, -1], [0, 2]])),
        lambda x, i: np.take(x, i, axis=1),
        ops=("take", "take_backward"),
    ),
    Case("iteration", lambda x: sum(x, start=0.0), (array(3, 2),), lambda x: x.sum(0)),
    write("0", 0, array(2, 3), array(3), ops=("set_slice",)),
    write("..., ::-2 ", (..., slice(None, None, -2)), array(2, 3), array(1, 1, 2)),
    write("1:, None, 2", (slice(1, None), None, 2), array(3, 3), array()),
    write("...", ..., array(2, 2), array(2)),
    write("...", ..., array(), array()),
    write("i", I, array(3, 2), array(3, 2), ops=("last_writer",)),
    write("1:, i", (slice(1, None), I), array(3, 3), array(3)),
    write("i, :, j", (I, ALL, J), array(3, 2, 2), array(2, 3, 2)),
    write("[]", np.zeros(0, np.int64), array(3, 2), array(2)),
    write("mask", MASK, array(2, 3), array()),
    write("mask", MASK, array(2, 3, 2), array(3, 2)),
    Case("before and after", before_and_after, (array(4),), before_and_after_reference),
]
