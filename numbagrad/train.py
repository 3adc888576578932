"""The training loop, for classifiers of images and anything shaped like them."""

from __future__ import annotations

import csv
import io
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from . import compiler, data, ops, random
from .array import Array, asarray
from .errors import DataError, ShapeError, TraceError, nearest, whole_number
from .layers import BatchNorm1d, Module, as_numpy, one_array
from .optim import SGD, Adam, Optimizer

REFRESH = 0.2  # seconds between two looks at the loss: each waits for the device

Loss = Callable[[Array, Array], Array]


# ------------------------------------------------------------------ history


@dataclass
class Epoch:
    """What one epoch came to; what was not measured is NaN."""

    epoch: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float
    images_per_second: float

    def __str__(self) -> str:
        parts = [f"loss {self.train_loss:.4f}", f"accuracy {percent(self.train_accuracy)}"]
        if not math.isnan(self.test_loss):
            parts.append(f"test loss {self.test_loss:.4f}")
            parts.append(f"test accuracy {percent(self.test_accuracy)}")
        parts.append(f"{self.images_per_second:,.0f} images/s")
        return "  ".join(parts)


@dataclass
class History:
    """What `fit` measured.

    Attributes
    ----------
    epochs : list of Epoch
        One for each epoch, with ``train_loss``, ``train_accuracy``, ``test_loss``,
        ``test_accuracy``, ``seconds`` (of training) and ``images_per_second``. Accuracies are
        shares, 0 to 1; those of training were measured while the weights moved.
    """

    epochs: list[Epoch] = field(default_factory=list)

    @property
    def test_accuracy(self) -> float:
        """The accuracy on the test set after the last epoch."""
        return self.epochs[-1].test_accuracy

    def __repr__(self) -> str:
        seconds = sum(epoch.seconds for epoch in self.epochs)
        last = f", the last: {self.epochs[-1]}" if self.epochs else ""
        return f"History({len(self.epochs)} epochs in {seconds:.1f} s{last})"

    def csv(self) -> str:
        """Return the numbers as a table of comma-separated values, one line for each epoch."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(Epoch.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(epoch) for epoch in self.epochs)
        return text.getvalue()

    def plot(self) -> Any:
        """Draw loss and accuracy over the epochs; return the matplotlib figure."""
        from matplotlib import pyplot

        figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
        number = [epoch.epoch for epoch in self.epochs]
        for panel, what, scale in zip(panels, ("loss", "accuracy"), (1, 100), strict=True):
            for part, style in (("train", "-"), ("test", "--")):
                values = [scale * getattr(epoch, f"{part}_{what}") for epoch in self.epochs]
                panel.plot(number, values, style, label=part)
            panel.set(xlabel="epoch", title=what)
            panel.grid(alpha=0.3)
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.legend(frameon=False)
        panels[0].set(yscale="log")
        panels[1].yaxis.set_major_formatter("{x:g} %")
        for panel in panels:
            panel.spines[["top", "right"]].set_visible(False)
        return figure


def percent(share: float) -> str:
    """Return a share as a percentage, such as ``98.6 %``."""
    return f"{100 * share:.1f} %"


# ---------------------------------------------------------------------- fit


def fit(
    model: Module,
    train: Any,
    test: Any = None,
    *,
    epochs: int,
    batch_size: int = 128,
    optimizer: str | Optimizer = "adam",
    lr: float | None = None,
    schedule: Callable[[float], float] | None = None,
    loss: Loss = ops.softmax_cross_entropy,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = True,
    transform: Callable[[np.ndarray], np.ndarray] | None = None,
    compile: bool = False,
) -> History:
    """Train a model.

    Parameters
    ----------
    model
        Moved to the device, trained in place, and left in evaluation mode.
    train, test
        What `numbagrad.data.DataLoader` takes: a ``Dataset`` or a tuple (images, labels). The
        model is evaluated on ``test``, if given, after each epoch.
    epochs
        How often to go through the training set.
    batch_size
        Images in each step.
    optimizer
        ``"adam"``, ``"sgd"`` (with momentum 0.9), or an optimiser made for this model. It keeps
        its learning rate, whatever the schedule does meanwhile.
    lr
        The learning rate; by default 0.001 for Adam and 0.05 for SGD.
    schedule
        What to multiply the learning rate by, as a function of how much of the training is done
        (0 to 1), such as ``numbagrad.optim.cosine``. By default it stays.
    loss
        ``loss(outputs, labels)``, a scalar.
    seed
        Fixes the order of the images and the numbers that Dropout draws. The same seed gives the
        same bits, on one thread or many.
    device
        ``"cpu"``, ``"cuda"`` or ``"auto"``.
    progress
        Show how it goes: a bar in a terminal, a line in a notebook, a line for each epoch
        elsewhere.
    transform
        Changes each batch of training images: see `numbagrad.data.DataLoader`.
    compile
        Run each step as compiled source: see `numbagrad.compile`. Faster, after some seconds for
        compiling at the first step; results differ by rounding.

    Returns
    -------
    History

    Raises
    ------
    DataError
        If a label has no class in the model's output.
    ShapeError
        If the model does not take such images; the message names the layer.
    TypeError, ValueError
        If an argument is of another kind, or does not fit the others.
    FloatingPointError
        If the loss becomes NaN or infinite; the message names the step.
    TraceError
        With ``compile``, if the model looks at values (``if x.sum() > 0``).

    Examples
    --------
    >>> import numbagrad as ng
    >>> train, test = ng.data.digits()
    >>> model = ng.models.mlp(image_size=8)
    >>> history = fit(model, train.take(256), test, epochs=2, progress=False)
    >>> len(history.epochs)
    2
    """
    _require_kinds("fit", model, loss)
    if schedule is not None and not callable(schedule):
        raise TypeError(
            "fit: schedule must be a function of the share of training done, such as "
            f"numbagrad.optim.cosine, got {schedule!r}"
        )
    epochs = whole_number("fit", "epochs", epochs)
    model.to(device)
    optimizer = _make_optimizer(optimizer, model, lr)
    loader = data.DataLoader(
        train, batch_size, shuffle=True, seed=seed, transform=transform, device=device
    )
    _check_last_batch(model, loader)
    if test is not None:
        _check(model, data.DataLoader(test, batch_size))
    random.seed(seed)
    run = _Run(model, loader, loss, optimizer, schedule, epochs, progress, compile)
    history = History()
    try:
        for number in range(1, epochs + 1):
            meter = run.epoch(number)
            tested = (math.nan, math.nan)
            if test is not None:
                tested = evaluate(model, test, batch_size, loss=loss)
            speed = meter.images / meter.seconds
            epoch = Epoch(number, meter.loss, meter.accuracy, *tested, meter.seconds, speed)
            history.epochs.append(epoch)
            run.display.epoch(f"epoch {number:>{len(str(epochs))}}/{epochs}  {epoch}")
    finally:
        run.display.close()
        optimizer.lr = run.lr
        model.eval()
    return history


def _require_kinds(function: str, model: Module, loss: Loss | None = None) -> None:
    if not isinstance(model, Module):
        raise TypeError(
            f"{function}: model must be a numbagrad.layers.Module, got {type(model).__name__}"
        )
    if loss is not None and not callable(loss):
        raise TypeError(
            f"{function}: loss must be a function of outputs and labels, such as "
            f"numbagrad.softmax_cross_entropy, got {loss!r}"
        )


def _make_optimizer(optimizer: str | Optimizer, model: Module, lr: float | None) -> Optimizer:
    if isinstance(optimizer, Optimizer):
        if lr is not None:
            raise ValueError("fit: the optimizer has its own lr; leave out lr=")
        own = {id(parameter) for parameter in model.parameters()}
        if own.isdisjoint(map(id, optimizer.params)):
            raise ValueError(
                "fit: the optimizer holds no parameter of this model; make it with "
                "model.parameters()"
            )
        return optimizer
    if optimizer == "adam":
        return Adam(model.parameters(), lr=1e-3 if lr is None else lr)
    if optimizer == "sgd":
        return SGD(model.parameters(), lr=0.05 if lr is None else lr, momentum=0.9)
    raise ValueError(
        f"fit: no optimizer is called {optimizer!r}; {nearest(optimizer, ['adam', 'sgd'])}"
    )


def train_step(
    model: Module, loss: Loss, optimizer: Optimizer, images: Array, labels: Array
) -> tuple[Array, Array]:
    """Do one step of training; return the loss and the model's outputs."""
    optimizer.zero_grad()
    outputs = model(images)
    value = loss(outputs, labels)
    value.backward()
    optimizer.step()
    return value, outputs


