"""Matrix products: every kind of operand, tails of the register tile, and batches."""

import numpy as np

import numbagrad as ng
from numbagrad.kernels_cpu import BLOCK_ROWS, BLOCK_STEPS, PACKED_ROWS
from numbagrad.ops.linalg import (
    FEW_ROWS,
    TURNED_COLUMNS,
    TURNED_ROWS,
    TURNED_STEPS,
    _matmul,
)
from numbagrad.ops.pieces import LEAST_STEPS
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


def turned(transpose_a, transpose_b, batch=(), m=3, k=4, n=5):
    a, b = normal(*batch, m, k), normal(*batch, k, n)
    return Case(
        f"matmul, transposed {transpose_a} {transpose_b}, batch {batch}, {m} x {k} x {n}",
        lambda a, b: _matmul(a, b, transpose_a, transpose_b),
        (a.swapaxes(-1, -2) if transpose_a else a, b.swapaxes(-1, -2) if transpose_b else b),
        lambda a, b: (
            (a.swapaxes(-1, -2) if transpose_a else a) @ (b.swapaxes(-1, -2) if transpose_b else b)
        ),
        ops=("matmul",),
    )


def linear(*x, width=5):
    return Case(
        f"linear {x}, {width} wide",
        ng.linear,
        (normal(*x), normal(x[-1], width), normal(width)),
        lambda x, weight, bias: x @ weight + bias,
    )


BOTH = (False, True)

CASES = [
    *[
        Case(f"matmul {a} {b}", ng.matmul, (normal(*a), normal(*b)), np.matmul, ops=("matmul",))
        for a, b in SHAPES
    ],
    turned(True, False),
    turned(False, True),
    turned(True, True),
    # Rows enough for three shards of whole tiles and a rest.
    *[turned(a, b, m=3 * TILE_ROWS + 1) for a in BOTH for b in BOTH],
    turned(True, True, (1,), m=2 * TILE_ROWS),
    turned(True, True, (2,)),
    turned(False, True, (2,)),
    turned(False, False, m=2, k=2 * LEAST_STEPS, n=2),  # in two pieces on a GPU
    Case("matmul, itself", lambda x: x @ x.T, (normal(3, 4),), lambda x: x @ x.T),
    *[linear(*x) for x in [(4,), (3, 4), (2, 3, 4), (0, 4), (3, 0)]],
    Case("linear, no bias", ng.linear, (normal(3, 4), normal(4, 2)), np.matmul),
]

# Cases for the CPU alone: too large for the simulator.
CPU_CASES = [
    # Past one strip of b and past two, with all columns or a rest; b as it lies, and packed.
    *[turned(False, False, m=m, n=n) for m in (5, PACKED_ROWS) for n in (16, 33, 48, 64, 70, 146)],
    *[turned(a, b, m=PACKED_ROWS, n=70) for a, b in [(True, False), (False, True), (True, True)]],
    *[turned(a, b, m=m, n=33) for m in (1, FEW_ROWS) for a in BOTH for b in BOTH],
    *[turned(a, b, (2,), m=FEW_ROWS, n=33) for a in BOTH for b in BOTH],
    # A transposed a that is turned.
    *[turned(True, b, m=m, n=TURNED_COLUMNS + 1) for m in (5, BLOCK_ROWS + 1) for b in BOTH],
    turned(True, False, m=5, n=TURNED_COLUMNS, k=BLOCK_STEPS + 1),
    turned(True, False, m=TURNED_ROWS, n=TURNED_COLUMNS // 3, k=TURNED_STEPS),
    # Past a block of a.
    *[turned(a, b, m=m, k=BLOCK_STEPS + 1) for m in (3, PACKED_ROWS) for a in BOTH for b in BOTH],
    *[turned(a, False, m=BLOCK_ROWS + 1) for a in BOTH],
    *[turned(a, b, (3,), m=PACKED_ROWS, n=17) for a in BOTH for b in BOTH],
    linear(3, 5, width=50),
    linear(2, PACKED_ROWS, 3, width=33),
    linear(PACKED_ROWS, BLOCK_STEPS + 1),
]
