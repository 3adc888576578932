"""``python -m benchmarks.scaling``: how speed changes with batch, depth and threads, as a picture.

Training steps of compiled numbagrad against those of PyTorch and JAX, and inference on one image,
all in the interleaved race of `measure`. A full run takes about a quarter of an hour.
"""

from __future__ import annotations

import datetime
import secrets
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from . import machine, worker
from .report import count, seconds, times
from .results import COMPILED, Mode, Report

COLOURS = "tab:blue", "tab:orange", "tab:green"  # by number of threads
PICTURE = worker.ROOT / "docs" / "scaling.png"

FAMILY = "scaling"
NETWORKS = {"lenet": "LeNet", "mlp": "MLP"}
BATCHES = (1, 4, 16, 64, 256, 1024)
DEPTHS = (2, 4, 8, 16, 32)
WIDTH, CHANNELS, DEEP_BATCH = 128, 16, 32  # of the networks that grow deep
DEEP = {  # and what is counted
    "MLP over depth": f"MLP of width {WIDTH}",
    "ConvNet over depth": f"3x3 convolutions of {CHANNELS} channels",
}
INFERENCE = "LeNet, inference, batch"

console = Console()


def over_batch(network: str) -> str:
    """Return what the cases of a network over its batch are called.

    Examples
    --------
    >>> over_batch("lenet")
    'LeNet over batch'
    """
    return f"{NETWORKS[network]} over batch"


def main(
    threads: Annotated[
        list[int] | None,
        typer.Option(min=1, help="By default 1 and as many as there are cores."),
    ] = None,
    quick: Annotated[bool, typer.Option(help="One thread, the smallest sizes, few turns.")] = False,
    publish: Annotated[
        bool | None,
        typer.Option(
            help="Write benchmarks/results and docs/scaling.png; by default after a full run. Else "
            "both go to runs/.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Draws the inputs; a new one for each run.")
    ] = None,
    redraw: Annotated[
        bool, typer.Option(help="Measure nothing; draw the stored results again.")
    ] = False,
) -> None:
    """Measure compiled numbagrad against PyTorch and JAX over batch, depth and threads.

    Exits with 1 if a result was wrong or one of ours is missing.
    """
    stored = worker.ROOT / "benchmarks" / "results" / f"{machine.name()}-scaling.json"
    if redraw:
        found = Report.load(stored)
    else:
        counts = threads or ([1] if quick else sorted({1, machine.cores()}))
        seed = secrets.randbelow(2**32) if seed is None else seed
        found = Report(machine.describe(), str(datetime.date.today()), seed, [])
        for number in counts:
            task = worker.Task(number, [FAMILY], seed, quick, compiled=False)
            found.modes.append(worker.run(task, _log))
    show(found)
    full = redraw or not (threads or quick)
    if publish or (publish is None and full):
        paths = stored, PICTURE
    else:
        runs = worker.ROOT / "runs"
        paths = runs / "scaling.json", runs / "scaling.png"
    found.save(paths[0])
    draw(found, paths[1])
    console.print("Wrote " + ", ".join(str(path.relative_to(worker.ROOT)) for path in paths))
    if any(mode.is_wrong for mode in found.modes):
        raise typer.Exit(1)


def _log(text: str) -> None:
    console.print(f"[dim]{time.strftime('%H:%M:%S')}[/] {text}", highlight=False)


def show(report: Report) -> None:
    """Print each case: our time, the best peer's, and the ratio."""
    for mode in report.modes:
        for result in mode.results:
            best, its = result.best_peer or ("-", None)
            console.print(
                f"{count(mode.threads, 'thread')}, {result.part} {result.name}: "
                f"{times(result.compiled_ratio)} ({seconds(result.compiled)}; {best} "
                f"{seconds(its)})",
                highlight=False,
            )
        for line in mode.failures:
            console.print(f"[red]failed[/] {line}", highlight=False)


# ------------------------------------------------------------------- picture


