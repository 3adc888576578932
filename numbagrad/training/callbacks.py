"""What is done beside training: a `Callback` is told what happens and may stop the run."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import whole_number
from ..jit import write_atomically
from .events import EventWriter
from .history import Epoch

if TYPE_CHECKING:
    from .run import Run


class Callback:
    """What `fit` tells of its progress; a subclass defines the methods that it needs.

    Each gets the run, with ``run.model``, ``run.optimizer``, ``run.history``, ``run.steps`` (done
    so far) and ``run.stop(reason)``. What a callback remembers from epoch to epoch belongs into
    ``state_dict``, so that a resumed run goes on with it.
    """

    def begin(self, run: Run) -> None:
        """Be told that training begins, or goes on: ``run.history`` holds the epochs so far."""

    def step(self, run: Run) -> None:
        """Be told that a step was done. The device may still be at work on it."""

    def epoch(self, run: Run, epoch: Epoch) -> None:
        """Be told that an epoch has ended and was evaluated."""

    def interrupt(self, run: Run) -> None:
        """Be told that Ctrl-C ends the run after this step."""

    def end(self, run: Run) -> None:
        """Be told that training is over, by whatever reason."""

    def state_dict(self) -> dict[str, Any]:
        """Return what to remember: numbers, strings, and lists and dicts of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""


class Best:
    """The best value of a number in the history so far.

    Parameters
    ----------
    monitor
        Its name, such as ``"test_accuracy"``; of a name that ends in ``loss`` low values are good,
        of all others high ones. None: the loss on the test set, or without one that of training.
    min_delta
        By how much a value must be better to count.
    """

    def __init__(self, monitor: str | None, min_delta: float = 0.0):
        self.monitor, self.min_delta = monitor, min_delta
        self.value: float | None = None

    def improved(self, epoch: Epoch) -> bool:
        """Look at an epoch; return whether it is better than all before. NaN never is."""
        default = "train_loss" if math.isnan(epoch.test_loss) else "test_loss"
        name = self.monitor or default
        value = epoch.value(name)
        sign = -1 if name.endswith("loss") else 1
        if math.isnan(value):
            return False
        if self.value is not None and sign * (value - self.value) <= self.min_delta:
            return False
        self.value = value
        return True


class EarlyStopping(Callback):
    """Stop when a number has not become better for some epochs.

    The model keeps its last weights; those of the best epoch are in the file that `Checkpoint`
    writes.

    Parameters
    ----------
    patience
        How many epochs in a row may bring nothing, at least 1.
    monitor
        Which number; by default the loss on the test set, or without one that of training. Of a
        name that ends in ``loss`` low values are good, of others high ones.
    min_delta
        By how much it must become better to count.

    Examples
    --------
    >>> import numbagrad as ng
    >>> train, test = ng.data.digits()
    >>> stopping = ng.train.EarlyStopping(patience=1, monitor="test_accuracy", min_delta=1.0)
    >>> history = ng.train.fit(
    ...     ng.models.mlp(image_size=8), train.take(64), test, epochs=9, progress=False,
    ...     callbacks=[stopping])
    >>> len(history.epochs), history.stopped
    (2, 'no better test_accuracy for 1 epoch')
    """

    def __init__(self, patience: int, monitor: str | None = None, min_delta: float = 0.0):
        self.patience = whole_number("EarlyStopping", "patience", patience)
        if not min_delta >= 0:
            raise ValueError(f"EarlyStopping: min_delta must be at least 0, got {min_delta!r}")
        self._best = Best(monitor, min_delta)
        self._waited = 0

    def begin(self, run: Run) -> None:
        """Start to wait, or go on waiting."""
        if not run.history.epochs:
            self._best.value, self._waited = None, 0
        self._stop_after(run)

    def epoch(self, run: Run, epoch: Epoch) -> None:
        """Look whether the number became better."""
        self._waited = 0 if self._best.improved(epoch) else self._waited + 1
        self._stop_after(run)

    def _stop_after(self, run: Run) -> None:
        if self._waited >= self.patience:
            what, s = self._best.monitor or "loss", "s" if self._waited > 1 else ""
            run.stop(f"no better {what} for {self._waited} epoch{s}")

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and how long it has stood."""
        return {"best": self._best.value, "waited": self._waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on waiting."""
        self._best.value, self._waited = state["best"], state["waited"]


class CSVLog(Callback):
    """Keep the history in a file of comma-separated values, a line for each epoch.

    Parameters
    ----------
    path
        It is written anew at each epoch, in one piece.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    def begin(self, run: Run) -> None:
        """Write what there is, so that a file that cannot be written is found now."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._write(run)

    def epoch(self, run: Run, epoch: Epoch) -> None:
        """Write all epochs."""
        self._write(run)

    def _write(self, run: Run) -> None:
        write_atomically(self.path, run.history.csv().encode(), durable=True)


class TensorBoard(Callback):
    """Write event files that TensorBoard shows: ``tensorboard --logdir FOLDER``.

    After each epoch: losses, accuracies, metrics, learning rate and images a second, over the
    number of steps done. A resumed run writes another file, which replaces the steps that are done
    again.

    Parameters
    ----------
    folder
        One for each run; made if missing.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self._writer: EventWriter | None = None

    def begin(self, run: Run) -> None:
        """Open a file."""
        self._writer = EventWriter(self.folder, run.steps + 1)

    def epoch(self, run: Run, epoch: Epoch) -> None:
        """Write the epoch's numbers."""
        values = {
            "loss/train": epoch.train_loss,
            "loss/test": epoch.test_loss,
            "accuracy/train": epoch.train_accuracy,
            "accuracy/test": epoch.test_accuracy,
            "learning rate": run.optimizer.lr,
            "images a second": epoch.images_per_second,
        }
        values |= {f"metrics/{name}": value for name, value in epoch.metrics.items()}
        measured = {tag: value for tag, value in values.items() if not math.isnan(value)}
        self._writer.scalars(run.steps, measured)

    def end(self, run: Run) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


__all__ = ["CSVLog", "Callback", "EarlyStopping", "TensorBoard"]
