"""The machine: what it is, and how fast it can be at most, by two loops of our own.

The peak is that of multiply-adds on vectors in registers; the bandwidth that of a copy, for
several amounts of memory, since what fits a cache moves faster than what does not.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import llvmlite.binding
import numba
import numpy as np
from numba import prange

from numbagrad import simd
from numbagrad.jit import njit

PACKAGES = ("numbagrad", "numba", "llvmlite", "numpy", "torch", "jax", "jaxlib")
COPIED = (1 << 16, 1 << 20, 1 << 24, 1 << 28)  # bytes read and written by the copies
CHAINS = 12  # independent multiply-adds: more than latency times units of any processor
TIMES = 25


def describe() -> dict:
    """Return what a reader of the results should know about this machine."""
    return {
        "name": name(),
        "cpu": _cpu(),
        "architecture": llvmlite.binding.get_host_cpu_name(),
        "vector_bytes": simd.VECTOR_BYTES,
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {package: metadata.version(package) for package in PACKAGES},
    }


def name() -> str:
    """Return a short name that suits a file."""
    words = f"{llvmlite.binding.get_host_cpu_name()} {cores()} cores"
    return re.sub("[^a-z0-9]+", "-", words.lower()).strip("-")


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


# ------------------------------------------------------------------ the roof


def roof() -> dict:
    """Measure peak (FLOP/s) and bandwidth (bytes/s by bytes moved) on all of Numba's threads."""
    threads = numba.config.NUMBA_NUM_THREADS
    return {"peak": _peak(threads), "bandwidth": {str(n): _bandwidth(n, threads) for n in COPIED}}


def _best(run: Callable[[], None]) -> float:
    run()
    seconds = []
    for _ in range(TIMES):
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
    rounds = 2_000_000
    seconds = _best(lambda: multiply_adds_everywhere(x, rounds, out))
    return 2.0 * CHAINS * lanes * rounds * threads / seconds


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
    rounds = max(1, (1 << 28) // moved)
    seconds = _best(lambda: copy_everywhere(x, rounds, out))
    return 2.0 * x.nbytes * rounds / seconds
