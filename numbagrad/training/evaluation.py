"""Losses and hits over batches, and what a model comes to on a data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import data, ops
from ..array import Array, asarray
from ..errors import DataError, ShapeError, TraceError, whole_number
from ..layers import Module, as_numpy, one_array
from .history import Epoch
from .metrics import Accuracy, Metric
from .step import Health, Loss


class Meter:
    """Sums up losses and hits over batches; asks the device for them only now and then.

    Parameters
    ----------
    where
        What to say after the step in an error.
    lr
        The learning rate to blame for a loss that is not finite; None where nothing is learnt.
    metrics
        To be updated with every batch.
    """

    def __init__(self, where: str, lr: float | None = None, metrics: Sequence[Metric] = ()):
        self._where, self._lr, self._metrics = where, lr, list(metrics)
        self._waiting: list[tuple[Array, Array, Health, Array]] = []
        self._accuracy = Accuracy()
        self._is_classifier = True
        self.summed_loss = 0.0
        self.images = self.steps = 0
        self.seconds = 0.0
        for metric in self._metrics:
            metric.reset()

    def add(self, loss: Array, outputs: Array, health: Health, labels: Array) -> None:
        """Note one batch."""
        self._waiting.append((loss, outputs, health, labels))

    def read(self) -> None:
        """Look at the batches noted since the last time.

        Raises
        ------
        FloatingPointError
            At the first step whose loss, or anything in ``health``, is not finite.
        """
        for loss, outputs, health, labels in self._waiting:
            self.steps += 1
            value, count = loss.item(), len(labels)
            self._require_finite(value, health)
            self.images += count
            self.summed_loss += value * count
            self._is_classifier = outputs.ndim == 2 and labels.dtype.kind in "iu"
            if self._is_classifier or self._metrics:
                rows, truth = outputs.numpy(), labels.numpy()
                if self._is_classifier:
                    self._accuracy.update(rows, truth)
                for metric in self._metrics:
                    metric.update(rows, truth)
        self._waiting.clear()

    def _require_finite(self, loss: float, health: Health) -> None:
        bad = next((name for name, flag in health.items() if math.isnan(flag.item())), None)
        if math.isfinite(loss) and bad is None:
            return
        step = f"at step {self.steps} {self._where}"
        if math.isfinite(loss):
            text = f"{bad} is not finite {step}, though the loss is {loss:.4g}"
        else:
            text = f"the loss is {loss} {step}"
            if bad is not None:
                text += f"; the first output that is not finite: {bad}"
            elif health:
                text += "; all layers' outputs are finite"
        if self._lr is not None:
            text += f"; a smaller lr than {self._lr} may help"
            if not health:
                text += ", and nan_guard=True names the layer"
        raise FloatingPointError(text)

    @property
    def loss(self) -> float:
        """The mean loss of the batches looked at."""
        return self.summed_loss / self.images

    @property
    def accuracy(self) -> float:
        """The share of hits in the batches looked at; NaN where labels are no classes."""
        return self._accuracy.value if self._is_classifier else math.nan

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of all batches noted so far, for `load_state_dict`."""
        self.read()
        return {
            "loss": self.summed_loss,
            "hits": self._accuracy.hits,
            "is_classifier": self._is_classifier,
            "images": self.images,
            "steps": self.steps,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from these sums."""
        self.summed_loss, self._is_classifier = state["loss"], state["is_classifier"]
        self._accuracy.hits, self._accuracy.count = state["hits"], state["images"]
        self.images, self.steps = state["images"], state["steps"]
        self.seconds = state["seconds"]


# ------------------------------------------------------- evaluate and predict


def evaluate(
    model: Module,
    dataset: Any,
    batch_size: int = 500,
    *,
    loss: Loss = ops.softmax_cross_entropy,
    metrics: Sequence[Metric] = (),
) -> tuple[float, float]:
    """Return the mean loss and the accuracy (0 to 1) of a model on a data set.

    The model is switched to evaluation for the time being. Errors are those of `fit`.

    Parameters
    ----------
    model, dataset, batch_size, loss
        As in `fit`.
    metrics
        More to measure: they start anew, and hold their ``value`` afterwards.

    Examples
    --------
    >>> import numbagrad as ng
    >>> _, test = ng.data.digits()
    >>> f1 = ng.train.F1()
    >>> loss, accuracy = evaluate(ng.models.mlp(image_size=8), test, metrics=[f1])
    >>> 0 <= f1.value <= 1
    True
    """
    require_kinds("evaluate", model, loss, metrics)
    loader = data.DataLoader(dataset, batch_size, device=device_of(model))
    check(model, loader)
    meter = Meter("of the evaluation", metrics=metrics)
    with model.evaluating():
        for images, labels in loader:
            outputs = model(images)
            meter.add(loss(outputs, labels), outputs, {}, labels)
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
    require_kinds("predict", model)
    batch_size = whole_number("predict", "batch_size", batch_size)
    images = as_numpy(getattr(images, "images", images))
    device = device_of(model)
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


def device_of(model: Module) -> str:
    """Return where a model's parameters are."""
    return next((parameter.device for parameter in model.parameters()), "cpu")


# ------------------------------------------------------------------- checks


def require_kinds(
    function: str, model: Module, loss: Loss | None = None, metrics: Sequence[Metric] = ()
) -> None:
    """Refuse what is no model, loss or metric."""
    if not isinstance(model, Module):
        raise TypeError(
            f"{function}: model must be a numbagrad.layers.Module, got {type(model).__name__}"
        )
    if loss is not None and not callable(loss):
        raise TypeError(
            f"{function}: loss must be a function of outputs and labels, such as "
            f"numbagrad.softmax_cross_entropy, got {loss!r}"
        )
    for metric in metrics:
        if not isinstance(metric, Metric):
            raise TypeError(
                f"{function}: metrics must be objects such as numbagrad.train.F1(), got {metric!r}"
            )
    names = [metric.name for metric in metrics]
    taken = {name for name in names if names.count(name) > 1 or name in Epoch.__dataclass_fields__}
    if taken:
        raise ValueError(
            f"{function}: each metric needs a name of its own, got two called {min(taken)!r}; set "
            "the name of one of them"
        )


def check(model: Module, loader: data.DataLoader) -> None:
    """Check that a data set suits a model, on its first image."""
    check_outputs(model, loader.images[:1], loader.labels)


def check_outputs(model: Module, images: Array | np.ndarray, labels: np.ndarray) -> None:
    """Check that the model takes such images, and that its outputs cover all labels."""
    try:
        outputs = model.output_spec(images.shape, images.dtype)
    except TraceError:  # it looks at values, so give it some
        outputs = _evaluated(model, asarray(images, device=device_of(model)))
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
