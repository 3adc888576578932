"""The training loop, for classifiers of images and anything shaped like them.

What it is made of is in ``training/``; all of its public names are here.
"""

from __future__ import annotations

import numbers
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import data, ops, random
from .errors import whole_number
from .layers import BatchNorm1d, Module
from .optim import Optimizer
from .training.callbacks import Callback, CSVLog, EarlyStopping, TensorBoard
from .training.checkpoint import Checkpoint
from .training.evaluation import check, evaluate, predict, require_kinds
from .training.finder import LearningRates, find_lr
from .training.history import Epoch, History
from .training.live import LiveCurves
from .training.losses import WeightedCrossEntropy, balanced_weights
from .training.metrics import F1, Accuracy, Confusion, Metric, TopK
from .training.monitors import DeadUnits, GradientNorms
from .training.run import Run
from .training.step import Loss, make_optimizer, train_step


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
    validation_split: float = 0.0,
    metrics: Sequence[Metric] = (),
    callbacks: Sequence[Callback] = (),
    clip_norm: float | None = None,
    clip_value: float | None = None,
    nan_guard: bool = False,
    resume: str | os.PathLike | None = None,
) -> History:
    """Train a model.

    Ctrl-C ends it after the step at hand: the history so far is returned, and a `Checkpoint` among
    the callbacks is written. A second Ctrl-C stops at once.

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
        (0 to 1), such as ``numbagrad.optim.cosine``, or what ``step_decay``, ``one_cycle`` and
        ``warmup`` there return. By default it stays.
    loss
        ``loss(outputs, labels)``, a scalar; `WeightedCrossEntropy` gives classes weights.
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
    validation_split
        Instead of ``test``: the share of the training images to keep back, chosen by the seed.
    metrics
        Measured on the test set after each epoch, beside loss and accuracy: `TopK`, `F1`,
        `Confusion`, or your own `Metric`. Those that are numbers go into the history; all hold
        their last ``value``.
    callbacks
        `EarlyStopping`, `Checkpoint`, `CSVLog`, `TensorBoard`, `LiveCurves`, `GradientNorms`,
        `DeadUnits`, or your own `Callback`.
    clip_norm, clip_value
        Limit the norm of all gradients together, or each number in them: see
        ``numbagrad.optim.clip_by_norm`` and ``clip_by_value``. With both, values come first.
    nan_guard
        Look at each layer's output and each gradient at each step, which takes some time, so that
        the error about the first value that is not finite names the layer.
    resume
        The folder of a `Checkpoint`: go on from its last one, with the very bits of a run that
        was never stopped. Give the same model, data and settings; ``epochs`` may be more where
        there is no schedule.

    Returns
    -------
    History

    Raises
    ------
    DataError
        If a label has no class in the model's output, or the checkpoint to resume from is missing,
        damaged, or of a run with other settings.
    ShapeError
        If the model does not take such images; the message names the layer.
    TypeError, ValueError
        If an argument is of another kind, or does not fit the others.
    FloatingPointError
        If the loss becomes NaN or infinite; the message names the step, and with ``nan_guard``
        the layer.
    OSError
        If a callback cannot write its file.
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
    require_kinds("fit", model, loss, metrics)
    _require_callbacks(callbacks)
    if schedule is not None and not callable(schedule):
        raise TypeError(
            "fit: schedule must be a function of the share of training done, such as "
            f"numbagrad.optim.cosine, got {schedule!r}"
        )
    epochs = whole_number("fit", "epochs", epochs)
    if validation_split:
        if test is not None:
            raise ValueError("fit: give test or validation_split, not both")
        train, test = _split_off(train, validation_split, seed)
    if metrics and test is None:
        raise ValueError("fit: metrics are measured on a test set; give test or validation_split")
    model.to(device)
    optimizer = make_optimizer("fit", optimizer, model, lr)
    loader = data.DataLoader(
        train, batch_size, shuffle=True, seed=seed, transform=transform, device=device
    )
    _check_last_batch(model, loader)
    if test is not None:
        check(model, data.DataLoader(test, batch_size))
    random.seed(seed)
    run = Run(
        model,
        loader,
        test,
        optimizer,
        loss,
        epochs=epochs,
        schedule=schedule,
        metrics=metrics,
        callbacks=callbacks,
        progress=progress,
        compiled=compile,
        clip_norm=clip_norm,
        clip_value=clip_value,
        nan_guard=nan_guard,
    )
    if resume is not None:
        run.resume(resume)
    return run.train()


def _require_callbacks(callbacks: Sequence[Callback]) -> None:
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise TypeError(
                "fit: callbacks must be objects such as numbagrad.train.EarlyStopping(patience=3), "
                f"got {callback!r}"
            )


def _split_off(dataset: Any, share: float, seed: int) -> tuple[Any, Any]:
    """Return the rest of a data set, and a share of it that the seed chooses."""
    loader = data.DataLoader(dataset, 1, shuffle=True, seed=seed)  # it knows all kinds of data sets
    count = len(loader.images)
    if not isinstance(share, numbers.Real) or not 0 < round(share * count) < count:
        raise ValueError(
            f"fit: validation_split must be a share, such as 0.1, that leaves some of the "
            f"{count:,} images on both sides; got {share!r}"
        )
    key = np.array([seed, 2**64 - 1], np.uint64)  # no epoch has this number
    keys = np.random.Philox(key=key).random_raw(count)
    order = np.argsort(keys, kind="stable")
    parts = np.sort(order[round(share * count) :]), np.sort(order[: round(share * count)])
    rest, held = ((loader.images[part], loader.labels[part]) for part in parts)
    return rest, held


def _check_last_batch(model: Module, loader: data.DataLoader) -> None:
    """Refuse a last batch of one image where BatchNorm would take its variance."""
    size, count = loader.batch_size, len(loader.images)
    if (count - 1) % size == 0 and any(isinstance(m, BatchNorm1d) for m in model.modules()):
        raise ValueError(
            f"fit: {count:,} images in batches of batch_size={size} leave a last batch of one, on "
            "which BatchNorm1d cannot train; choose another batch_size, or one image less"
        )


__all__ = [
    "F1",
    "Accuracy",
    "CSVLog",
    "Callback",
    "Checkpoint",
    "Confusion",
    "DeadUnits",
    "EarlyStopping",
    "Epoch",
    "GradientNorms",
    "History",
    "LearningRates",
    "LiveCurves",
    "Metric",
    "TensorBoard",
    "TopK",
    "WeightedCrossEntropy",
    "balanced_weights",
    "evaluate",
    "find_lr",
    "fit",
    "predict",
    "train_step",
]
