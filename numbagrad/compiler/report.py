"""What a compiled step spends its time and memory on."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from statistics import median

from .. import roofline
from ..array import size_of
from .compiled import Executable
from .compiled_cuda import CUDAExecutable
from .fuse import Fused
from .graph import Buffer, Combine, Region, is_local

WIDTH = 150  # of a table's lines


@dataclass(frozen=True)
class Line:
    """One region of a compiled step; on a GPU, one launch.

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
        The median of the last calls; on a GPU None, for its clock is not read.
    flops, moved
        Floating-point operations, and bytes that its kernels read and write at least: see
        `numbagrad.roofline.work`.
    scratch
        Bytes of memory for values that live in it alone, for each thread; on a GPU, its workspace.
    is_settled
        Whether it runs only when weights are others than at the last call.
    least
        The least seconds that the machine needs, with as many threads: for the operations at its
        peak; for what the region reads and writes of others, and for all that its kernels move
        where a chunk's values lie, at the speed of memory. None on a GPU.
    """

    function: str
    does: str
    shards: int
    chunk: int
    seconds: float | None
    flops: float
    moved: float
    scratch: int
    least: float | None
    is_settled: bool = False

    @property
    def fraction(self) -> float | None:
        """How near it comes to the roof, 1 being as fast as the machine can be.

        It may be more where Winograd's algorithm saves operations, which are counted as those of
        the plain formula; and for a region of a microsecond, which the clock hardly sees.
        """
        return None if self.seconds is None else self.least / self.seconds


@dataclass(frozen=True)
class StepReport:
    """What `CompiledFunction.report` returns; print it for a table.

    Attributes
    ----------
    lines
        One for each region, in the order in which they run.
    planned
        Bytes of memory for values and for the kernels' workspace: what passes between regions, and
        on the CPU a chunk's scratch for each thread of the last call. What the caller gets is his.
    unplanned
        What they would take if each value and workspace were whole and had memory of its own.
    between
        The part of ``planned`` for values that pass between regions, which is used again as soon
        as the last reader is done; on a GPU, all of it.
    threads
        In the last call; on a GPU 1.
    host_seconds
        Of a step on a GPU: how long the host takes to start all launches, which may still run
        then; the median of the last calls.
    """

    name: str
    lines: tuple[Line, ...]
    planned: int
    unplanned: int
    between: int
    threads: int = 1
    host_seconds: float | None = None

    def __str__(self) -> str:
        if self.host_seconds is not None:
            return self._of_launches()
        at_each_call = [line for line in self.lines if not line.is_settled]
        total = sum(line.seconds for line in at_each_call) or 1.0
        rows = [(
            "", "time", "share", "MFLOP", "KB moved", "GFLOP/s", "GB/s", "of roof", "pieces",
            "scratch", "what",
        )]  # fmt: skip
        for line in self.lines:
            pieces = f"{line.shards} x {line.chunk}" if line.chunk else "1"
            share = "once" if line.is_settled else f"{line.seconds / total:.0%}"
            rows.append((
                line.function, f"{line.seconds * 1e6:,.0f} us", share,
                f"{line.flops / 1e6:,.2f}", f"{line.moved / 1024:,.0f}",
                f"{line.flops / line.seconds / 1e9:.1f}", f"{line.moved / line.seconds / 1e9:.1f}",
                f"{line.fraction:.0%}", pieces, f"{line.scratch / 1024:,.0f} KB", line.does,
            ))  # fmt: skip
        lines = _table(rows)
        fraction = sum(line.least for line in at_each_call) / total
        scratch = max((line.scratch for line in self.lines), default=0)
        threads = "one thread" if self.threads == 1 else f"each of {self.threads} threads"
        lines += [
            f"memory: {self.planned / 1024:,.0f} KB, of which {self.between / 1024:,.0f} KB "
            f"between regions and {scratch / 1024:,.0f} KB of scratch for {threads}; "
            f"without planning {self.unplanned / 1024:,.0f} KB",
            f"{self.name}: {total * 1e3:,.2f} ms in regions, {fraction:.0%} of the roof",
        ]
        if len(at_each_call) < len(self.lines):
            lines.append("once: runs only when weights are others than at the last call")
        return "\n".join(lines)

    def _of_launches(self) -> str:
        rows = [("", "MFLOP", "KB moved", "workspace", "what")]
        for line in self.lines:
            rows.append((
                line.function, f"{line.flops / 1e6:,.2f}", f"{line.moved / 1024:,.1f}",
                f"{line.scratch / 1024:,.0f} KB", line.does,
            ))  # fmt: skip
        return "\n".join([
            *_table(rows),
            f"{self.name}: {len(self.lines)} launches, which the host starts in "
            f"{self.host_seconds * 1e3:,.2f} ms; how long the GPU takes is not measured here",
            f"memory: {self.planned / 1024:,.0f} KB for values between them and their workspace; "
            f"without planning {self.unplanned / 1024:,.0f} KB",
        ])  # fmt: skip


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """Return rows as lines; the first and the last column are left-aligned, the last one wraps."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    lines = []
    for first, *numbers, last in rows:
        cells = [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)]
        left = "  ".join([first.ljust(widths[0]), *cells, ""])
        lines += textwrap.wrap(left + last, WIDTH, subsequent_indent=" " * len(left))
    return lines


