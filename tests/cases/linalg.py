"""Matrix products: every kind of operand, tails of the register tile, and batches."""

import numpy as np

import numbagrad as ng
from numbagrad.dispatch import apply, registry
from numbagrad.simd import TILE_ROWS
from numbagrad.testing import Case

rng = np.random.default_rng(3)


def normal(*shape):
    return rng.normal(size=shape)


SHAPES = [
    ((3, 4), (4, 5)),
    ((1, 1), (1, 1)),
    ((9, 3), (3, 17)),  # past the tile: 8 rows, 2 vectors
    ((4,), (4,)),
    ((4,), (4, 3)),
    ((3, 4), (4,)),
    ((2, 3, 4), (4, 5)),
    ((3, 4), (2, 4, 2)),
    ((2, 3, 4), (2, 4, 2)),
    ((2, 1, 2, 3), (2, 3, 2)),
    ((2, 3, 4), (4,)),
    ((4,), (2, 4, 3)),
    ((0, 4), (4, 3)),
    ((3, 0), (0, 2)),
    ((2, 3, 0), (0, 4)),
    ((0,), (0, 2)),
    ((0, 2, 3), (0, 3, 2)),
]


def turned(transpose_a, transpose_b, batch=(), m=3):
    a, b = normal(*batch, m, 4), normal(*batch, 4, 5)
    return Case(
        f"matmul, transposed {transpose_a} {transpose_b}, batch {batch}, {m} rows",
        lambda a, b: apply(
            registry["matmul"], a, b, transpose_a=transpose_a, transpose_b=transpose_b
        ),
        (a.swapaxes(-1, -2) if transpose_a else a, b.swapaxes(-1, -2) if transpose_b else b),
        lambda a, b: (
            (a.swapaxes(-1, -2) if transpose_a else a) @ (b.swapaxes(-1, -2) if transpose_b else b)
        ),
    )


CASES = [
    *[
        Case(f"matmul {a} {b}", ng.matmul, (normal(*a), normal(*b)), np.matmul, ops=("matmul",))
        for a, b in SHAPES
    ],
    turned(True, False),
    turned(False, True),
    turned(True, True),
    # Rows enough for three shards of whole tiles and a rest.
    *[turned(a, b, m=3 * TILE_ROWS + 1) for a in (False, True) for b in (False, True)],
    turned(True, True, (1,), m=2 * TILE_ROWS),
    turned(True, True, (2,)),
    turned(False, True, (2,)),
    Case("matmul, itself", lambda x: x @ x.T, (normal(3, 4),), lambda x: x @ x.T),
    Case(
        "linear",
        ng.linear,
        (normal(2, 3, 4), normal(4, 5), normal(5)),
        lambda x, weight, bias: x @ weight + bias,
    ),
    Case("linear, no bias", ng.linear, (normal(3, 4), normal(4, 2)), np.matmul),
]
