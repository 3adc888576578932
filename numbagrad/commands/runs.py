"""A run's folder: what a training leaves there, how it goes on, and how it is opened again."""

from __future__ import annotations

import csv
import io
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import data, jit, random, train, weights
from ..array import asarray
from ..errors import DataError
from ..layers import Module
from ..training.checkpoint import BEST, LAST
from .config import DATA, SCHEDULES, Config, DataFacts, read

MODEL, METRICS, CURVES = "model.safetensors", "metrics.csv", "curves.png"
CONFIG, CHECKPOINTS = "config.toml", "checkpoints"


# ----------------------------------------------------------------- training


def start(config: Config, folder: Path | None, *, overwrite: bool = False) -> train.History:
    """Train, into a folder if there is one.

    Raises
    ------
    DataError
        If the folder holds a run already, and is not to be overwritten.
    OSError
        If a file cannot be written: before training where that can be known.
    """
    if folder is not None:
        if (folder / CONFIG).exists() and not overwrite:
            raise DataError(
                f"{folder} holds a run already: give another folder, --resume {folder} to go on "
                "with it, or --overwrite"
            )
        folder.mkdir(parents=True, exist_ok=True)
    return _train(config, folder)


def _clear(folder: Path) -> None:
    """Take away what a run wrote, the config last; leave everything else."""
    names = (f"{CHECKPOINTS}/{LAST}", f"{CHECKPOINTS}/{BEST}", MODEL, METRICS, CURVES, CONFIG)
    for name in names:
        (folder / name).unlink(missing_ok=True)


def resume(folder: Path) -> train.History:
    """Go on with the training in a folder, with the very bits of one that never stopped."""
    config = read_config(folder)
    begun = (folder / CHECKPOINTS / LAST).exists()
    return _train(config, folder, resume=folder / CHECKPOINTS if begun else None)


def _train(config: Config, folder: Path | None, resume: Path | None = None) -> train.History:
    solver = config.solver
    train_set, test_set = load_data(config)
    model = new_model(config, train_set)
    if folder is not None and resume is None:
        if (folder / CONFIG).exists():
            _clear(folder)  # no earlier: there are data and a net to replace it
        jit.write_atomically(folder / CONFIG, config.toml().encode(), durable=True)
    numbers = sum(parameter.size for parameter in model.parameters())
    print(
        f"{config.title} with {numbers:,} parameters, {len(train_set):,} images of "
        f"{config.data['name']}"
    )
    history = train.fit(
        model.to(solver["device"]),
        train_set,
        test_set,
        optimizer=config.optimizer(model),
        transform=config.transform(train_set.images.shape[1:]),
        callbacks=_callbacks(config, folder),
        resume=resume,
        **fit_options(config),
    )
    if folder is not None:
        save(folder, model, history, _notes(config, train_set))
        if history.stopped == "interrupted":
            print(f"to go on: numbagrad train --resume {folder}")
    return history


def fit_options(config: Config) -> dict[str, Any]:
    """Return the settings of the solver that `numbagrad.train.fit` takes as they are."""
    solver = config.solver
    names = ("epochs", "batch_size", "seed", "device", "compile", "clip_norm", "clip_value",
             "nan_guard")  # fmt: skip
    return {name: solver[name] for name in names} | {"schedule": SCHEDULES[solver["schedule"]]}


def _callbacks(config: Config, folder: Path | None) -> list[train.Callback]:
    callbacks: list[train.Callback] = []
    if config.solver["patience"] is not None:
        callbacks.append(train.EarlyStopping(config.solver["patience"]))
    if folder is not None:
        callbacks.append(train.CSVLog(folder / METRICS))
        callbacks.append(train.Checkpoint(folder / CHECKPOINTS))
    return callbacks


def load_data(config: Config) -> tuple[data.Dataset, data.Dataset]:
    """Return the training set and the test set, as much of them as is wanted."""
    train_set, test_set = data.load(config.data["name"])
    for_training, for_test = config.data["train_images"], config.data["test_images"]
    return (
        train_set if for_training is None else train_set.take(for_training),
        test_set if for_test is None else test_set.take(for_test),
    )


def new_model(config: Config, dataset: data.Dataset) -> Module:
    """Build the net for a data set, with the weights that the seed gives it."""
    random.seed(config.solver["seed"])
    return config.model(dataset.images.shape[1:], len(dataset.classes))


def _notes(config: Config, dataset: data.Dataset) -> dict[str, str]:
    """Return what one must know of a model's weights to use them without the data."""
    return {
        "model": config.title,
        "data": config.data["name"],
        "seed": str(config.solver["seed"]),
        "shape": json.dumps(dataset.images.shape[1:]),
        "classes": json.dumps(dataset.classes),
    }


def save(folder: Path, model: Module, history: train.History, notes: dict[str, str]) -> None:
    """Write the weights, the numbers and the curves of a training that is over."""
    weights.save(folder / MODEL, model, notes)
    jit.write_atomically(folder / METRICS, history.csv().encode())
    saved = [MODEL, METRICS]
    if history.epochs:
        try:
            jit.write_atomically(folder / CURVES, _curves(history))
            saved.append(CURVES)
        except ModuleNotFoundError as error:
            print(f'no {CURVES} ({error}); to have one: pip install "numbagrad[plot]"')
    print(f"saved {', '.join(saved)} in {folder}")


