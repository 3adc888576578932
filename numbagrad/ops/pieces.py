"""Into how many pieces a GPU cuts sums.

Few outputs with long sums would keep few blocks of threads busy. So several blocks share a sum,
each has a piece of it, and the pieces are then added in order. How many there are depends on
shapes alone: results are the same every time.
"""

from __future__ import annotations

import numpy as np

MULTIPROCESSORS = 132  # of an H100; fewer blocks of threads leave some idle

TILE = 64  # rows and columns of the smaller of a product's tiles
LEAST_STEPS = 256  # of a product's sum, at least, for cutting it to pay

BLOCKS_EACH = 8  # of 256 threads that a multiprocessor runs at a time
STRIP = 32  # neighbouring outputs of a block that adds up
LEAST_ELEMENTS = 4096  # for which such a block is worth its place


def of_products(rows: int, columns: int, steps: int, count: int = 1) -> int:
    """Return into how many pieces the sums of `count` products of matrices fall."""
    blocks = max(-(-rows // TILE) * -(-columns // TILE) * count, 1)
    return max(1, min(MULTIPROCESSORS // blocks, steps // LEAST_STEPS))


def of_sums(outer: int, reduce: int, inner: int) -> int:
    """Return into how many pieces the sums over the middle of (outer, reduce, inner) fall."""
    blocks = max(outer * -(-inner // STRIP), 1)
    elements = reduce * min(inner, STRIP)
    return max(1, min(MULTIPROCESSORS * BLOCKS_EACH // blocks, elements // LEAST_ELEMENTS))


def room(size: int, pieces: int, dtype: np.dtype) -> list[tuple]:
    """Return the workspace for so many outputs of each piece, if there are several."""
    return [((pieces * size if pieces > 1 else 0,), dtype)]
