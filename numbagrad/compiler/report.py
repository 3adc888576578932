"""What a compiled step spends its time and memory on."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from .compiled import Executable
from .graph import Combine, Node


@dataclass(frozen=True)
class Line:
    """One region of a compiled step.

    Attributes
    ----------
    function
        Its name in the source.
    does
        The ops that it runs.
    shards, chunk
        Into how many pieces its axis is cut for threads, and how many rows of it are walked at a
        time; 0 for what runs in one piece.
    seconds
        The median of the last calls.
    flops, moved
        Floating-point operations, and bytes that its kernels read and write at least.
    scratch
        Bytes of memory for values that live in it alone, for each thread.
    """

    function: str
    does: str
    shards: int
    chunk: int
    seconds: float
    flops: float
    moved: float
    scratch: int


@dataclass(frozen=True)
class StepReport:
    """What `CompiledFunction.report` returns; print it for a table.

    Attributes
    ----------
    lines
        One for each region, in the order in which they run.
    planned, unplanned
        Bytes of the values that pass between regions, with memory used again as soon as the last
        reader is done, and without.
    """

    name: str
    lines: tuple[Line, ...]
    planned: int
    unplanned: int

    def __str__(self) -> str:
        total = sum(line.seconds for line in self.lines) or 1.0
        rows = [("", "time", "share", "GFLOP/s", "GB/s", "pieces", "scratch", "what")]
        for line in self.lines:
            pieces = f"{line.shards} x {line.chunk}" if line.chunk else "1"
            rows.append((
                line.function, f"{line.seconds * 1e6:,.0f} us", f"{line.seconds / total:.0%}",
                f"{line.flops / line.seconds / 1e9:.1f}", f"{line.moved / line.seconds / 1e9:.1f}",
                pieces, f"{line.scratch / 1024:,.0f} KB", line.does,
            ))  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if k in (0, len(row) - 1) else cell.rjust(width)
                for k, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        lines.append(
            f"{self.name}: {total * 1e3:,.2f} ms in regions; values between them take "
            f"{self.planned / 1024:,.0f} KB, without planning {self.unplanned / 1024:,.0f} KB"
        )
        return "\n".join(lines)


def report(executable: Executable) -> StepReport:
    """Return what a compiled step's last calls took."""
    plan = executable.plan
    lines = []
    timed = zip(executable.source.functions, plan.regions, executable.seconds, strict=True)
    for function, region, seconds in timed:
        costs = [_cost(node) for node in region.nodes]
        lines.append(
            Line(
                function,
                ", ".join(dict.fromkeys(node.name for node in region.nodes)),
                region.shards,
                region.chunk,
                (median(seconds) if seconds else 0) or 1e-9,
                sum(flops for flops, _ in costs),
                sum(moved for _, moved in costs),
                region.scratch_bytes,
            )
        )
    return StepReport(plan.name, tuple(lines), plan.arena_bytes, plan.unplanned_bytes)


def _cost(node) -> tuple[float, float]:
    """Return a node's floating-point operations and the bytes that it moves at least."""
    if isinstance(node, Node):
        return node.cost
    if isinstance(node, Combine):
        return 0.0, node.parts.nbytes + node.out.nbytes
    arrays = [*(ref.buffer for ref in node.inputs), *node.outputs]
    return 0.0, sum(buffer.nbytes for buffer in arrays)


__all__ = ["Line", "StepReport", "report"]
