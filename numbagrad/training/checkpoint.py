"""Checkpoints: files from which a training goes on, to the bit, as if it had never stopped."""

from __future__ import annotations

import errno
import json
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import weights
from ..errors import DataError, whole_number
from .callbacks import Best, Callback
from .history import Epoch

if TYPE_CHECKING:
    from .run import Run

LAST, BEST = "last.safetensors", "best.safetensors"
VERSION = "1"  # of what a checkpoint holds


class Checkpoint(Callback):
    """Keep the last state of a training, and the weights of its best epoch, in a folder.

    ``best.safetensors`` holds the model's weights, as `numbagrad.weights.save` writes them:
    ``model.load_state_dict(numbagrad.weights.load(path))``.

    ``last.safetensors`` is what ``fit(..., resume=folder)`` goes on from: the bits that follow are
    those of a run that was never stopped, on any number of threads. It is written after each
    epoch, and at Ctrl-C, and holds, in the same format,

    - as arrays: the parameters and buffers of the model (``model.*``), the state of the optimiser
      (``optimizer.*``: moments, step count, learning rate), and seed and count of the random
      numbers drawn (``random.*``);
    - as JSON in the metadata: the history, the steps done in the epoch at hand and its sums of
      losses and hits (with seed and epoch this fixes the batches that follow), what the callbacks
      remember (the best value so far, say), and the settings that must be the same to go on;
    - a checksum of all of that.

    Files are written under another name and renamed when they are on the disk: at any moment there
    is a whole one. What a ``transform`` remembers is not in it: make it a function of its images.
    To go on in the middle of an epoch, the loader walks the batches before that once more.

    Parameters
    ----------
    folder
        Made if missing.
    every
        Write after so many steps, too; by default at the end of each epoch only.
    monitor
        The number by which the best epoch is known; by default the loss on the test set, or without
        one that of training. Of a name that ends in ``loss`` low values are good, of others high.

    Raises
    ------
    OSError
        If a file cannot be written: before the first step if that can be known. The files before
        it stay as they are.
    FloatingPointError
        Instead of writing weights that are NaN or infinite.

    Examples
    --------
    >>> import tempfile
    >>> import numbagrad as ng
    >>> train, test = ng.data.digits()
    >>> model = ng.models.mlp(image_size=8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     keep = [ng.train.Checkpoint(folder)]
    ...     options = {"progress": False, "callbacks": keep}
    ...     history = ng.train.fit(model, train.take(64), test, epochs=1, **options)
    ...     history = ng.train.fit(model, train.take(64), test, epochs=2, resume=folder, **options)
    >>> [epoch.epoch for epoch in history.epochs]
    [1, 2]
    """

    def __init__(
        self, folder: str | os.PathLike, *, every: int | None = None, monitor: str | None = None
    ):
        self.folder = Path(folder)
        self.every = None if every is None else whole_number("Checkpoint", "every", every)
        self._best = Best(monitor)

    def begin(self, run: Run) -> None:
        """Make sure that the folder can be written, and clear away what a kill left of a file."""
        if not run.history.epochs:
            self._best.value = None
        probe = self.folder / f"probe.{os.getpid()}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
            for name in (probe.name, f"{LAST}.*.tmp", f"{BEST}.*.tmp"):
                for path in self.folder.glob(name):
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise _explained(error, self.folder, "no checkpoint can be written") from None

    def step(self, run: Run) -> None:
        """Write after every so many steps."""
        if self.every is not None and run.steps % self.every == 0:
            self._write_last(run)

    def epoch(self, run: Run, epoch: Epoch) -> None:
        """Write after each epoch; the best weights first, for the other file says what is best."""
        if self._best.improved(epoch):
            _require_finite(run, self.folder / BEST)
            notes = {"epoch": str(epoch.epoch), "value": repr(self._best.value)}
            write(self.folder / BEST, run.model.state_dict(), notes)
        self._write_last(run)

    def interrupt(self, run: Run) -> None:
        """Write where the run was stopped."""
        self._write_last(run)

    def _write_last(self, run: Run) -> None:
        notes = run.notes()  # looks at the losses first: a NaN ends the run before anything else
        _require_finite(run, self.folder / LAST)
        arrays = {name: state.numpy() for name, state in run.states().items()}
        text = json.dumps(notes, sort_keys=True)
        write(
            self.folder / LAST,
            arrays,
            {"version": VERSION, "training": text, "checksum": _checksum(arrays, text)},
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the best value."""
        return {"best": self._best.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the best value."""
        self._best.value = state["best"]


def write(path: Path, arrays: Mapping[str, np.ndarray], notes: Mapping[str, str]) -> None:
    """Write a file whole or not at all; an error says which file, and that the old one stays."""
    try:
        weights.save(path, arrays, notes)
    except OSError as error:
        before = "; the one before is as it was" if path.exists() else ""
        raise _explained(error, path, f"the checkpoint was not written{before}") from None


def _explained(error: OSError, path: Path, what: str) -> OSError:
    """Return an error of the same kind that says what it means and what to do."""
    reason = error.strerror or str(error)
    mend = {
        errno.ENOSPC: "free some space on that disk",
        errno.EDQUOT: "your quota on that disk is used up",
        errno.EACCES: "choose a folder that you may write to",
        errno.EPERM: "choose a folder that you may write to",
        errno.EROFS: "choose a folder that you may write to",
        errno.ENOTDIR: "a file is in the place of a folder",
        errno.EEXIST: "a file is in the place of a folder",
    }.get(error.errno, "")
    text = f"{what} ({reason})" + (f": {mend}" if mend else "")
    return type(error)(error.errno, text, os.fspath(path))


def _require_finite(run: Run, path: Path) -> None:
    for name, parameter in run.model.named_parameters():
        if not np.isfinite(parameter.numpy()).all():
            raise FloatingPointError(
                f"after step {run.steps} the parameter {name!r} is not finite, so {path} was not "
                "written; nan_guard=True finds the layer, and a smaller lr or clip_norm may help"
            )


def _checksum(arrays: Mapping[str, np.ndarray], notes: str) -> str:
    crc = zlib.crc32(notes.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        crc = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), crc)
        crc = zlib.crc32(array.tobytes(), crc)
    return f"{crc:08x}"