def draw(report: Report, path: Path) -> None:
    """Draw speed-ups over batch, depth and threads, and the times of inference on one image."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    (batch, depth), (threads, inference) = axes
    marks = dict(zip(NETWORKS, "os", strict=True))
    for colour, mode in zip(COLOURS, report.modes, strict=False):
        label = count(mode.threads, "thread")
        for network, mark in marks.items():
            points = ratios(mode, over_batch(network))
            batch.plot(
                *points, marker=mark, color=colour, ls="-" if mark == "o" else "--",
                label=f"{NETWORKS[network]}, {label}",
            )  # fmt: skip
        for (part, what), mark in zip(DEEP.items(), "so", strict=True):
            depth.plot(
                *ratios(mode, part), marker=mark, color=colour, ls="-" if mark == "o" else "--",
                label=f"{what}, {label}",
            )  # fmt: skip
    for axis, ticks in ((batch, BATCHES), (depth, DEPTHS)):
        _label_sizes(axis, ticks)
        axis.axhline(1, color="black", lw=1)
        axis.set_ylim(bottom=0)
        axis.set_ylabel("best peer's time / compiled numbagrad's")
    batch.set(title="Training step over batch", xlabel="batch")
    depth.set(title=f"Training step over depth, batch {DEEP_BATCH}", xlabel="layers")
    _draw_threads(threads, report.modes)
    _draw_inference(inference, report.modes)
    for axis in axes.flat:
        if axis.get_legend_handles_labels()[1]:
            axis.legend(frameon=False, fontsize=9)
        axis.grid(alpha=0.3)
    versions = report.machine["versions"]
    figure.suptitle(
        f"{report.machine['cpu']}, {count(report.machine['cores'], 'core')}, {report.date}\n"
        f"compiled numbagrad against the fastest of PyTorch {versions['torch']} (eager, either "
        f"memory format) and JAX {versions['jax']} (jit)",
        fontsize=11,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def ratios(mode: Mode, part: str) -> tuple[list[int], list[float]]:
    """Return the sizes of which both we and a peer have a time, and the ratios."""
    found = [
        (int(result.name), result.compiled_ratio)
        for result in mode.of(FAMILY, part)
        if result.compiled_ratio
    ]
    return [size for size, _ in found], [ratio for _, ratio in found]


def _label_sizes(axis, ticks: tuple[int, ...]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, ticks)
    axis.set_xticks([], minor=True)


def _draw_threads(axis, modes: list[Mode]) -> None:
    """Draw how much faster each library is on most threads than on fewest: LeNet over batch."""
    few, many = modes[0], modes[-1]
    axis.set_visible(many is not few)
    part = over_batch("lenet")
    before = {result.name: result.race.timings for result in few.of(FAMILY, part)}
    lines: dict[str, list[tuple[int, float]]] = {}
    for result in many.of(FAMILY, part):
        for library, timing in result.race.timings.items():
            if library in before.get(result.name, {}):
                gain = before[result.name][library].median / timing.median
                lines.setdefault(library, []).append((int(result.name), gain))
    for library, points in lines.items():
        ours = library == COMPILED
        axis.plot(*zip(*points, strict=True), marker="o", lw=2.5 if ours else 1, label=library)
    _label_sizes(axis, BATCHES)
    axis.axhline(1, color="black", lw=1)
    axis.set_ylim(bottom=0)
    axis.set(
        title=f"LeNet: {count(many.threads, 'thread')} against {few.threads}",
        xlabel="batch",
        ylabel="speed-up",
    )


def _draw_inference(axis, modes: list[Mode]) -> None:
    """Draw what inference on one image takes in each library."""
    labels: list[str] = []
    for colour, mode in zip(COLOURS, modes, strict=False):
        label = count(mode.threads, "thread")
        for result in mode.of(FAMILY, INFERENCE):
            ranked = sorted(result.race.timings.items(), key=lambda item: item[1].median)
            for library, timing in ranked:
                axis.barh(len(labels), timing.median * 1e6, color=colour, label=label)
                axis.text(
                    timing.median * 1e6, len(labels), f" {seconds(timing.median)}", va="center"
                )
                labels.append(library.replace(" ", "\n"))
                label = None  # one line in the legend
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.2)
    axis.set(title="LeNet, inference on one image", xlabel="us")


if __name__ == "__main__":
    typer.run(main)
