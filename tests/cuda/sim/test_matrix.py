"""Matrix products on the simulator: tiles, edges, transposes, alignment, pieces of the sum."""

import itertools

import numpy as np
import pytest

from numbagrad import cuda_support as cs
from numbagrad import kernels_cuda as kernels
from numbagrad.kernels_cuda import LARGE, NARROW, SMALL

memory = cs.memory()

rng = np.random.default_rng(5)
TRANSPOSED = list(itertools.product((False, True), repeat=2))


def product(m, n, k, transposed=(False, False), batch=1, bias=False, pieces=1, shift=0):
    """Return a product by the kernel, from operands `shift` elements off 16 bytes, and by NumPy.

    With a bias, relu follows.
    """
    a = rng.normal(size=(batch, m, k)).astype(np.float32)
    b = rng.normal(size=(batch, k, n)).astype(np.float32)
    shift_of_out = rng.normal(size=n if bias else 0).astype(np.float32)
    flat = [(x.swapaxes(1, 2) if turned else x).ravel() for x, turned in zip((a, b), transposed)]
    on_gpu = [memory.from_host(np.append(np.full(shift, np.nan, x.dtype), x))[shift:] for x in flat]
    size = batch * m * n
    out = memory.empty(size + shift, np.float32)[shift:]
    parts = memory.empty(pieces * size if pieces > 1 else 0, np.float32)
    width_a = m if transposed[0] else k
    arguments = *transposed, bias, n, k, width_a, 0, m, 0, n
    kernels.matmul_forward(*on_gpu, memory.from_host(shift_of_out), *arguments, out, parts, 0)
    expected = a.astype(np.float64) @ b
    if bias:
        expected = np.maximum(expected + shift_of_out, 0)
    return memory.to_host(out), expected.ravel()


@pytest.mark.parametrize("transposed", TRANSPOSED)
@pytest.mark.parametrize("tile", [LARGE, SMALL, NARROW], ids=["large", "small", "narrow"])
@pytest.mark.parametrize("edge", [0, 1], ids=["whole tiles", "past the edge"])
def test_tiles(tile, transposed, edge):
    m, n = tile.rows + edge, tile.columns + (edge if tile is not NARROW else -edge)
    if tile is LARGE:
        m += tile.rows  # enough of them for all multiprocessors
    chosen = kernels._tile_for(m, n, 1, np.dtype(np.float32))
    assert chosen == tile
    result, expected = product(m, n, 2 * tile.depth + edge, transposed, bias=True)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transposed", TRANSPOSED)
def test_unaligned_operands(transposed):
    result, expected = product(8, 8, 8, transposed, shift=1)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pieces", [2, 3, 5])
def test_pieces_of_the_sum(pieces):
    for batch in (1, 2):
        result, expected = product(5, 6, 17, batch=batch, bias=True, pieces=pieces)
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(
            *(product(5, 6, 0, batch=batch, bias=False, pieces=pieces)),
        )


def test_float64_has_no_large_tiles():
    for dtype, tile in ((np.float32, LARGE), (np.float64, SMALL)):
        assert kernels._tile_for(4096, 4096, 1, np.dtype(dtype)) == tile