class _Run:
    """One call of `fit`: what its epochs share."""

    def __init__(
        self,
        model: Module,
        loader: data.DataLoader,
        loss: Loss,
        optimizer: Optimizer,
        schedule: Callable[[float], float] | None,
        epochs: int,
        progress: bool,
        compiled: bool,
    ):
        def step(images: Array, labels: Array) -> tuple[Array, Array]:
            value, outputs = train_step(model, loss, optimizer, images, labels)
            optimizer.zero_grad()  # nobody looks at them: their memory is used again
            return value, outputs

        self.step = compiler.compile(step, dynamic=["batch"]) if compiled else step
        self.model, self.loader, self.optimizer = model, loader, optimizer
        self.schedule, self.lr = schedule, optimizer.lr
        self.total = epochs * len(loader)
        self.display = _display(progress, epochs, len(loader))

    def epoch(self, number: int) -> _Meter:
        """Train for one epoch."""
        self.model.train()
        meter = _Meter(f"in epoch {number}", self.lr)
        started = looked = time.perf_counter()
        for step, (images, labels) in enumerate(self.loader, 1):
            if number == step == 1:
                _check_outputs(self.model, images, self.loader.labels)
            if self.schedule is not None:
                done = (number - 1) * len(self.loader) + step - 1
                self.optimizer.lr = self.lr * self.schedule(done / self.total)
            value, outputs = self.step(images, labels)
            meter.add(value, outputs, labels)
            now = time.perf_counter()
            if now - looked > REFRESH:
                meter.read()
                self.display.step(number, step, meter.loss)
                looked = now
        meter.read()
        meter.seconds = time.perf_counter() - started
        return meter


