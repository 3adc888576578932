"""How long each of our kernels takes, and how much it computes and moves."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from numbagrad import Array, dispatch
from numbagrad.roofline import work

from .measure import INPUT_SETS, Run

CALLS = 7


@dataclass(frozen=True)
class Kernel:
    """One op on given shapes, as it ran within some case.

    Attributes
    ----------
    op, shapes
        Its name and the shapes of its inputs and outputs.
    flops, moved
        Operations, and bytes of inputs and outputs: see `numbagrad.roofline.work`.
    seconds
        Median of a call in eager mode, dispatch and allocation included.
    calls
        How often the case's run does it.
    """

    op: str
    shapes: str
    flops: float
    moved: float
    seconds: float
    calls: int

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
                costs[key] = work(op, dispatch.plan_for(op, inputs, params).call)
        return outputs

    with dispatch.interpreter(timed):
        for k in range(CALLS):
            run(k % INPUT_SETS)
    return [
        Kernel(*key, *costs[key], statistics.median(each), len(each) // CALLS)
        for key, each in seconds.items()
    ]


def _shapes(arrays: Iterable[Array]) -> str:
    return " ".join("x".join(map(str, x.shape)) or "()" for x in arrays)
