"""The command line: what each command takes, and how it fails. What they do is in ``commands/``."""

from __future__ import annotations

import errno
import functools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from . import models, optim
from .commands import config, runs
from .commands import demo as demonstration
from .commands import doctor as diagnosis
from .commands.config import DATA, OPTIMIZERS, SCHEDULES, Config
from .device import DEVICES
from .dispatch import set_num_threads
from .errors import (
    ConfigError,
    DataError,
    DeviceError,
    DTypeError,
    GraphError,
    ShapeError,
    TraceError,
    nearest,
)
from .train import History
from .train import evaluate as measure
from .training.history import percent

INTERRUPTED = 130  # what a shell calls a command that Ctrl-C ended
OURS = (ConfigError, DataError, DeviceError, DTypeError, GraphError, ShapeError, TraceError)

app = typer.Typer(
    help="Arrays, gradients and small networks; every operation is a Numba kernel you can read.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _command(function: Callable) -> Callable:
    """Register a command that turns the errors a person can mend into one line."""

    @app.command()
    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except (*OURS, FloatingPointError, OSError, ModuleNotFoundError) as error:
            print(f"numbagrad: {_one_line(error)}", file=sys.stderr)
            raise typer.Exit(1) from None

    return command


def _one_line(error: Exception) -> str:
    """Return what went wrong, with what would mend it if that is known."""
    text = " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError):
        return f'{text}; it comes with: pip install "numbagrad[plot]"'
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}"
        if error.errno == errno.ENOSPC and "free some space" not in text:
            text += "; free some space on that disk. What was there before is as it was"
    return text


def _one_of(known: Iterable[str]) -> Callable[[str | None], str | None]:
    """Return a check that an argument is a known name."""

    def check(name: str | None) -> str | None:
        if name is None:
            return None
        key = name.lower().replace("_", "-")
        if key not in known:
            raise typer.BadParameter(f"{name!r}: {nearest(key, known)}")
        return key

    return check


def _threads(count: int | None) -> int | None:
    if count is not None:
        try:
            set_num_threads(count)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    return count


def _learning_rate(lr: float | None) -> float | None:
    if lr is not None and not 0 <= lr <= optim.LARGEST:
        raise typer.BadParameter(f"{lr} is not a number of at least 0 and finite in float32")
    return lr


def _folder(text: str) -> Any:
    """Return an option for a folder to write to: one that is there, or can be made."""
    return typer.Option(file_okay=False, writable=True, help=text)


def _choice(known: Iterable[str], text: str, *names: str) -> Any:
    return typer.Option(*names, callback=_one_of(known), help=f"{text}: {'|'.join(known)}")


_SOLVER = {name: setting.default for name, setting in config.SETTINGS["solver"].items()}

Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder given as train --out.")]
Best = Annotated[bool, typer.Option("--best", help="The best epoch's weights, not the last's.")]
Seed = Annotated[int | None, typer.Option(min=0, max=2**63 - 1, help="Fixes all that is random.")]
Threads = Annotated[int | None, typer.Option(callback=_threads, help="CPU threads.")]
Batch = Annotated[
    int | None, typer.Option(min=1, help=f"Images in each step; else {_SOLVER['batch_size']}.")
]
Rule = Annotated[
    str | None, _choice(OPTIMIZERS, f"Optimiser, {_SOLVER['optimizer']} if none is given")
]
Compile = Annotated[bool | None, typer.Option("--compile/--no-compile", help="Compile the step.")]


# -------------------------------------------------------------------- train


@_command
def train(
    model: Annotated[
        str | None, typer.Argument(help=f"{'|'.join(models.NAMES)}, or a file such as net.toml.")
    ] = None,
    dataset: Annotated[str | None, _choice(DATA, "Data set, else digits", "--data")] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help=f"Times through the images; else {_SOLVER['epochs']}."),
    ] = None,
    batch_size: Batch = None,
    lr: Annotated[
        float | None,
        typer.Option(callback=_learning_rate, help="Learning rate; else 0.003, or 0.05 for sgd."),
    ] = None,
    optimizer: Rule = None,
    schedule: Annotated[
        str | None, _choice(SCHEDULES, f"What becomes of lr, else {_SOLVER['schedule']}")
    ] = None,
    seed: Seed = None,
    device: Annotated[str | None, _choice((*DEVICES, "auto"), "Else cpu")] = None,
    threads: Threads = None,
    compile: Compile = None,
    out: Annotated[
        Path | None, _folder("Folder for weights, numbers, curves, checkpoints and config.toml.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with the training in this folder.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run that is in the --out folder.")
    ] = False,
) -> None:
    """Train a model and say how often it is right on images that it has not seen.

    MODEL is a name, or a TOML file with net, data and solver; options go before what the file says.
    """
    given = {
        "data": {"name": dataset},
        "solver": {
            "epochs": epochs,
            "batch_size": batch_size,
            "lr": lr,
            "optimizer": optimizer,
            "schedule": schedule,
            "seed": seed,
            "device": device,
            "compile": compile,
        },
    }
    if resume is not None:
        others = {"MODEL": model, "--out": out, "--overwrite": overwrite or None}
        _require_alone(given, others)
        _say_accuracy(runs.resume(resume))
        return
    if model is None:
        raise typer.BadParameter("give a MODEL, or --resume RUN", param_hint="MODEL")
    _say_accuracy(runs.start(_config(model, given), out, overwrite=overwrite))