def _check(model: Module, loader: data.DataLoader) -> None:
    """Check that a data set suits a model, on its first image."""
    _check_outputs(model, loader.images[:1], loader.labels)


def _check_last_batch(model: Module, loader: data.DataLoader) -> None:
    """Refuse a last batch of one image where BatchNorm would take its variance."""
    size, count = loader.batch_size, len(loader.images)
    if (count - 1) % size == 0 and any(isinstance(m, BatchNorm1d) for m in model.modules()):
        raise ValueError(
            f"fit: {count:,} images in batches of batch_size={size} leave a last batch of one, on "
            "which BatchNorm1d cannot train; choose another batch_size, or one image less"
        )


def _check_outputs(model: Module, images: Array | np.ndarray, labels: np.ndarray) -> None:
    """Check that the model takes such images, and that its outputs cover all labels."""
    try:
        outputs = model.output_spec(images.shape, images.dtype)
    except TraceError:  # it looks at values, so give it some
        outputs = _evaluated(model, asarray(images, device=_device_of(model)))
    if outputs.ndim != 2 or labels.dtype.kind not in "iu":
        return  # not a classifier
    classes = outputs.shape[1]
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        first = int(outside.argmax())
        raise DataError(
            f"label {labels[first]} at position {first:,}: the model has {classes} outputs, so "
            f"labels may be 0 to {classes - 1}"
        )


class _Meter:
    """Sums up losses and hits over batches; asks the device for them only now and then."""

    def __init__(self, where: str, lr: float | None = None):
        self._where, self._lr = where, lr
        self._waiting: list[tuple[Array, Array, Array]] = []
        self._loss = 0.0
        self._hits = 0
        self.images = self.steps = 0
        self.seconds = 0.0

    def add(self, loss: Array, outputs: Array, labels: Array) -> None:
        """Note one batch."""
        self._waiting.append((loss, outputs, labels))

    def read(self) -> None:
        """Look at the batches noted since the last time."""
        for loss, outputs, labels in self._waiting:
            self.steps += 1
            value, count = loss.item(), len(labels)
            if not math.isfinite(value):
                hint = "" if self._lr is None else f"; a smaller lr than {self._lr} may help"
                raise FloatingPointError(
                    f"the loss is {value} at step {self.steps} {self._where}{hint}"
                )
            self.images += count
            self._loss += value * count
            self._hits += _hits(outputs, labels)
        self._waiting.clear()

    @property
    def loss(self) -> float:
        return self._loss / self.images

    @property
    def accuracy(self) -> float:
        return self._hits / self.images


def _hits(outputs: Array, labels: Array) -> float:
    """Count the rows whose largest output is at the label; NaN where labels are no classes."""
    if outputs.ndim != 2 or labels.dtype.kind not in "iu":
        return math.nan
    return int((outputs.numpy().argmax(1) == labels.numpy()).sum())