def read(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays and notes of the last checkpoint in a folder, or of such a file.

    Raises
    ------
    DataError
        If there is none, or it is truncated, damaged or of another kind.
    """
    path = Path(path)
    if path.is_dir():
        path = path / LAST
    if not path.exists():
        raise DataError(
            f"{path}: no checkpoint to go on from; leave out resume= to start, with "
            "callbacks=[numbagrad.train.Checkpoint(folder)] to have one"
        )
    arrays = weights.load(path)
    try:
        notes = weights.read_metadata(path)
        version = notes.get("version")
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path}: its notes are damaged ({error})") from None
    if version is None or not {"training", "checksum"} <= notes.keys():
        raise DataError(
            f"{path}: holds weights, but no state of a training; resume= takes the folder, or the "
            f"{LAST}, that numbagrad.train.Checkpoint writes"
        )
    if version != VERSION:
        raise DataError(
            f"{path}: a checkpoint of version {version}; this numbagrad reads version {VERSION}"
        )
    if _checksum(arrays, notes["training"]) != notes["checksum"]:
        raise DataError(f"{path}: damaged, its checksum is not that of its content")
    return arrays, json.loads(notes["training"])


def require_same(path: str | os.PathLike, settings: dict, before: dict) -> None:
    """Refuse to go on with other settings than those that a checkpoint was made with.

    Raises
    ------
    DataError
        Naming each setting that differs, with both values.
    """
    settings = json.loads(json.dumps(settings))  # tuples become lists, as in the file
    differing = [
        f"{name} is {settings.get(name)!r}, was {before.get(name)!r}"
        for name in sorted(settings.keys() | before.keys())
        if not _same(settings.get(name), before.get(name))
    ]
    if differing:
        raise DataError(
            f"{os.fspath(path)}: a run with other settings, which cannot go on to the bit: "
            + "; ".join(differing)
        )


def _same(a: Any, b: Any) -> bool:
    both = isinstance(a, float) and isinstance(b, float)
    return a == b or (both and math.isnan(a) and math.isnan(b))


__all__ = ["Checkpoint"]
