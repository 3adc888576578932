"""A run as one HTML page that needs no other file and no network: `numbagrad report`."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from .. import __version__, charts, data, inspect, jit, ops, roofline
from ..array import asarray
from ..compiler.report import StepReport
from ..dispatch import get_num_threads
from ..layers import Module
from ..train import Confusion, History
from ..training.history import percent
from ..training.step import make_step
from . import doctor, pictures, runs

MISTAKES = 24
MAPS = 16  # of each layer
LAYERS = 4  # whose maps are shown
SALIENT = 8
STEPS = 12  # that are timed


def write(path: Path, folder: Path, trained: runs.Trained) -> None:
    """Write the page about the run in a folder.

    Raises
    ------
    DataError
        If the data that it was trained on are not there.
    OSError
        If the file cannot be written.
    """
    jit.write_atomically(path, page(folder, trained).encode())


def page(folder: Path, trained: runs.Trained) -> str:
    """Return the page about the run in a folder."""
    train_set, test_set = runs.load_data(trained.config)
    outputs = runs.outputs(trained.model, test_set.images)
    history = runs.read_history(folder)
    confusion = Confusion()
    confusion.update(outputs, test_set.labels)
    frame = resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    name = trained.config.data["name"]
    return Template(frame).substitute(
        title=_text(f"{trained.config.title} on {name}"),
        subtitle=_text(f"{len(train_set):,} training and {len(test_set):,} test images, {folder}"),
        tiles=_tiles(trained.model, history, outputs, test_set.labels),
        learning=_learning(history),
        confusion=_confusion(confusion.value, trained.classes),
        mistakes=_mistakes(outputs, test_set, trained.classes),
        inside=_inside(trained.model, outputs, test_set),
        network=_network(trained),
        time=_time(trained, train_set),
        environment=_environment(trained),
        version=__version__,
    )


# ------------------------------------------------------------------- pieces


def _tiles(model: Module, history: History, outputs: np.ndarray, labels: np.ndarray) -> str:
    seconds = sum(epoch.seconds for epoch in history.epochs)
    loss = ops.softmax_cross_entropy(asarray(outputs), asarray(labels)).item()
    facts = {
        "test accuracy": percent(float((outputs.argmax(1) == labels).mean())),
        "test loss": f"{loss:.4f}",
        "parameters": f"{sum(p.size for p in model.parameters()):,}",
        "epochs": f"{len(history.epochs)}",
        "of training": _duration(seconds),
    }
    return "".join(
        f'<div class="tile"><b>{_text(fact)}</b><span>{name}</span></div>'
        for name, fact in facts.items()
    )


def _duration(seconds: float) -> str:
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60} s" if minutes else f"{seconds:.1f} s"


def _learning(history: History) -> str:
    if not history.epochs:
        return "<p>No epoch is over yet.</p>"

    return (
        '<div class="pair">'
        + charts.curves("loss", history.series("loss"), is_log=True)
        + charts.curves("accuracy", history.series("accuracy", 100), unit=" %")
        + '</div><p><span class="key train">training, while the weights moved</span>'
        '<span class="key test">test, after the epoch</span></p>'
    )


def _confusion(counts: np.ndarray, classes: Sequence[str]) -> str:
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    head = "".join(f"<th>{_text(name)}</th>" for name in classes)
    rows = []
    for i, name in enumerate(classes):
        cells = []
        for j, other in enumerate(classes):
            kind = "hit" if i == j else "miss" if counts[i, j] else "none"
            # A mistake is rare: the root makes a few of them visible.
            tone = 75 * shares[i, j] if i == j else 90 * math.sqrt(shares[i, j])
            tip = f"{counts[i, j]} of {counts[i].sum()} {name} taken for {other}"
            cells.append(
                f'<td class="{kind}" style="--share:{tone:.0f}" title="{_text(tip)}">'
                f"{counts[i, j]}</td>"
            )
        recall = percent(shares[i, i]) if counts[i].sum() else "no image"
        rows.append(f"<tr><th>{_text(name)}</th>{''.join(cells)}<th>{recall}</th></tr>")
    return (
        "<p>A row for each class of the test set, a column for what its images were taken for; at "
        'the right the share that was found.</p><div class="scroll"><table class="confusion">'
        f"<thead><tr><th></th>{head}<th></th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _mistakes(outputs: np.ndarray, test: data.Dataset, classes: Sequence[str]) -> str:
    chances = runs.softmax(outputs)
    guesses = outputs.argmax(1)
    wrong = np.flatnonzero(guesses != test.labels)
    if not len(wrong):
        return "<p>None: every test image was taken for what it is.</p>"
    right = chances[wrong, test.labels[wrong]]
    worst = wrong[np.argsort(right, kind="stable")][:MISTAKES]
    figures = [
        _picture(
            test.images[i],
            f'<span class="was">{_text(classes[guesses[i]])}</span> '
            f"{100 * chances[i, guesses[i]]:.0f} %<br>"
            f'is <span class="is">{_text(classes[test.labels[i]])}</span>',
            f"test image {i}",
        )
        for i in worst
    ]
    return (
        f"<p>{len(wrong):,} of {len(test):,} test images were taken for another class. These are "
        "the ones whose own class seemed least likely: what the network took them for, and how "
        f'sure it was.</p><div class="pictures">{"".join(figures)}</div>'
    )


def _inside(model: Module, outputs: np.ndarray, test: data.Dataset) -> str:
    return _filters(model) + _maps(model, test) + _saliency(model, outputs, test)


def _filters(model: Module) -> str:
    found = inspect.filters(model)
    if not found:
        return "<p>There is no convolution in it, so there are no filters to show.</p>"
    name, first = next(iter(found.items()))
    largest = np.abs(first).max((1, 2, 3), keepdims=True) + 1e-12
    shown = 0.5 + 0.5 * first / largest  # 0 is grey
    if first.shape[3] not in (1, 3):
        shown = shown.mean(3, keepdims=True)
    figures = [_picture(one, "", f"filter {k}") for k, one in enumerate(shown)]
    return (
        f"<h3>Filters of the first convolution, layer {_text(name)}</h3>"
        "<p>Grey is 0, light a positive weight, dark a negative one.</p>"
        f'<div class="pictures small">{"".join(figures)}</div>'
    )


def _maps(model: Module, test: data.Dataset) -> str:
    maps = inspect.feature_maps(model, test.images[:1])
    layers = dict(model.named_modules())
    shown = {n: x[0] for n, x in maps.items() if x.ndim == 4 and min(x.shape[1:3]) > 1}
    if not shown:
        return ""
    parts = [
        "<h3>What the layers make of the first test image</h3>",
        f'<div class="pictures small">{_picture(test.images[0], "", "the image")}</div>',
    ]
    # Of each stage the last layer says most: what comes after activation and pooling.
    chosen = [shown_name for shown_name in shown if _ends_a_stage(shown_name, list(shown), layers)]
    for name in chosen[:LAYERS]:
        image = shown[name]
        span = np.ptp(image, axis=(0, 1)) + 1e-12
        scaled = (image - image.min((0, 1))) / span
        figures = [
            _picture(scaled[:, :, k], "", f"channel {k}") for k in range(min(MAPS, image.shape[2]))
        ]
        height, width, channels = image.shape
        what = f"layer {name}, {layers[name]!r}: {channels} maps of {height}x{width}"
        parts.append(f'<p class="pale">{_text(what)}</p>')
        parts.append(f'<div class="pictures small">{"".join(figures)}</div>')
    return "".join(parts)


def _ends_a_stage(name: str, names: list[str], layers: dict[str, Module]) -> bool:
    """Say whether the next layer, if there is one, begins something new: a convolution."""
    after = names[names.index(name) + 1 :]
    return not after or type(layers[after[0]]).__name__ == "Conv2d"


def _saliency(model: Module, outputs: np.ndarray, test: data.Dataset) -> str:
    images = test.images[:SALIENT]
    heat = inspect.saliency(model, images, outputs[:SALIENT].argmax(1))
    heat = heat / (heat.max((1, 2), keepdims=True) + 1e-12)
    figures = [
        f'<figure class="small"><img src="{pictures.data_url(image)}" alt="test image {i}">'
        f'<img src="{pictures.data_url(_heat(one))}" alt="its saliency"></figure>'
        for i, (image, one) in enumerate(zip(images, heat, strict=True))
    ]
    return (
        "<h3>Which pixels matter</h3><p>Below each image: how much each pixel moves the output of "
        "the class that was chosen.</p>"
        f'<div class="pictures small">{"".join(figures)}</div>'
    )


def _heat(values: np.ndarray) -> np.ndarray:
    """Return numbers in 0..1 as colours from black over red and yellow to white."""
    return np.stack([np.clip(3 * values - k, 0, 1) for k in range(3)], axis=2)


def _picture(image: np.ndarray, caption: str, alt: str) -> str:
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return (
        f'<figure><img src="{pictures.data_url(image)}" alt="{_text(alt)}" title="{_text(alt)}">'
        f"{below}</figure>"
    )


def _network(trained: runs.Trained) -> str:
    summary = trained.model.summary(trained.shape)
    graph = inspect.graph(trained.model, trained.shape)
    return (
        f'<div class="scroll">{summary._repr_html_()}</div>'
        "<p>Operations and memory are those of a forward pass on one image.</p>"
        f"<h3>What passes from layer to layer</h3>{graph._repr_html_()}"
    )


def _time(trained: runs.Trained, train_set: data.Dataset) -> str:
    """Time the compiled training step, on a copy of the model."""
    model = trained.config.model(trained.shape, len(trained.classes))
    model.load_state_dict(trained.model.state_dict())
    model.train()
    optimizer = trained.config.optimizer(model)
    step = make_step(model, ops.softmax_cross_entropy, optimizer, compiled=True)
    count = min(trained.config.solver["batch_size"], len(train_set))
    images, labels = asarray(train_set.images[:count]), asarray(train_set.labels[:count])
    for _ in range(STEPS):
        step(images, labels)
    report = step.report()
    threads = report.threads
    works = [
        charts.Work(f"{x.function}: {x.does}", x.flops, x.moved, x.seconds) for x in report.lines
    ]
    return (
        f"<p>A compiled training step on {count} images takes "
        f"{1e3 * sum(line.seconds for line in report.lines):,.2f} ms on {threads} "
        f"thread{'s' if threads > 1 else ''}, measured when this page was written. Each part has "
        "at most the speed that the roof leaves it: that of the arithmetic, or that of memory.</p>"
        f"{charts.roofline(works, roofline.roof(threads))}"
        '<p class="pale">A dot for each part, as large as its share of the time. The roof: '
        "arithmetic at its peak, memory (line) and cache (dashes) at their speed.</p>"
        f"{_parts(report)}"
        "<details><summary>The step as a graph of kernels</summary>"
        f'<div class="scroll">{step.graph._repr_svg_()}</div></details>'
        "<details><summary>The step's source</summary>"
        f"<pre>{_text(step.source)}</pre></details>"
    )


def _parts(report: StepReport) -> str:
    total = sum(line.seconds for line in report.lines)
    rows = []
    for line in report.lines:
        share, near = line.seconds / total, line.fraction
        rows.append([
            ("code", _text(line.function)),
            ("number", f"{1e6 * line.seconds:,.0f}"),
            ("number", f"{share:.0%}"),
            ("", f'<span class="bar"><i style="width:{100 * share:.0f}%"></i></span>'),
            ("number", f"{line.flops / line.seconds / 1e9:,.1f}"),
            ("number", f"{line.moved / line.seconds / 1e9:,.1f}"),
            ("number", f"{near:.0%}"),
            ("code", _text(line.does)),
        ])  # fmt: skip
    head = [("", "part"), ("number", "us"), ("number", "share"), ("", ""), ("number", "GFLOP/s"),
            ("number", "GB/s"), ("number", "of roof"), ("", "what")]  # fmt: skip
    memory = f"{report.planned / 1024:,.0f} KB, without planning {report.unplanned / 1024:,.0f} KB"
    return (
        f'<div class="scroll">{_table(head, rows)}</div>'
        f'<p class="pale">Memory for what passes between kernels: {memory}.</p>'
    )


def _environment(trained: runs.Trained) -> str:
    facts = doctor.environment() | {"threads": f"{get_num_threads()} when this page was written"}
    rows = [[("", _text(name)), ("", _text(fact))] for name, fact in facts.items()]
    return (
        "<p>This is the run's <code>config.toml</code>; <code>numbagrad train config.toml</code> "
        f"repeats it to the bit on such a machine.</p><pre>{_text(trained.config.toml())}</pre>"
        + _table([], rows)
    )


# --------------------------------------------------------------------- html


def _table(head: Iterable[tuple[str, str]], rows: Iterable[list[tuple[str, str]]]) -> str:
    """Return a table of cells with a class and HTML each."""

    def line(tag: str, cells: Iterable[tuple[str, str]]) -> str:
        inner = (f'<{tag} class="{kind}">{cell}</{tag}>' for kind, cell in cells)
        return f"<tr>{''.join(inner)}</tr>"

    body = "".join(line("td", cells) for cells in rows)
    return f"<table><thead>{line('th', head)}</thead><tbody>{body}</tbody></table>"


def _text(value: Any) -> str:
    return html.escape(str(value))
