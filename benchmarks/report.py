"""What a person reads: tables in the terminal, one in the README, the roofline picture."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from .reasons import FRACTION, SHARE
from .results import (
    COMPILED,
    FORWARD,
    GRADIENTS,
    OURS,
    Mode,
    Report,
    Target,
    activations,
    geometric_mean,
    over_peers,
    process_targets,
    ratios,
    targets,
)

MARKED = "benchmark"  # what stands between <!-- benchmark --> and <!-- /benchmark -->
# Families in the order of the report: what the README calls them, and which part stands for them.
FAMILIES = [
    ("gemm", "matrix products", None),
    ("conv", "convolutions", FORWARD),
    ("conv", "convolutions with both gradients", GRADIENTS),
    ("pooling", "pooling", None),
    ("norms", "batch norm", None),
    ("softmax", "softmax, cross-entropy", None),
    ("elementwise", "elementwise", None),
    ("optimiser", "Adam", None),
]


def seconds(value: float | None) -> str:
    """Return a time with a fitting unit and three digits.

    Examples
    --------
    >>> seconds(0.00123), seconds(45e-6), seconds(2.5), seconds(999.7e-6)
    ('1.23 ms', '45.0 us', '2.50 s', '1.00 ms')
    """
    if value is None:
        return "-"
    value = float(f"{value:.3g}")  # or three digits of 999.7 us would be those of 1000
    unit, name = next(
        (each for each in ((1.0, "s"), (1e-3, "ms")) if value >= each[0]), (1e-6, "us")
    )
    return f"{value / unit:#.3g}".rstrip(".") + f" {name}"


def times(ratio: float | None) -> str:
    """Return a ratio with two decimals."""
    return "-" if ratio is None else f"{ratio:.2f}"


# ------------------------------------------------------------------ terminal


def show(report: Report, console: Console) -> None:
    """Print everything."""
    for mode in report.modes:
        _show_cases(mode, console)
        _show_kernels(mode, console)
        _show_reasons(mode, console)
    _show_processes(report.processes, console)
    for mode in report.modes:
        _show_targets(f"Targets, {_threads(mode)}", targets(mode), console)
        for line in mode.failures:
            console.print(f"[red]failed[/] {_threads(mode)}, {line}", highlight=False)
        for line in mode.greedy:
            console.print(f"[yellow]note[/] {_threads(mode)}, {line}", highlight=False)
    _show_targets("Targets, processes", process_targets(report.processes), console)


def _threads(mode: Mode) -> str:
    return count(mode.threads, "thread")


def count(number: int, what: str) -> str:
    """Return a number of things in words.

    Examples
    --------
    >>> count(1, "core"), count(2, "thread")
    ('1 core', '2 threads')
    """
    return f"{number} {what}{'s' * (number != 1)}"


def new_table(title: str, *columns: str) -> Table:
    """Return an empty table for the terminal; all columns but the first are numbers."""
    table = Table(title=title, box=box.SIMPLE, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table


def _show_cases(mode: Mode, console: Console) -> None:
    table = new_table(
        f"{_threads(mode)}: ratio = best peer / numbagrad",
        "case", "ratio", "+-", OURS, "best peer", "", "others",
    )  # fmt: skip
    family = None
    for result in mode.results:
        if family not in (None, result.family):
            table.add_section()
        family = result.family
        shown = times(result.ratio)
        if result.compiled:
            shown += f" ({times(result.compiled_ratio)} compiled)"
        best, its = result.best_peer or ("-", None)
        others = "  ".join(
            f"{name} {seconds(t.median / result.per)}"
            for name, t in result.race.timings.items()
            if name not in (OURS, best)
        )
        table.add_row(
            f"{result.family}: {result.label}", shown, times(result.spread),
            seconds(result.ours), seconds(its), best, others,
        )  # fmt: skip
    console.print(table)


def _show_kernels(mode: Mode, console: Console) -> None:
    """Print each kernel's fraction of the roof, those that lose most time first."""
    table = new_table(
        f"{_threads(mode)}: kernels, time above the roof first (peak "
        f"{mode.roof.peak / 1e9:.0f} GFLOP/s, memory {_memory_speed(mode) / 1e9:.1f} GB/s)",
        "kernel", "shapes", "time", "GFLOP/s", "GB/s", "of the roof",
    )  # fmt: skip
    for kernel in sorted(mode.kernels, key=lambda k: -k["seconds"] * (1 - k["fraction"]))[:60]:
        table.add_row(
            kernel["op"], kernel["shapes"], seconds(kernel["seconds"]),
            f"{kernel['flops'] / kernel['seconds'] / 1e9:.1f}",
            f"{kernel['moved'] / kernel['seconds'] / 1e9:.1f}",
            f"{kernel['fraction']:.0%}",
        )  # fmt: skip
    if table.row_count:
        console.print(table)