def _curves(history: train.History) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, picture = history.plot(), io.BytesIO()
    figure.savefig(picture, dpi=150)
    pyplot.close(figure)
    return picture.getvalue()


# ------------------------------------------------------------------ opening


@dataclass(frozen=True)
class Trained:
    """A trained model, and what one must know to use it.

    Attributes
    ----------
    config
        What it was trained by.
    model
        In evaluation mode, on the CPU.
    path
        The file that its weights are from.
    shape, classes
        Of the images that it takes, and the names of what it tells apart.
    """

    config: Config
    model: Module
    path: Path
    shape: tuple[int, int, int]
    classes: tuple[str, ...]


def read_config(folder: Path) -> Config:
    """Return what a run was started with.

    Raises
    ------
    DataError
        If the folder holds no run.
    """
    if not (folder / CONFIG).exists():
        raise DataError(
            f"{folder}: no run is here ({CONFIG} is missing); numbagrad train --out {folder} "
            "makes one"
        )
    return read(folder / CONFIG)


def load(folder: Path, *, best: bool = False) -> Trained:
    """Open what a run trained.

    Parameters
    ----------
    folder
        Of the run.
    best
        Take the weights of the best epoch, rather than those of the last. Of a training that did
        not come to its end, the last checkpoint's.

    Raises
    ------
    DataError
        If there is no run, or it holds no weights yet, or they are damaged or of another net.
    """
    config = read_config(folder)
    candidates = [CHECKPOINTS + "/" + BEST] if best else [MODEL, CHECKPOINTS + "/" + LAST]
    path = next((folder / name for name in candidates if (folder / name).exists()), None)
    if path is None:
        raise DataError(
            f"{folder}: no weights yet ({' and '.join(candidates)} missing); go on with: "
            f"numbagrad train --resume {folder}"
        )
    state, notes = weights.load(path), weights.read_metadata(path)
    if path.name == LAST:
        prefix = "model."
        state = {n.removeprefix(prefix): x for n, x in state.items() if n.startswith(prefix)}
    if "classes" in notes:
        shape, classes = tuple(json.loads(notes["shape"])), tuple(json.loads(notes["classes"]))
    else:  # a checkpoint
        dataset, _ = load_data(config)
        shape, classes = dataset.images.shape[1:], dataset.classes
    model = config.model(shape, len(classes))
    try:
        model.load_state_dict(state)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return Trained(config, model.eval(), path, shape, classes)


def read_history(folder: Path) -> train.History:
    """Return what a run measured.

    Raises
    ------
    DataError
        If the file is damaged.
    """
    path = folder / METRICS
    if not path.exists():
        return train.History()
    own = [name for name in train.Epoch.__dataclass_fields__ if name != "metrics"]
    try:
        rows = [
            {name: float(value) for name, value in row.items()}
            for row in csv.DictReader(io.StringIO(path.read_text()))
        ]
        return train.History(
            [
                train.Epoch(
                    int(row["epoch"]),
                    *(row[name] for name in own[1:]),
                    {name: value for name, value in row.items() if name not in own},
                )
                for row in rows
            ]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: damaged ({error})") from None


def outputs(model: Module, images: np.ndarray, batch_size: int = 500) -> np.ndarray:
    """Return a model's outputs for any number of images."""
    with model.evaluating():
        rows = [
            model(asarray(images[first : first + batch_size])).numpy()
            for first in range(0, len(images), batch_size)
        ]
    return np.concatenate(rows)


def softmax(outputs: np.ndarray) -> np.ndarray:
    """Return the probabilities of each row."""
    powers = np.exp(outputs - outputs.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


# ------------------------------------------------------------------ warm-up


def warm_up(config: Config) -> float:
    """Compile what a training takes, on noise in the shape of its data; return the seconds.

    Two batches will do: a whole one, and one as short as the last of an epoch is.
    """
    started = time.perf_counter()
    facts, solver = DATA[config.data["name"]], config.solver
    random.seed(solver["seed"])
    model = config.model(facts.shape, facts.classes).to(solver["device"])
    sizes = config.data["train_images"] or facts.train, config.data["test_images"] or facts.test
    train_set, test_set = (_noise(facts, size, solver["batch_size"]) for size in sizes)
    still = replace(config, solver={**solver, "lr": 0.0, "epochs": 1})
    train.fit(
        model,
        train_set,
        test_set,
        optimizer=still.optimizer(model),
        transform=config.transform(facts.shape),
        progress=False,
        **fit_options(still),
    )
    return time.perf_counter() - started


def _noise(facts: DataFacts, size: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a whole batch and the rest that a set of this size leaves, or all of a small set."""
    count = min(size, batch_size + size % batch_size)
    rng = np.random.default_rng(0)
    return rng.random((count, *facts.shape), np.float32), rng.integers(facts.classes, size=count)