def report(executable: Executable) -> StepReport:
    """Return what a compiled step's last calls took."""
    plan = executable.plan
    if isinstance(executable, CUDAExecutable):
        return _report_launches(executable)
    lines = []
    timed = zip(executable.source.functions, plan.regions, executable.seconds, strict=True)
    for function, region, seconds in timed:
        works = [_work(node) for node in region.nodes]
        flops, moved = (sum(each) for each in zip(*works, strict=True))
        lines.append(
            Line(
                function,
                ", ".join(dict.fromkeys(node.name for node in region.nodes)),
                region.shards,
                region.chunk,
                (median(seconds) if seconds else 0) or 1e-9,
                flops,
                moved,
                region.scratch_bytes,
                _least(region, flops, moved, min(executable.threads, region.shards)),
                region.is_settled,
            )
        )
    scratch = executable.threads * max((line.scratch for line in lines), default=0)
    return StepReport(
        plan.name,
        tuple(lines),
        plan.arena_bytes + scratch,
        plan.unplanned_bytes,
        plan.arena_bytes,
        executable.threads,
    )


def _report_launches(executable: CUDAExecutable) -> StepReport:
    plan = executable.plan
    lines = []
    for number, node in enumerate(plan.nodes):
        flops, moved = _work(node)
        workspace = sum(size_of(shape) * dtype.itemsize for shape, dtype in node.workspace)
        does = ", ".join(member.name for member in getattr(node, "members", [node]))
        lines.append(Line(f"launch_{number}", does, 1, 0, None, flops, moved, workspace, None))
    seconds = median(executable.seconds) if executable.seconds else 0.0
    arena = plan.arena_bytes
    return StepReport(
        plan.name, tuple(lines), arena, plan.unplanned_bytes, arena, host_seconds=seconds
    )


def _work(node) -> tuple[float, float]:
    """Return a node's floating-point operations and the bytes that it moves at least."""
    if isinstance(node, Combine):
        return 0.0, node.parts.nbytes + node.out.nbytes
    if isinstance(node, Fused):  # what passes between its members stays in registers
        flops = sum(roofline.work(member.op, member.call)[0] for member in node.members)
        sizes = [ref.spec.size * ref.spec.dtype.itemsize for ref in node.inputs]
        return flops, sum(sizes) + sum(buffer.nbytes for buffer in node.outputs)
    return roofline.work(node.op, node.call)


def _least(region: Region, flops: float, moved: float, threads: int) -> float:
    """Return the least seconds for a region on so many threads."""
    roof = roofline.roof(threads)
    passed: dict[Buffer, int] = {}  # what comes from outside, or goes there, once
    for node in region.nodes:
        for ref in node.inputs:
            read = ref.spec.size * ref.spec.dtype.itemsize
            passed[ref.buffer] = max(read, passed.get(ref.buffer, 0))
        passed |= {buffer: buffer.nbytes for buffer in node.outputs}
    outside = sum(size for buffer, size in passed.items() if not is_local(buffer))
    return max(
        roof.seconds(flops, outside),
        moved / roof.speed(region.scratch_bytes * threads),
    )


__all__ = ["Line", "StepReport", "report"]
