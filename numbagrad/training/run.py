"""One training, from the first step to the last; what `numbagrad.train.fit` sets up and starts."""

from __future__ import annotations

import math
import numbers
import os
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import Any

from .. import data, random
from ..array import Array, State
from ..layers import Module, load_states
from ..ops.sampling import default_generator
from ..optim import Optimizer, Schedule
from . import checkpoint
from .callbacks import Callback
from .evaluation import Meter, check_outputs, device_of, evaluate
from .history import Epoch, History
from .metrics import Metric
from .monitors import Monitor
from .progress import display_for
from .step import Loss, make_step

REFRESH = 0.2  # seconds between two looks at the loss: each waits for the device


class Run:
    """One call of `fit`.

    Attributes
    ----------
    model, optimizer, loader
        What is trained, by what, and on what.
    history : History
        The epochs so far.
    lr : float
        What the schedule multiplies.
    """

    def __init__(
        self,
        model: Module,
        loader: data.DataLoader,
        test: Any,
        optimizer: Optimizer,
        loss: Loss,
        *,
        epochs: int,
        schedule: Schedule | None,
        metrics: Sequence[Metric],
        callbacks: Sequence[Callback],
        progress: bool,
        **step_options: Any,
    ):
        self.model, self.optimizer, self.loader = model, optimizer, loader
        self.history = History()
        self.lr = optimizer.lr
        self._loss, self._test, self._metrics = loss, test, list(metrics)
        self._schedule, self._epochs = schedule, epochs
        # Monitors come first, so that the others see what they measured. Checkpoints come last, so
        # that they hold what the others have just noted.
        self._callbacks = sorted(
            callbacks,
            key=lambda c: isinstance(c, checkpoint.Checkpoint) - isinstance(c, Monitor),
        )
        self._step = make_step(model, loss, optimizer, **step_options)
        self._batch = 0  # batches done in this epoch
        self._meter = self._new_meter()
        self._display = display_for(progress, epochs, len(loader))
        self._settings = _settings(optimizer, loader, step_options)
        if schedule is not None:
            self._settings["epochs"] = epochs  # which the schedule depends on

    # ------------------------------------------------------------- where it is

    @property
    def steps(self) -> int:
        """How many steps were done, those before a resume too."""
        return len(self.history.epochs) * len(self.loader) + self._batch

    def summed_loss(self) -> tuple[float, int]:
        """Return the sum of the losses of this epoch's images so far, and how many they are.

        It waits for the device.
        """
        self._meter.read()
        return self._meter.summed_loss, self._meter.images

    def mean_loss(self, images: Array, labels: Array) -> Array:
        """Return the loss of the model on a batch, as training computes it."""
        return self._loss(self.model(images), labels)

    def stop(self, reason: str) -> None:
        """End the training after this epoch; the history tells the reason."""
        self.history.stopped = reason

    def states(self) -> dict[str, State]:
        """Return all arrays that decide what comes next, by name."""
        states: dict[str, State] = {
            f"model.{name}": state for name, state in self.model._named_states().items()
        }
        for name, state in self.optimizer._states().items():
            states[f"optimizer.{name}"] = state
        device = device_of(self.model)
        generators = {"random": default_generator}
        for prefix, module in self.model.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, random.Generator):
                    generators[f"random.{prefix}.{name}"] = value
        for name, generator in generators.items():
            states[f"{name}.seed"], states[f"{name}.count"] = generator.state(device)
        return states

    def notes(self) -> dict[str, Any]:
        """Return all else that decides what comes next, and the history."""
        return {
            "settings": self._settings,
            "history": [asdict(epoch) for epoch in self.history.epochs],
            "batch": self._batch,
            "meter": self._meter.state_dict(),
            "callbacks": {
                name: callback.state_dict() for name, callback in self._named_callbacks()
            },
        }

    def _named_callbacks(self) -> Iterator[tuple[str, Callback]]:
        """Yield the callbacks with their kind and which of that kind they are."""
        counts: dict[str, int] = {}
        for callback in self._callbacks:
            kind = type(callback).__name__
            counts[kind] = counts.get(kind, 0) + 1
            yield f"{kind}.{counts[kind]}", callback

    def resume(self, path: str | os.PathLike) -> None:
        """Go to where a checkpoint was written.

        Raises
        ------
        DataError
            If it is missing, damaged, or of another run; then nothing has been changed.
        """
        arrays, notes = checkpoint.read(path)
        checkpoint.require_same(path, self._settings, notes["settings"])
        load_states(self.states(), arrays, strict=True)
        self.history.epochs = [Epoch(**epoch) for epoch in notes["history"]]
        self._batch = notes["batch"]
        self._meter = self._new_meter()
        self._meter.load_state_dict(notes["meter"])
        for name, callback in self._named_callbacks():
            if name in notes["callbacks"]:
                callback.load_state_dict(notes["callbacks"][name])

    def _new_meter(self) -> Meter:
        return Meter(f"in epoch {len(self.history.epochs) + 1}", self.lr)

    # --------------------------------------------------------------- training

    def train(self) -> History:
        """Do what is left to do."""
        try:
            with _interrupts() as interrupted:
                for callback in self._callbacks:
                    callback.begin(self)
                while len(self.history.epochs) < self._epochs and not self.history.stopped:
                    self._train_epoch(interrupted)
                    if self.history.stopped:
                        break
                    self._end_epoch()
                    if interrupted():
                        self.stop("interrupted")  # the checkpoint has just been written
            if self.history.stopped:
                self._display.line(f"stopped: {self.history.stopped}")
        finally:
            self._display.close()
            self.optimizer.lr = self.lr
            self.model.eval()
            for callback in self._callbacks:
                callback.end(self)
        return self.history

    def _train_epoch(self, interrupted: Callable[[], bool]) -> None:
        """Do the steps that are left of an epoch."""
        number, meter = len(self.history.epochs) + 1, self._meter
        self.model.train()
        self.loader.epoch = number - 1
        started = time.perf_counter() - meter.seconds
        looked = time.perf_counter()
        total = self._epochs * len(self.loader)
        with closing(iter(self.loader)) as batches:
            for step, (images, labels) in enumerate(batches, 1):
                if step == 1 and not self.steps:
                    check_outputs(self.model, images, self.loader.labels)
                if step <= self._batch:
                    continue  # done before the checkpoint
                if self._schedule is not None:
                    self.optimizer.lr = self.lr * self._schedule(self.steps / total)
                meter.add(*self._step(images, labels), labels)
                self._batch = step
                now = time.perf_counter()
                meter.seconds = now - started
                if now - looked > REFRESH:
                    meter.read()
                    self._display.step(number, step, meter.loss)
                    looked = now
                for callback in self._callbacks:
                    callback.step(self)
                if interrupted():
                    for callback in self._callbacks:
                        callback.interrupt(self)
                    self.stop("interrupted")
                    return
        meter.read()
        meter.seconds = time.perf_counter() - started

    def _end_epoch(self) -> None:
        """Evaluate, note and tell."""
        number, meter = len(self.history.epochs) + 1, self._meter
        tested, metrics = (math.nan, math.nan), {}
        if self._test is not None:
            tested = evaluate(
                self.model,
                self._test,
                self.loader.batch_size,
                loss=self._loss,
                metrics=self._metrics,
            )
            values = {metric.name: metric.value for metric in self._metrics}
            metrics = {name: float(x) for name, x in values.items() if isinstance(x, numbers.Real)}
        speed = meter.images / meter.seconds
        epoch = Epoch(number, meter.loss, meter.accuracy, *tested, meter.seconds, speed, metrics)
        self.history.epochs.append(epoch)
        self._batch = 0
        self._meter = self._new_meter()
        self._display.line(f"epoch {number:>{len(str(self._epochs))}}/{self._epochs}  {epoch}")
        for callback in self._callbacks:
            callback.epoch(self, epoch)


def _settings(optimizer: Optimizer, loader: data.DataLoader, step: dict[str, Any]) -> dict:
    """Return what must be the same for a run to go on to the bit."""
    numbers = {
        name: value
        for name, value in vars(optimizer).items()
        if isinstance(value, (bool, int, float, tuple)) and not name.startswith("_")
    }
    return {
        "batch_size": loader.batch_size,
        "images": list(loader.images.shape),
        "labels": f"{zlib.crc32(loader.labels.tobytes()):08x}",
        "seed": loader.seed,
        "optimizer": type(optimizer).__name__,
        "lr": optimizer.lr,
        **numbers,
        **{name: value for name, value in step.items() if name != "nan_guard"},
    }


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Note Ctrl-C rather than raise, so that no step is cut in half; a second one raises.

    Only Python's own handling is replaced, and only on the main thread, where signals arrive.
    """
    count = 0

    def note(signum: int, frame: Any) -> None:
        nonlocal count
        count += 1
        if count > 1:
            raise KeyboardInterrupt

    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield lambda: count > 0
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


__all__ = ["Run"]
