"""A loss that tells classes apart."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ..array import Array, asarray
from ..errors import DataError, ShapeError
from ..layers import as_numpy


class WeightedCrossEntropy:
    """`numbagrad.softmax_cross_entropy` with a weight for each class; a loss for `fit`.

    It is the mean over the batch of ``weights[label]`` times each row's loss. (PyTorch divides by
    the sum of the batch's weights instead; then the mean over batches is not that of the set.)

    Parameters
    ----------
    weights
        One number of at least 0 for each class, such as `balanced_weights` gives.
    options
        Others of `numbagrad.softmax_cross_entropy`.

    Raises
    ------
    ValueError
        If the weights are no row of such numbers.
    ShapeError
        When it is called, if the model has another number of outputs.

    Examples
    --------
    >>> loss = WeightedCrossEntropy([1.0, 3.0])
    >>> loss(asarray([[0.0, 0.0], [0.0, 0.0]]), asarray([0, 1])).item()  # 2 ln 2
    1.3862943649291992
    """

    def __init__(self, weights: Any, **options: Any):
        self.weights = np.array(as_numpy(weights), np.float64)
        if self.weights.ndim != 1 or not (np.isfinite(self.weights) & (self.weights >= 0)).all():
            raise ValueError(
                "WeightedCrossEntropy: weights must be one finite number of at least 0 for each "
                f"class, got {weights!r}"
            )
        self.options = options

    def __call__(self, logits: Array, labels: Array) -> Array:
        """Return the loss of a batch, a scalar."""
        if logits.shape[-1:] != self.weights.shape:
            raise ShapeError(
                f"WeightedCrossEntropy: {len(self.weights)} weights, but logits of shape "
                f"{logits.shape}; give one weight for each class"
            )
        losses = ops.softmax_cross_entropy(logits, labels, reduction="none", **self.options)
        weights = asarray(self.weights, dtype=logits.dtype, device=logits.device)
        return ops.mean(losses * ops.take(weights, labels))

    def __repr__(self) -> str:
        return f"WeightedCrossEntropy({self.weights.tolist()})"


def balanced_weights(labels: Any, classes: int | None = None) -> np.ndarray:
    """Return a weight for each class, so that all classes count the same together.

    The weight is ``n / (classes count)``, with ``count`` of the ``n`` labels; their mean over the
    labels is 1.

    Parameters
    ----------
    labels
        Integers from 0, or a data set with such ``labels``.
    classes
        How many there are; by default as many as the labels, or the data set's ``classes``, show.

    Raises
    ------
    DataError
        If a class has no label.

    Examples
    --------
    >>> balanced_weights([0, 0, 0, 1]).round(3).tolist()
    [0.667, 2.0]
    """
    if classes is None and hasattr(labels, "classes"):
        classes = len(labels.classes)
    labels = as_numpy(getattr(labels, "labels", labels))
    counts = np.bincount(labels, minlength=classes or 0)
    if not counts.all():
        raise DataError(
            f"balanced_weights: no label of class {int(counts.argmin())}; leave the class out, or "
            "choose weights by hand"
        )
    return len(labels) / (len(counts) * counts)


__all__ = ["WeightedCrossEntropy", "balanced_weights"]