def _require_alone(given: dict[str, dict[str, Any]], others: dict[str, Any]) -> None:
    """Refuse options that a run which goes on cannot change."""
    options = {f"--{n.replace('_', '-')}": v for n, v in given["solver"].items()}
    options |= {"--data": given["data"]["name"], **others}
    for name, value in options.items():
        if value is not None:
            raise typer.BadParameter(
                "leave it out: a run goes on with the settings in its config.toml", param_hint=name
            )


def _config(model: str, given: dict[str, dict[str, Any]]) -> Config:
    """Return the training that a name or a file and some options describe."""
    changes = {
        name: {key: value for key, value in values.items() if value is not None}
        for name, values in given.items()
    }
    if model.endswith(".toml"):
        return config.read(model, changes)
    return config.parse_dict({"net": {"model": _model_name(model)}, **changes})


def _model_name(name: str) -> str:
    return _one_of(models.NAMES)(name)


def _say_accuracy(history: History) -> None:
    print(f"test accuracy {percent(history.test_accuracy)}")
    if history.stopped == "interrupted":
        raise typer.Exit(INTERRUPTED)


# --------------------------------------------------------------- what is trained


@_command
def evaluate(run: Run, best: Best = False, threads: Threads = None) -> None:
    """Measure a trained model on its test images."""
    trained = runs.load(run, best=best)
    _, test_set = runs.load_data(trained.config)
    loss, accuracy = measure(trained.model, test_set)
    print(f"{trained.path}: {len(test_set):,} test images of {trained.config.data['name']}")
    print(f"test loss {loss:.4f}")
    print(f"test accuracy {percent(accuracy)}")


@_command
def predict(
    run: Run,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="PNG, JPEG, ...; of any size.")
    ],
    top: Annotated[int, typer.Option(min=1, help="How many classes to show.")] = 3,
    invert: Annotated[bool, typer.Option("--invert", help="Swap black and white.")] = False,
    best: Best = False,
) -> None:
    """Say what is on pictures: the likeliest classes, each with its probability."""
    from .commands import prediction

    prediction.show(runs.load(run, best=best), images, top, invert)


@_command
def report(
    run: Run,
    out: Annotated[
        Path | None, typer.Option(dir_okay=False, help="The file; else report.html in the folder.")
    ] = None,
    best: Best = False,
) -> None:
    """Write a page about a run: one HTML file that needs nothing else."""
    from .commands import report as page

    path = run / "report.html" if out is None else out
    page.write(path, run, runs.load(run, best=best))
    print(f"written {path}")


@_command
def summary(
    model: Annotated[
        str, typer.Argument(help=f"{'|'.join(models.NAMES)}, a file such as net.toml, or a run.")
    ],
    dataset: Annotated[
        str | None, _choice(DATA, "Data set whose images it takes, else digits", "--data")
    ] = None,
) -> None:
    """Show a model's layers, what they give, and what they cost."""
    given = {"data": {"name": dataset}}
    is_run = Path(model).is_dir()
    settings = runs.read_config(Path(model)) if is_run else _config(model, given)
    facts = DATA[settings.data["name"]]
    print(settings.model(facts.shape, facts.classes).summary(facts.shape))


# ---------------------------------------------------------------- the machine


@_command
def warmup(
    model: Annotated[
        str, typer.Argument(help=f"{'|'.join(models.NAMES)}, or a file such as net.toml.")
    ],
    dataset: Annotated[str | None, _choice(DATA, "Data set, else digits", "--data")] = None,
    batch_size: Batch = None,
    optimizer: Rule = None,
    compile: Compile = None,
) -> None:
    """Compile what a training takes, so that it starts at once. No data are read."""
    solver = {"batch_size": batch_size, "optimizer": optimizer, "compile": compile}
    seconds = runs.warm_up(_config(model, {"data": {"name": dataset}, "solver": solver}))
    print(f"warm after {seconds:.1f} s")


@_command
def demo(
    seed: Seed = 0,
    out: Annotated[Path, _folder("Folder for the pictures.")] = Path("runs/demo"),
) -> None:
    """Train LeNet on the digits that come with numbagrad, and draw how it went."""
    _say_accuracy(demonstration.run(seed, out))


@_command
def doctor() -> None:
    """Say what numbagrad finds on this machine, and try a kernel on each device."""
    facts = diagnosis.facts()
    for name, fact in facts.items():
        print(f"{name:>12}  {fact}".replace("\n", "\n" + " " * 14))
    if any(fact.startswith(diagnosis.FAILED) for fact in facts.values()):
        raise typer.Exit(1)
