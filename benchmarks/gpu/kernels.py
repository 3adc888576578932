"""``make gpu-report``: what the compiler makes of each CUDA kernel. No GPU is needed."""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from numba import types
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from numbagrad.cuda_support import Occupancy

ARCHITECTURES = {"sm_80": (8, 0), "sm_90": (9, 0)}
TESTS = Path(__file__).resolve().parents[2] / "tests"
VECTOR = re.compile(r"^\s*(?:@!?%p\d+\s+)?(?:ld|st)\.[\w.]*v[24]\.\w+", re.M)
WIDTH = 150  # of the table
FLOATS = ("float64", "float32")  # what a kernel is listed by, the widest first


@dataclass(frozen=True)
class Compiled:
    """One kernel for one signature, as machine code.

    Attributes
    ----------
    name, dtype
        The kernel, and the widest floats among its arrays; else ``"-"``.
    threads
        In its largest block.
    registers, shared_bytes, spilled_bytes
        Of a thread, of a block, and of a thread.
    float64
        Instructions that compute with float64.
    vectors
        Loads and stores of several elements at once.
    holds
        What a multiprocessor holds of it.
    """

    name: str
    dtype: str
    threads: int
    registers: int
    shared_bytes: int
    spilled_bytes: int
    float64: int
    vectors: int
    holds: Occupancy


def compiled(part: int, parts: int, arch: str, pattern: str) -> list[Compiled]:
    """Compile a part of what the tests' cases launch: every ``parts``-th one from ``part`` on."""
    sys.path.insert(0, str(TESTS))
    from cases import CASES
    from cuda_recorder import launches_of

    from numbagrad.cuda_support import compile_offline

    launches = launches_of(case for _, case in CASES)
    ordered = sorted((each for each in launches if re.search(pattern, each[0].__name__)), key=str)
    found = []
    for kernel, signature in ordered[part::parts]:
        report = compile_offline(kernel, signature, ARCHITECTURES[arch])
        threads = max(launches.threads[kernel, signature])
        dtypes = {str(each.dtype) for each in signature if isinstance(each, types.Array)}
        found.append(
            Compiled(
                kernel.__name__.lstrip("_"),
                next((dtype for dtype in FLOATS if dtype in dtypes), "-"),
                threads,
                report.registers,
                report.shared_bytes,
                report.spill_stores + report.spill_loads,
                report.float64_instructions,
                len(VECTOR.findall(report.ptx)),
                report.occupancy(threads),
            )
        )
    return found


def table(found: Iterable[Compiled], arch: str) -> Table:
    """Return a table with a line for each kernel and dtype: of several, the one that takes most."""
    groups: dict[tuple[str, str], list[Compiled]] = defaultdict(list)
    for each in found:
        groups[each.name, each.dtype].append(each)
    out = Table(
        title=f"CUDA kernels as machine code for {arch}", box=box.SIMPLE_HEAD, pad_edge=False
    )
    out.add_column("kernel", no_wrap=True)
    out.add_column("floats", no_wrap=True)
    for head in ("variants", "threads", "registers", "shared", "spilled", "float64", "vectors",
                 "blocks", "warps"):  # fmt: skip
        out.add_column(head, justify="right", no_wrap=True)
    out.add_column("limited by", no_wrap=True)
    for (name, dtype), group in sorted(groups.items()):
        most = min(group, key=lambda each: (each.holds.warps, -each.registers))
        stray = most.float64 if dtype != "float64" else 0
        out.add_row(
            name, dtype, str(len(group)), str(most.threads), str(most.registers),
            f"{most.shared_bytes:,}", _alarming(most.spilled_bytes), _alarming(stray),
            str(max(each.vectors for each in group)), str(most.holds.blocks),
            f"{most.holds.fraction:.0%}", most.holds.limit,
        )  # fmt: skip
    return out


def _alarming(count: int) -> str:
    return f"[bold red]{count}[/]" if count else "0"


def main(
    arch: Annotated[str, typer.Option(help="sm_80 (A100) or sm_90 (H100).")] = "sm_90",
    only: Annotated[str, typer.Option(help="A pattern that the kernels' names match.")] = "",
) -> None:
    """Print registers, shared memory and expected occupancy of each CUDA kernel."""
    if arch not in ARCHITECTURES:
        raise typer.BadParameter(f"{arch!r} is none of {', '.join(ARCHITECTURES)}")
    workers = os.cpu_count() or 1
    parts = 8 * workers
    found: list[Compiled] = []
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(compiled, part, parts, arch, only) for part in range(parts)]
        for job in track(jobs, "compiling", console=Console(stderr=True), transient=True):
            found += job.result()
    console = Console(width=WIDTH, highlight=False)
    console.print(table(found, arch))
    console.print(
        "Of variants (tiles, kinds of operands) the one with the fewest warps is shown. shared: "
        "bytes of a block; spilled: bytes of a thread; float64: instructions where no array holds "
        "float64; vectors: loads and stores of several elements; blocks: on a multiprocessor at a "
        "time; warps: of all that it could hold."
    )


if __name__ == "__main__":
    typer.run(main)