def _show_reasons(mode: Mode, console: Console) -> None:
    """Print why kernels that matter are far below the roof, and those of which nobody said why."""
    slow = mode.slow_kernels
    reasons: dict[tuple, list[dict]] = {}
    for kernel in slow:
        if kernel["why"]:
            reasons.setdefault((kernel["op"], kernel["why"]), []).append(kernel)
    if slow:
        console.print(
            f"{_threads(mode)}: kernels over {SHARE:.0%} of a step, under {FRACTION:.0%} of the "
            "roof\n",
            style="italic", highlight=False,
        )  # fmt: skip
    for (op, reason), kernels in reasons.items():
        worst = min(kernel["fraction"] for kernel in kernels)
        most = kernels[0]  # with the largest share
        console.print(
            f"  [bold]{op}[/] ({count(len(kernels), 'shape')}, from {worst:.0%} of the roof, up to "
            f"{most['share']:.0%} of a step: {most['step']}). {reason}",
            highlight=False,
        )
    for kernel in slow:
        if not kernel["why"]:
            console.print(
                f"[red]no reason[/] {_threads(mode)}, {kernel['op']} {kernel['shapes']}: "
                f"{kernel['fraction']:.0%} of the roof, {kernel['share']:.0%} of {kernel['step']}",
                highlight=False,
            )


def _memory_speed(mode: Mode) -> float:
    return mode.roof.bandwidth[max(mode.roof.bandwidth)]


def _show_processes(processes: dict, console: Console) -> None:
    if not processes:
        return
    table = new_table(
        "Peak memory of training: model, moments, batch, step; and its activations",
        "step", "MB", "activations", "",
    )  # fmt: skip
    for row in processes["memory"]:
        for name, peak in row["peaks"].items():
            own = activations(row)[name]
            table.add_row(row["name"], f"{peak / 1e6:.2f}", f"{own / 1e6:.2f}", name)
    console.print(table)
    table = new_table("From the start of Python to the end of the first step (LeNet's)", "", "s")
    for name, value in processes["startup"].items():
        table.add_row(name, f"{value:.2f}")
    console.print(table)
    console.print(f"{_training(processes['training'])}\n", highlight=False)
    table = new_table("Data loading, augmented 32x32x3", "loader", "workers", "images/s", "waiting")
    for row in processes["loading"]:
        table.add_row(
            row["library"], str(row["workers"]),
            f"{row['images_per_second']:,.0f}", f"{row['waiting']:.1%}",
        )  # fmt: skip
    console.print(table)


def _show_targets(title: str, found: Iterable[Target], console: Console) -> None:
    table = new_table(title, "target", "wanted", "reached", "")
    for target in found:
        verdict = {True: "[green]pass[/]", False: "[red]fail[/]", None: "not measured"}
        table.add_row(target.name, target.wanted, times(target.value), verdict[target.passed])
    if table.row_count:
        console.print(table)


# -------------------------------------------------------------------- README


def replace_marked(text: str, content: str, name: str = MARKED) -> str:
    """Return the text with what stands between the markers of that name replaced.

    Raises
    ------
    ValueError
        If the two markers are not there, once each and in order.

    Examples
    --------
    >>> replace_marked("a <!-- benchmark -->old<!-- /benchmark --> b", "new")
    'a <!-- benchmark -->new<!-- /benchmark --> b'
    """
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise ValueError(f"the text must have {start} and, after it, {end}, once each")
    pattern = re.escape(start) + ".*?" + re.escape(end)
    return re.sub(pattern, lambda _: start + content + end, text, flags=re.DOTALL)