# ------------------------------------------------------- evaluate and predict


def evaluate(
    model: Module, dataset: Any, batch_size: int = 500, *, loss: Loss = ops.softmax_cross_entropy
) -> tuple[float, float]:
    """Return the mean loss and the accuracy (0 to 1) of a model on a data set.

    The model is switched to evaluation for the time being. Errors are those of `fit`.
    """
    _require_kinds("evaluate", model, loss)
    loader = data.DataLoader(dataset, batch_size, device=_device_of(model))
    _check(model, loader)
    meter = _Meter("of the evaluation")
    with model.evaluating():
        for images, labels in loader:
            outputs = model(images)
            meter.add(loss(outputs, labels), outputs, labels)
            meter.read()
    return meter.loss, meter.accuracy


def predict(model: Module, images: Any, batch_size: int = 500) -> np.ndarray:
    """Return the class of each image: where the model's output is largest.

    Parameters
    ----------
    model
        Switched to evaluation for the time being.
    images
        (n, h, w, c), or whatever the model takes; or a data set, with such ``images``.
    batch_size
        Images in each call of the model.

    Returns
    -------
    ndarray of int64, shape (n,)

    Raises
    ------
    ShapeError
        If the model's output is not (n, classes).
    """
    _require_kinds("predict", model)
    batch_size = whole_number("predict", "batch_size", batch_size)
    images = as_numpy(getattr(images, "images", images))
    device = _device_of(model)
    classes = [np.empty(0, np.int64)]
    for start in range(0, len(images), batch_size):
        outputs = _evaluated(model, asarray(images[start : start + batch_size], device=device))
        if outputs.ndim != 2:
            raise ShapeError(f"predict: the output must be (n, classes), got {outputs.shape}")
        classes.append(outputs.numpy().argmax(1))
    return np.concatenate(classes)


def _evaluated(model: Module, images: Array) -> Array:
    with model.evaluating():
        return one_array(model, model(images))


def _device_of(model: Module) -> str:
    return next((parameter.device for parameter in model.parameters()), "cpu")


# ----------------------------------------------------------------- progress


class _Silent:
    """Shows nothing; the other displays show more of what they are told."""

    def step(self, epoch: int, step: int, loss: float) -> None:
        """A look at a running epoch, a few times a second."""

    def epoch(self, line: str) -> None:
        """An epoch has ended."""

    def close(self) -> None:
        """All is done."""


class _Lines(_Silent):
    """A line for each epoch: for files and pipes."""

    def epoch(self, line: str) -> None:
        print(line, flush=True)


class _Notebook(_Lines):
    """One more line that changes while an epoch runs."""

    def __init__(self, epochs: int, steps: int):
        from IPython.display import display

        self._epochs, self._steps = epochs, steps
        self._handle = display(self._text(""), raw=True, display_id=True)

    @staticmethod
    def _text(text: str) -> dict[str, str]:
        return {"text/plain": text}

    def step(self, epoch: int, step: int, loss: float) -> None:
        text = f"epoch {epoch}/{self._epochs}: step {step}/{self._steps}, loss {loss:.4f}"
        self._handle.update(self._text(text), raw=True)

    def close(self) -> None:
        self._handle.update(self._text(""), raw=True)


class _Bar(_Lines):
    """A bar below the lines: for terminals."""

    def __init__(self, epochs: int, steps: int):
        from rich import progress

        self._steps = steps
        self._bar = progress.Progress(
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TextColumn("{task.description}"),
            progress.TimeRemainingColumn(),
            auto_refresh=False,
            transient=True,
        )
        self._task = self._bar.add_task("", total=epochs * steps)
        self._bar.start()

    def step(self, epoch: int, step: int, loss: float) -> None:
        done = (epoch - 1) * self._steps + step
        self._bar.update(self._task, completed=done, description=f"loss {loss:.4f}", refresh=True)

    def epoch(self, line: str) -> None:
        self._bar.console.print(line, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._bar.stop()


def _display(wanted: bool, epochs: int, steps: int) -> _Silent:
    if not wanted:
        return _Silent()
    ipython = sys.modules.get("IPython")
    if ipython is not None and hasattr(ipython.get_ipython(), "kernel"):
        return _Notebook(epochs, steps)
    if sys.stdout.isatty():
        return _Bar(epochs, steps)
    return _Lines()


__all__ = ["Epoch", "History", "evaluate", "fit", "predict", "train_step"]
