"""How fast the machine can be at most, and so how far a kernel is from that.

A kernel can be no faster than its arithmetic at the processor's peak, and no faster than its bytes
at the speed of the memory that holds them. Two loops of our own measure both: multiply-adds on
vectors in registers, and a copy of several amounts of memory, since what fits a cache moves faster
than what does not.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numba import config, prange

from . import simd
from .jit import njit

PRODUCTS = ("matmul", "conv2d", "depthwise", "planar", "winograd")  # ops of multiply-adds
COPIED = (1 << 16, 1 << 20, 1 << 24, 1 << 27)  # bytes read and written by the copies
CHAINS = 12  # independent multiply-adds: more than latency times units of any processor
ROUNDS = 200_000  # of multiply-adds: some milliseconds
AT_ONCE = 1 << 25  # bytes between two looks at the clock
TIMES = 6
LONG = 0.06  # seconds


@dataclass(frozen=True)
class Roof:
    """What a machine does at most.

    Attributes
    ----------
    peak
        Floating-point operations a second.
    bandwidth
        Bytes a second, by how many bytes are read and written again and again.
    """

    peak: float
    bandwidth: dict[int, float]

    def speed(self, nbytes: float) -> float:
        """Return how many bytes a second move where so many are in use.

        It is the speed of the next larger amount that was measured.
        """
        fitting = [size for size in self.bandwidth if size >= nbytes]
        return self.bandwidth[min(fitting, default=max(self.bandwidth))]

    def seconds(self, flops: float, moved: float) -> float:
        """Return the least time for so many operations on so many bytes, each moved once.

        Examples
        --------
        >>> roof = Roof(100.0, {10: 50.0, 1000: 5.0})
        >>> roof.seconds(200.0, 10.0), roof.seconds(0.0, 100.0)
        (2.0, 20.0)
        """
        return max(flops / self.peak, moved / self.speed(moved))


def work(op: Any, call: Any) -> tuple[float, float]:
    """Return a call's floating-point operations, and bytes of its inputs and outputs.

    Two operations for each multiply-add of matrix products and convolutions; one for each element
    of an elementwise op's result, whatever its formula; none for other ops, which memory limits.
    (The costs in `ops/` weigh by time what these count.)

    Parameters
    ----------
    op, call
        A `dispatch.Op` and a `dispatch.Call` of it.
    """
    specs = *call.inputs, *call.outputs
    moved = sum(spec.size * spec.dtype.itemsize for spec in specs)
    if op.name.startswith(PRODUCTS) and op.cost is not None:
        return float(op.cost(call)[0]), float(moved)
    return float(call.outputs[0].size if op.formula is not None else 0), float(moved)


# ------------------------------------------------------------------ measuring


@functools.cache
def roof(threads: int) -> Roof:
    """Return what so many threads do at most; measured once, in a fraction of a second."""
    return measure(threads)


def measure(threads: int) -> Roof:
    """Measure what so many threads do at most, by the fastest of several runs.

    With the JIT off nothing is as fast as the machine, and there is no roof.
    """
    if config.DISABLE_JIT:
        return Roof(math.inf, {0: math.inf})
    before = numba.get_num_threads()
    numba.set_num_threads(threads)
    try:
        return Roof(_peak(threads), {size: _bandwidth(size, threads) for size in COPIED})
    finally:
        numba.set_num_threads(before)


def _best(run: Callable[[], None]) -> float:
    """Return the seconds of the fastest of at least some runs, and of more if they are short."""
    run()
    seconds = []
    while len(seconds) < TIMES or sum(seconds) < LONG:
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


@njit
def multiply_adds(x, rounds, out):
    """Do ``rounds`` multiply-adds in each of twelve chains, whose values stay near 2."""
    n = simd.lanes(x)
    half, one = simd.load(x, 0), simd.load(x, n)
    a = b = c = d = e = f = one
    g = h = i = j = k = m = half
    for _ in range(rounds):
        a, b, c = simd.fma(a, half, one), simd.fma(b, half, one), simd.fma(c, half, one)
        d, e, f = simd.fma(d, half, one), simd.fma(e, half, one), simd.fma(f, half, one)
        g, h, i = simd.fma(g, half, one), simd.fma(h, half, one), simd.fma(i, half, one)
        j, k, m = simd.fma(j, half, one), simd.fma(k, half, one), simd.fma(m, half, one)
    simd.store(out, 0, a + b + c + d + e + f + g + h + i + j + k + m)


@njit(parallel=True)
def multiply_adds_everywhere(x, rounds, out):
    """Run `multiply_adds` on each thread; ``out`` has a row for each."""
    for thread in prange(len(out)):
        multiply_adds(x, rounds, out[thread])


def _peak(threads: int) -> float:
    lanes = simd.VECTOR_BYTES // 4
    x = np.repeat(np.float32([0.5, 1.0]), lanes)
    out = np.empty((threads, lanes), np.float32)
    seconds = _best(lambda: multiply_adds_everywhere(x, ROUNDS, out))
    return 2.0 * CHAINS * lanes * ROUNDS * threads / seconds


@njit
def copy(x, out):
    """out[i] = x[i]"""
    for i in range(0, x.size, simd.lanes(x)):
        n = x.size - i
        simd.store(out, i, simd.load(x, i, n), n)


@njit(parallel=True)
def copy_everywhere(x, rounds, out):
    """Let each thread copy its row, again and again."""
    for thread in prange(len(out)):
        for _ in range(rounds):
            copy(x[thread], out[thread])


def _bandwidth(moved: int, threads: int) -> float:
    x = np.ones((threads, moved // 8 // threads), np.float32)
    out = np.zeros_like(x)
    rounds = max(1, AT_ONCE // moved)
    seconds = _best(lambda: copy_everywhere(x, rounds, out))
    return 2.0 * x.nbytes * rounds / seconds


__all__ = ["Roof", "measure", "roof", "work"]
