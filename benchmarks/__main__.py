"""``python -m benchmarks``: run the benchmarks, print and write the results."""

from __future__ import annotations

import datetime
import secrets
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from . import machine, processes, report, worker
from .results import Report

ROOT = Path(__file__).resolve().parent.parent
README, PICTURE = ROOT / "README.md", ROOT / "docs" / "roofline.png"
FAMILIES = (
    "gemm", "conv", "pooling", "norms", "softmax", "elementwise", "optimiser", "dispatch", "steps",
    "inference",
)  # fmt: skip
PROCESSES = "processes"  # memory, start-up, loading

console = Console()


def main(
    only: Annotated[
        list[str] | None,
        typer.Option(help=f"A family: {', '.join(FAMILIES)}, {PROCESSES}. May be repeated."),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(min=1, help="By default 1 and as many as there are cores."),
    ] = None,
    quick: Annotated[
        bool, typer.Option(help="One thread, some cases, few turns: to see whether it works.")
    ] = False,
    compile: Annotated[
        bool, typer.Option(help="Let torch.compile take part; it compiles for minutes.")
    ] = True,
    publish: Annotated[
        bool | None,
        typer.Option(
            help="Write benchmarks/results, the README's table and docs/roofline.png; by default "
            "after a full run. Else the results go to runs/benchmarks.json.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Draws the inputs; a new one for each run.")
    ] = None,
    redraw: Annotated[
        bool, typer.Option(help="Measure nothing; show and publish the stored results again.")
    ] = False,
) -> None:
    """Measure numbagrad against PyTorch, JAX and NumPy.

    Exits with 1 if a result was wrong or one of ours is missing. Targets that are missed are
    printed, and do not count as failures.
    """
    unknown = set(only or ()) - {*FAMILIES, PROCESSES}
    if unknown:
        raise typer.BadParameter(f"--only {', '.join(unknown)}: known are {FAMILIES}, {PROCESSES}")
    stored = ROOT / "benchmarks" / "results" / f"{machine.name()}.json"
    if redraw:
        found = Report.load(stored)
    else:
        families = [family for family in FAMILIES if not only or family in only]
        counts = threads or ([1] if quick else sorted({1, machine.cores()}))
        seed = secrets.randbelow(2**32) if seed is None else seed
        found = Report(machine.describe(), str(datetime.date.today()), seed, [])
        for count in counts if families else ():
            task = worker.Task(count, families, seed, quick, compile and not quick)
            found.modes.append(worker.run(task, _log))
        if PROCESSES in (only or (() if quick else (PROCESSES,))):
            found.processes = processes.measure(machine.cores(), _log)
    report.show(found, console)
    full = redraw or not (only or threads or quick or not compile)
    if publish or (publish is None and full):
        found.save(stored)
        report.draw_roofline(found, PICTURE)
        block = report.readme_block(found, PICTURE.relative_to(ROOT).as_posix())
        README.write_text(report.replace_marked(README.read_text(), block))
        console.print(f"Wrote {stored.relative_to(ROOT)}, README.md, docs/roofline.png")
    else:
        found.save(ROOT / "runs" / "benchmarks.json")
        console.print("Wrote runs/benchmarks.json")
    if any(mode.is_wrong for mode in found.modes):
        raise typer.Exit(1)


def _log(text: str) -> None:
    console.print(f"[dim]{time.strftime('%H:%M:%S')}[/] {text}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