def readme_block(report: Report, picture: str) -> str:
    """Return what the README says about speed, in Markdown."""
    machine, versions = report.machine, report.machine["versions"]
    lines = [
        f"{machine['cpu']} ({machine['architecture']}), {count(machine['cores'], 'core')}, "
        f"{report.date}: "
        f"PyTorch {versions['torch']}, JAX {versions['jax']}, NumPy {versions['numpy']}, "
        f"Numba {versions['numba']}, Python {machine['python']}.",
        "",
        "Each figure is the time of the fastest of these libraries divided by numbagrad's: above "
        "1, numbagrad is faster. Geometric means, and the worst case in brackets.",
        "",
    ]
    heads = [_threads(mode) for mode in report.modes]
    rows = []
    for family, name, part in FAMILIES:
        cells = [_mean_and_worst(mode, family, part) for mode in report.modes]
        cases = len(report.modes[0].of(family, part))
        rows.append([f"{name} ({cases})", *cells])
        fused = [_compiled_ratios(mode, family, part) for mode in report.modes]
        if any(fused):
            rows.append(
                [f"{name}, **compiled** ({len(fused[0])})", *map(_bold_mean_and_worst, fused)]
            )
    lines += [*_markdown(["operations (cases)", *heads], rows), ""]
    for family, what in (
        ("steps", "training step (forward, backward, Adam)"),
        ("inference", "inference"),
    ):
        rows = _eager_and_compiled(report, family)
        if rows:
            lines += [*_markdown([f"{what}: eager, **compiled**", *heads], rows), ""]
    lines += [*_also(report), ""]
    lines += [
        f"![Each kernel against the machine's peak and bandwidth]({picture})",
        "",
    ]
    return "\n" + "\n".join(lines)


def _eager_and_compiled(report: Report, family: str) -> list[list[str]]:
    """Return a row for each case: ratios and times with each number of threads."""
    rows = []
    for name in dict.fromkeys(result.name for result in report.modes[0].of(family)):
        row = [name]
        for mode in report.modes:
            result = next((r for r in mode.of(family) if r.name == name), None)
            best = result and result.best_peer
            if best and result.ours:
                both = f"{times(result.ratio)}, **{times(result.compiled_ratio)}**"
                mine = f"{seconds(result.ours)}, {seconds(result.compiled)}"
                row.append(f"{both}: {mine}; {best[0]} {seconds(best[1])}")
            else:
                row.append("-")
        rows.append(row)
    return rows


def _mean_and_worst(mode: Mode, family: str, part: str | None) -> str:
    found = ratios(mode.of(family, part))
    mean = geometric_mean(found)
    return "-" if mean is None else f"{mean:.2f} ({min(found):.2f})"


def _compiled_ratios(mode: Mode, family: str, part: str | None) -> list[float]:
    """Return the ratios of the cases that were measured with `ng.compile`, too."""
    return [r.compiled_ratio for r in mode.of(family, part) if r.compiled_ratio is not None]


def _bold_mean_and_worst(found: list[float]) -> str:
    return f"**{geometric_mean(found):.2f}** ({min(found):.2f})" if found else "-"


def _also(report: Report) -> list[str]:
    """Return the rest: one line for each subject."""
    lines = []
    first = report.modes[0].of("dispatch")
    if first:
        pairs = [
            f"{r.label.split(', ', 1)[1]} {seconds(r.ours)} ({seconds(r.time_of('PyTorch'))})"
            for r in first
        ]
        lines.append(
            f"- Calling an op on 64 floats (PyTorch's time in brackets): {'; '.join(pairs)}."
        )
    if report.processes:
        rows = report.processes["memory"]
        peaks = [f"{row['name']} {times(over_peers(row['peaks'], OURS))}" for row in rows]
        lines.append(
            "- Peak memory of training (model, moments, batch, step), PyTorch's better layout = 1: "
            f"{'; '.join(peaks)}."
        )
        peaks = [f"{row['name']} {times(over_peers(activations(row), COMPILED))}" for row in rows]
        lines.append(
            "- Of it, activations (what is no parameter, gradient, moment or batch), **compiled**: "
            f"{'; '.join(peaks)}."
        )
        starts = [f"{name} {value:.1f} s" for name, value in report.processes["startup"].items()]
        lines.append(
            "- From the start of Python to the end of the first step, LeNet's if not said: "
            f"{'; '.join(starts)}."
        )
        lines.append(f"- {_training(report.processes['training'])}.")
        loads = [
            f"{row['library']} {row['workers']} workers {row['images_per_second']:,.0f} "
            f"({row['waiting']:.0%})"
            for row in report.processes["loading"]
        ]
        lines.append(
            "- Augmented images a second (share of a LeNet training loop spent waiting for them): "
            f"{'; '.join(loads)}."
        )
    return lines


