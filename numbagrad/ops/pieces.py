"""Into how many pieces a GPU cuts a long sum, each for a block of threads of its own."""

from __future__ import annotations

import numpy as np

MULTIPROCESSORS = 132  # of an H100; fewer blocks of threads leave some idle
WARP = 32  # threads: outputs that a block of a sum owns at most
PIECE = 4096  # elements that a block adds up, at least, for cutting a sum to pay


def pieces_of_sum(outer: int, reduce: int, inner: int) -> int:
    """Return into how many pieces a GPU best cuts a sum over the middle axis.

    Few outputs with long sums get so many that each multiprocessor has eight blocks of threads: as
    many as it holds, and as it takes to keep its memory busy. It depends on shapes alone, and
    pieces are added in a fixed order: results are the same every time.
    """
    blocks = max(outer * -(-inner // WARP), 1)
    return max(1, min(8 * MULTIPROCESSORS // blocks, reduce * min(inner, WARP) // PIECE))


def room_for_pieces(size: int, pieces: int, dtype: np.dtype):
    """Room for an output of so many elements from each piece, if there are several."""
    return [((pieces * size if pieces > 1 else 0,), dtype)]
