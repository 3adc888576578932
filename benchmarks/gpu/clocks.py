"""Clocks for work that is queued: the function that asks for it returns before it is done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

import numbagrad as ng

from ..measure import Contender, Run

SLACK = 3e-3  # seconds that waiting for the GPU may take beyond its work


def synchronize() -> None:
    """Wait until all libraries' work on the GPU is done."""
    ng.device.backend("cuda").synchronize()
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # the whole device: CuPy's work too


def events(contender: Contender, run: Run, ks: Sequence[int]) -> tuple[float, Any]:
    """Take the time between two CUDA events on the contender's stream, around the work.

    Raises
    ------
    RuntimeError
        If the work was not done between the events: then it is on another stream.
    """
    address = contender.stream()
    stream = torch.cuda.ExternalStream(address) if address else torch.cuda.default_stream()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    synchronize()
    started = time.perf_counter()
    start.record(stream)
    for k in ks:
        result = run(k)
    end.record(stream)
    synchronize()
    waited = time.perf_counter() - started
    seconds = start.elapsed_time(end) / 1e3
    if seconds <= 0 or waited > 1.5 * seconds + SLACK:
        raise RuntimeError(
            f"events on stream {address:#x} are {seconds * 1e3:.3f} ms apart, but the work took "
            f"{waited * 1e3:.3f} ms"
        )
    return seconds, result


def host(contender: Contender, run: Run, ks: Sequence[int]) -> tuple[float, Any]:
    """Take the time that the host needs to ask for the work; the GPU may lag behind."""
    synchronize()
    started = time.perf_counter()
    for k in ks:
        result = run(k)
    seconds = time.perf_counter() - started
    synchronize()
    return seconds, result
