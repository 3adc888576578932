"""The search for a learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np

from .. import data, ops, random
from ..errors import whole_number
from ..layers import Module
from ..ops.sampling import default_generator
from ..optim import Optimizer
from .evaluation import check, require_kinds
from .step import Loss, make_optimizer, make_step

MEMORY = 0.9  # of the running mean that smooths the losses
EXPLODED = 4  # times the smallest loss: the search ends


@dataclass
class LearningRates:
    """What `find_lr` found.

    Attributes
    ----------
    lrs, losses : ndarray of float64
        The learning rate of each step, and the smoothed loss there.
    """

    lrs: np.ndarray
    losses: np.ndarray

    @property
    def suggestion(self) -> float:
        """Where the loss falls fastest over the logarithm of the learning rate.

        Only the way down to the smallest loss is looked at.
        """
        way = max(int(self.losses.argmin()) + 1, 2)
        slopes = np.gradient(self.losses[:way])  # the learning rates grow by one factor
        return float(f"{self.lrs[slopes.argmin()]:.2g}")

    def plot(self) -> Any:
        """Draw the loss over the learning rate; return the matplotlib figure."""
        from matplotlib import pyplot

        figure, panel = pyplot.subplots(figsize=(5, 3.4), layout="constrained")
        panel.plot(self.lrs, self.losses)
        panel.axvline(self.suggestion, color="gray", linestyle="--", label=f"{self.suggestion:g}")
        panel.set(xscale="log", xlabel="learning rate", title="loss")
        panel.grid(alpha=0.3)
        panel.legend(frameon=False)
        panel.spines[["top", "right"]].set_visible(False)
        return figure

    def __repr__(self) -> str:
        return (
            f"LearningRates({len(self.lrs)} steps from {self.lrs[0]:.2g} to {self.lrs[-1]:.2g}, "
            f"suggestion={self.suggestion:g})"
        )


def find_lr(
    model: Module,
    train: Any,
    *,
    lowest: float = 1e-6,
    highest: float = 1.0,
    steps: int = 100,
    batch_size: int = 128,
    optimizer: str | Optimizer = "adam",
    loss: Loss = ops.softmax_cross_entropy,
    seed: int = 0,
    device: str = "cpu",
    compile: bool = False,
) -> LearningRates:
    """Try learning rates, from one that is too small to one that is too large.

    The rate grows by the same factor with each step of training, until the loss explodes. Then
    model, optimiser and random numbers are put back to what they were. Smith, "Cyclical Learning
    Rates for Training Neural Networks" (2017), section 3.3.

    Parameters
    ----------
    model, train, batch_size, optimizer, loss, seed, device, compile
        As in `fit`.
    lowest, highest
        The first and the last learning rate.
    steps
        How many to try, at least 10.

    Returns
    -------
    LearningRates
        Look at ``suggestion`` and ``plot()``.

    Raises
    ------
    ValueError
        If not ``0 < lowest < highest``, or the loss is not finite at the first step.

    Examples
    --------
    >>> import numbagrad as ng
    >>> train, _ = ng.data.digits()
    >>> found = find_lr(ng.models.mlp(image_size=8), train, steps=40)
    >>> 1e-4 < found.suggestion < 1
    True
    """
    require_kinds("find_lr", model, loss)
    steps = whole_number("find_lr", "steps", steps, 10)
    if not 0 < lowest < highest < math.inf:
        raise ValueError(
            f"find_lr: lowest and highest must be 0 < lowest < highest, got {lowest!r}, {highest!r}"
        )
    model.to(device)
    optimizer = make_optimizer("find_lr", optimizer, model, None)
    loader = data.DataLoader(train, batch_size, shuffle=True, seed=seed, device=device)
    check(model, loader)
    step = make_step(model, loss, optimizer, compiled=compile)
    before = model.state_dict(), optimizer.state_dict(), default_generator.state_dict()
    modes = [(module, module.training) for module in model.modules()]
    lrs, losses = [], []
    random.seed(seed)
    model.train()
    try:
        mean = 0.0
        batches = (batch for epoch in repeat(loader) for batch in epoch)
        for k, (images, labels) in zip(range(steps), batches, strict=False):
            optimizer.lr = lr = lowest * (highest / lowest) ** (k / (steps - 1))
            value = step(images, labels)[0].item()
            mean = MEMORY * mean + (1 - MEMORY) * value
            smoothed = mean / (1 - MEMORY ** (k + 1))  # as if it had not started from 0
            if not math.isfinite(value) or (losses and smoothed > EXPLODED * min(losses)):
                break
            lrs.append(lr)
            losses.append(smoothed)
        batches.close()
    finally:
        model.load_state_dict(before[0])
        optimizer.load_state_dict(before[1])
        default_generator.load_state_dict(before[2])
        for module, mode in modes:
            module.training = mode
    if len(lrs) < 2:
        raise ValueError(
            f"find_lr: the loss explodes at once, at a learning rate of {lowest:g}; start from a "
            "smaller `lowest`, or look at the images"
        )
    return LearningRates(np.array(lrs), np.array(losses))


__all__ = ["LearningRates", "find_lr"]
