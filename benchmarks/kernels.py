"""How long each of our kernels takes, and how much it computes and moves."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from numbagrad import Array, dispatch

from .measure import INPUT_SETS, Run

CALLS = 7
# Ops whose arithmetic can be the limit. Of the others only the bytes count: the work for an
# exponential is a matter of taste, and the costs in `ops/` weigh it by time.
ARITHMETIC = ("matmul", "conv2d")


@dataclass(frozen=True)
class Kernel:
    """One op on given shapes, as it ran within some case.

    Attributes
    ----------
    op, shapes
        Its name and the shapes of its inputs and outputs.
    flops
        Two for each multiply-add, from the op's ``cost``; 0 for those limited by memory.
    moved
        Bytes of inputs and outputs.
    seconds
        Median of a call in eager mode, dispatch and allocation included.
    """

    op: str
    shapes: str
    flops: float
    moved: float
    seconds: float

    def to_json(self) -> dict:
        """Return a plain dict."""
        return asdict(self)


def observe(run: Run) -> list[Kernel]:
    """Run one of our contenders some more and return its kernels."""
    seconds: dict[tuple, list[float]] = {}
    costs: dict[tuple, tuple[float, float]] = {}

    def timed(op, inputs, params, targets):
        started = time.perf_counter()
        outputs = dispatch.run_eagerly(op, inputs, params, targets)
        taken = time.perf_counter() - started
        if op.kernel is not None:
            key = op.name, f"{_shapes(inputs)} -> {_shapes(outputs)}"
            seconds.setdefault(key, []).append(taken)
            if key not in costs:
                costs[key] = _cost(op, dispatch.plan_for(op, inputs, params).call)
        return outputs

    with dispatch.interpreter(timed):
        for k in range(CALLS):
            run(k % INPUT_SETS)
    return [Kernel(*key, *costs[key], statistics.median(each)) for key, each in seconds.items()]


def _shapes(arrays: Iterable[Array]) -> str:
    return " ".join("x".join(map(str, x.shape)) or "()" for x in arrays)


def _cost(op: dispatch.Op, call: dispatch.Call) -> tuple[float, float]:
    """Return (FLOPs, bytes)."""
    moved = sum(spec.size * spec.dtype.itemsize for spec in (*call.inputs, *call.outputs))
    flops = 0.0
    if op.name.startswith(ARITHMETIC) and op.cost is not None:
        flops = float(op.cost(call)[0])
    return flops, float(moved)
