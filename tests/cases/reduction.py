"""Reductions: all of the axes, one, several that lie together or apart; ties, NaN, nothing."""

import numpy as np

import numbagrad as ng
from numbagrad.dispatch import apply, registry
from numbagrad.ops.pieces import LEAST_ELEMENTS
from numbagrad.testing import Case

rng = np.random.default_rng(2)


def normal(*shape):
    return rng.normal(size=shape)


X = normal(2, 3, 5)
TIES = np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 0.0]])
SPECIAL = np.array([[1.0, np.nan, 3.0, np.nan], [np.inf, 0.0, -np.inf, 2.0]])
INTEGERS = rng.integers(-9, 9, size=(3, 4))

# Each way to choose axes: the reduced ones lead, trail, lie in the middle, lie apart, are none.
AXES = [None, 0, 1, -1, (0, 1), (1, 2), (0, 2), (), (2, 0, 1)]


def reducing(name, axis, keepdims, x=X, grad=True):
    return Case(
        f"{name} of {x.shape} {x.dtype} over {axis}{', kept' if keepdims else ''}",
        lambda x: getattr(ng, name)(x, axis=axis, keepdims=keepdims),
        (x,),
        lambda x: getattr(np, name)(x, axis=axis, keepdims=keepdims),
        grad,
        ops=("max",) if name == "argmax" else (name,),
    )


SUMS = [
    *[reducing("sum", axis, keepdims=False) for axis in AXES],
    *[reducing("sum", axis, keepdims=True) for axis in (None, 1, (0, 2))],
    reducing("sum", None, False, normal()),
    reducing("sum", 0, False, normal(0, 3)),
    reducing("sum", 1, False, normal(2, 0)),
    reducing("sum", 1, False, normal(0, 3)),
    reducing("sum", 0, False, normal(3, 0)),
    reducing("sum", 1, False, normal(2, 0, 0)),
    reducing("sum", 0, False, normal(35)),
    reducing("sum", 0, False, normal(3, 17)),
    reducing("sum", 1, False, normal(2, 3, 67)),
    reducing("sum", 0, False, INTEGERS),
    reducing("sum", None, False, INTEGERS > 0),
    *[
        reducing("sum", 0, False, np.full((3, 2), 100, dtype))
        for dtype in ("int8", "uint8", "int16", "int32", "uint32")
    ],
    reducing("mean", None, False),
    reducing("mean", (0, 2), True),
    reducing("mean", 1, False),
    reducing("mean", -1, False, normal(2, 19)),
    reducing("mean", 1, False, normal(0, 3)),
    reducing("mean", 0, False, normal(LEAST_ELEMENTS, 2), grad=False),  # in two pieces on a GPU
]

EXTREMA = [
    *[reducing("max", axis, keepdims=False) for axis in AXES],
    *[reducing("min", axis, keepdims=True) for axis in (None, 1, (0, 2))],
    *[reducing("argmax", axis, False, grad=False) for axis in (None, 0, 1, -1)],
    reducing("argmax", 1, True, grad=False),
    *[
        reducing(name, axis, False, x, grad=False)
        for name in ("max", "min", "argmax")
        for x, axis in [(SPECIAL, 0), (SPECIAL, 1), (TIES, 1)]
    ],
    reducing("max", 1, False, INTEGERS),
    reducing("argmax", 0, False, INTEGERS),
    reducing("max", 1, False, normal(0, 3)),
    reducing("max", 0, False, normal(3, 0)),
    reducing("max", None, False, normal()),
]

INDEX = np.array([[1, 0, 2, 2, 0], [0, 1, 1, 2, 0]])


def _picked(x, index):
    return np.take_along_axis(x, index[:, None], axis=1)[:, 0]


def _placed(x, index):
    return np.where(np.arange(3)[:, None] == index[:, None], x[:, None], 0)


# What the gradient of a maximum is made of.
PLACES = [
    Case(
        "pick",
        lambda x, index: apply(registry["pick"], x, index, shape=(2, 3, 5), first=1, stop=2),
        (X, INDEX),
        _picked,
        ops=("pick", "place"),
    ),
    Case(
        "place",
        lambda x, index: apply(registry["place"], x, index, shape=(2, 3, 5), first=1, stop=2),
        (normal(2, 5), INDEX),
        _placed,
        ops=("place", "pick"),
    ),
]

CASES = SUMS + EXTREMA + PLACES