def _training(trained: dict | None) -> str:
    what = "LeNet trained on MNIST, compiled, a whole process from a full cache"
    if trained is None:
        return f"{what}: not measured: no MNIST"
    return (
        f"{what}: {trained['accuracy']:.2f} % of the test images right after "
        f"{trained['seconds']:.1f} s on {count(trained['threads'], 'thread')}"
    )


def _markdown(heads: list[str], rows: list[list[str]]) -> list[str]:
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


# ------------------------------------------------------------------- picture

# How kernels are coloured: by the first word that their op's name contains.
GROUPS = [
    ("matmul", "matrix products"),
    ("conv2d", "convolutions"),
    ("pool", "pooling"),
    ("norm", "norms"),
    ("softmax", "softmax"),
    ("adam", "Adam"),
    ("sum", "sums"),
    ("", "elementwise and others"),
]


def group_of(op: str) -> str:
    """Return which group a kernel belongs to.

    Examples
    --------
    >>> group_of("conv2d_backward_input"), group_of("relu")
    ('convolutions', 'elementwise and others')
    """
    return next(group for word, group in GROUPS if word in op)


def draw_roofline(report: Report, path: Path) -> None:
    """Draw every kernel against the machine's limits: above by arithmetic, below by memory too."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import PercentFormatter

    names = [group for _, group in GROUPS]
    colours = dict(zip(names, plt.get_cmap("tab10").colors, strict=False))
    figure, axes = plt.subplots(
        2, len(report.modes), figsize=(6.4 * len(report.modes), 8.4), squeeze=False,
        layout="constrained", sharey="row",
    )  # fmt: skip
    dots = {"alpha": 0.75, "linewidths": 0, "zorder": 3}
    for above, below, mode in zip(*axes, report.modes, strict=True):
        kernels = mode.kernels
        _draw_roof(above, mode)
        for kernel in kernels:
            if kernel["flops"]:
                above.scatter(
                    kernel["flops"] / kernel["moved"],
                    kernel["flops"] / kernel["seconds"] / 1e9,
                    color=colours[group_of(kernel["op"])], s=_area(kernel), **dots,
                )  # fmt: skip
        for position, name in enumerate(names):
            group = [kernel for kernel in kernels if group_of(kernel["op"]) == name]
            group.sort(key=lambda kernel: kernel["fraction"])
            for place, kernel in enumerate(group, 1):  # side by side, so that none hides another
                across = position + 0.7 * (place / (len(group) + 1) - 0.5)
                below.scatter(
                    across, kernel["fraction"], color=colours[name], s=_area(kernel), **dots
                )
        below.axhline(1, color="black", linewidth=1)
        below.set_xticks(range(len(names)), names, rotation=35, ha="right")
        below.set_ylim(bottom=0)
        below.yaxis.set_major_formatter(PercentFormatter(1.0))
        below.grid(axis="y", alpha=0.3)
        above.set_title(_threads(mode))
    axes[0, 0].set_ylabel("GFLOP/s")
    axes[1, 0].set_ylabel("of the roof")
    figure.suptitle(
        f"Every kernel against {report.machine['cpu']}, {report.date}\n"
        "calls in eager mode, dispatch included; the larger a dot, the longer the call"
    )
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _area(kernel: dict) -> float:
    """Return the area of a kernel's dot: larger for one that takes longer."""
    return 7.0 * max(1.0, 1 + math.log10(kernel["seconds"] / 1e-5))


def _draw_roof(axis, mode: Mode) -> None:
    peak = mode.roof.peak / 1e9
    low, high = 0.1, 1000.0
    axis.hlines(peak, low, high, color="black", label=f"peak: {peak:.0f} GFLOP/s")
    for number, (size, bandwidth) in enumerate(sorted(mode.roof.bandwidth.items())):
        speed = bandwidth / 1e9
        axis.plot(
            [low, peak / speed], [low * speed, peak], color=str(0.2 + 0.17 * number), linewidth=1,
            label=f"copy of {_bytes(size)}: {speed:.0f} GB/s",
        )  # fmt: skip
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(low, high)
    axis.set_xlabel("FLOPs for each byte of inputs and outputs")
    axis.legend(loc="lower right", fontsize=8)
    axis.grid(alpha=0.3)


def _bytes(number: int) -> str:
    return f"{number >> 20} MiB" if number >= 1 << 20 else f"{number >> 10} KiB"
