"""What a person reads: tables in the terminal, and one in the README."""

from __future__ import annotations

from rich.console import Console

from ..report import new_table, replace_marked, seconds, times
from .results import Figure, GpuReport, bytes_of, figures, fractions

MARKED = "gpu benchmark"  # the name of the README's markers
NOT_MEASURED = "not measured"
VERDICTS = {True: "[green]pass[/]", False: "[red]fail[/]", None: NOT_MEASURED}


def show(report: GpuReport, console: Console) -> None:
    """Print everything."""
    cases = new_table("Time of a call", "case", "numbagrad", "compiled", "others")
    for result in report.results:
        others = "  ".join(
            f"{name} {seconds(result.time_of(name))}"
            for name in result.race.timings
            if name not in ("numbagrad", "numbagrad compiled")
        )
        cases.add_row(
            f"{result.family}: {result.label}", seconds(result.ours), seconds(result.compiled),
            others,
        )  # fmt: skip
    moving = new_table("Kernels that only move memory", "kernel", "GB/s", "of a copy's")
    found = dict(fractions(report))
    for result in report.of("bandwidth"):
        time = result.ours or result.compiled
        speed = f"{bytes_of(result) / time / 1e9:.0f}" if time else "-"
        moving.add_row(result.name, speed, times(found.get(result.name)))
    reached = new_table("Targets on an H100", "figure", "reached", "target", "stretch", "")
    for figure in figures(report):
        reached.add_row(figure.name, *_cells(figure), VERDICTS[figure.passed])
    for each in (cases, moving, reached):
        if each.row_count:
            console.print(each)
    for line in report.failures:
        console.print(f"[red]failed[/] {line}", highlight=False)


def _cells(figure: Figure) -> list[str]:
    """Return what was reached, the target and the stretch in words."""

    def text(value: float | None) -> str:
        if value is None:
            return "-"
        return f"{value:.3g}" if figure.unit == "x" else f"{value:.3g} {figure.unit}"

    reached = NOT_MEASURED if figure.value is None else text(figure.value)
    bound = "" if figure.unit == "x" else "at most "
    return [reached, f"{bound}{text(figure.target)}", text(figure.stretch)]


def readme_block(report: GpuReport) -> str:
    """Return what the README says about speed on a GPU, in Markdown."""
    machine = report.machine
    head = machine.get("device", "H100")
    lines = [f"| | {head} | target on an H100 | stretch |", "| --- | ---: | ---: | ---: |"]
    for figure in figures(report):
        lines.append(f"| {figure.name} | {' | '.join(_cells(figure))} |")
    if machine:
        versions = machine["versions"]
        libraries = ", ".join(
            f"{name} {versions[package]}"
            for name, package in (
                ("PyTorch", "torch"), ("CuPy", "cupy-cuda13x"), ("CuPy", "cupy-cuda12x"),
                ("Numba", "numba"), ("numba-cuda", "numba-cuda"),
            )
            if package in versions
        )  # fmt: skip
        about = (
            f"{head}, driver {machine['driver']}, CUDA {machine['cuda']}, cuDNN "
            f"{machine['cudnn']}, {report.date}: {libraries}, Python {machine['python']}. "
        )
    else:
        about = "No GPU was at hand yet. "
    about += (
        "Figures without a unit: the peer's time divided by numbagrad's (above 1, numbagrad is "
        "faster), or a share of the bandwidth. Medians by CUDA events, contenders in turns, every "
        "result checked."
    )
    accuracy = report.speedrun.get("accuracy")
    if accuracy is not None:
        about += (
            f" The speed run trained on {report.speedrun['data']}, {_rounding(report.speedrun)}, "
            f"and ended at {accuracy:.2f} % after {report.speedrun['seconds']:.1f} s"
        )
        peer = report.speedrun.get("peer")
        if peer:
            about += f"; PyTorch at {peer['accuracy']:.2f} % after {peer['seconds']:.1f} s"
        about += "."
    return "\n" + "\n".join([about, "", *lines]) + "\n"


def _rounding(speedrun: dict) -> str:
    return "in tf32" if speedrun["settings"]["precision"] == "high" else "in true float32"


def publish(report: GpuReport, readme: str) -> str:
    """Return the README's text with the table of this report in it."""
    return replace_marked(readme, readme_block(report), MARKED)
