"""Metrics of classifiers. Each counts, batch by batch, so that a short last batch is exact."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from ..errors import DataError, ShapeError, is_whole, nearest


class Metric:
    """What the metrics share. A subclass counts in ``update`` and defines ``value``.

    Attributes
    ----------
    name : str
        What it is called in the history.
    """

    name: str

    def reset(self) -> None:
        """Forget all batches."""
        raise NotImplementedError(f"{type(self).__name__} does not define reset()")

    def update(self, outputs: np.ndarray, labels: np.ndarray) -> None:
        """Count one batch: outputs of shape (n, classes), labels of shape (n,)."""
        raise NotImplementedError(f"{type(self).__name__} does not define update()")

    @property
    def value(self) -> Any:
        """The metric over all batches since `reset`."""
        raise NotImplementedError(f"{type(self).__name__} does not define value")


def _require_classes(metric: Metric, outputs: np.ndarray, labels: np.ndarray) -> None:
    if outputs.ndim != 2 or labels.shape != outputs.shape[:1] or labels.dtype.kind not in "iu":
        raise ShapeError(
            f"{type(metric).__name__}: needs outputs of shape (n, classes) and n integer labels, "
            f"got {outputs.shape} and {labels.dtype} of shape {labels.shape}"
        )


class TopK(Metric):
    """The share of rows whose label is among the ``k`` largest outputs.

    Of outputs that are equal, those of lower classes count as larger, as in ``argmax``.

    Parameters
    ----------
    k
        At least 1.

    Examples
    --------
    >>> metric = TopK(2)
    >>> metric.update(np.array([[0.1, 0.2, 0.7], [0.5, 0.4, 0.1]]), np.array([1, 2]))
    >>> metric.value
    0.5
    """

    def __init__(self, k: int):
        if not is_whole(k, 1):
            raise ValueError(f"TopK: k must be a whole number of at least 1, got {k!r}")
        self.k = int(k)
        self.name = "accuracy" if k == 1 else f"top{k}"
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self.hits = self.count = 0

    def update(self, outputs: np.ndarray, labels: np.ndarray) -> None:
        """Count one batch."""
        _require_classes(self, outputs, labels)
        largest = np.argsort(-outputs, axis=1, kind="stable")[:, : self.k]
        self.hits += int((largest == labels[:, None]).any(1).sum())
        self.count += len(labels)

    @property
    def value(self) -> float:
        """The share, 0 to 1; NaN before the first row."""
        return self.hits / self.count if self.count else math.nan


class Accuracy(TopK):
    """The share of rows whose largest output is that of the label.

    Examples
    --------
    >>> metric = Accuracy()
    >>> metric.update(np.array([[0.1, 0.9], [0.6, 0.4]]), np.array([1, 1]))
    >>> metric.value
    0.5
    """

    def __init__(self):
        super().__init__(1)

    def update(self, outputs: np.ndarray, labels: np.ndarray) -> None:
        """Count one batch."""
        _require_classes(self, outputs, labels)
        self.hits += int((outputs.argmax(1) == labels).sum())
        self.count += len(labels)


class Confusion(Metric):
    """How often each class was taken for each.

    ``value[i, j]`` counts the rows with label ``i`` whose largest output was that of class ``j``;
    None before the first batch.

    Examples
    --------
    >>> metric = Confusion()
    >>> metric.update(np.array([[0.1, 0.9], [0.6, 0.4]]), np.array([1, 1]))
    >>> metric.value
    array([[0, 0],
           [1, 1]])
    """

    name = "confusion"

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self.counts: np.ndarray | None = None

    def update(self, outputs: np.ndarray, labels: np.ndarray) -> None:
        """Count one batch."""
        _require_classes(self, outputs, labels)
        classes = outputs.shape[1]
        if self.counts is None:
            self.counts = np.zeros((classes, classes), np.int64)
        outside = (labels < 0) | (labels >= classes)
        if outside.any():
            raise DataError(
                f"{type(self).__name__}: label {labels[outside][0]}; {classes} outputs allow 0 to "
                f"{classes - 1}"
            )
        pairs = classes * labels.astype(np.int64) + outputs.argmax(1)
        self.counts += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    @property
    def value(self) -> Any:
        """The counts, int64 of shape (classes, classes)."""
        return self.counts


class F1(Confusion):
    """The harmonic mean of precision and recall.

    Of class ``k`` that is ``2 hits / (rows labelled k + rows taken for k)``.

    Parameters
    ----------
    average
        ``"macro"``: the mean over the classes, but for those that neither occur nor were guessed.
        ``"weighted"``: the same, each class weighted by how many rows are labelled with it.
        ``"none"``: an array, one for each class; NaN for those that neither occur nor were guessed.

    Examples
    --------
    >>> metric = F1()
    >>> metric.update(np.array([[0.1, 0.9], [0.6, 0.4], [0.2, 0.8]]), np.array([1, 1, 1]))
    >>> metric.value  # of class 0 it is 0, of class 1 0.8
    0.4
    """

    AVERAGES: ClassVar = ("macro", "none", "weighted")

    def __init__(self, average: str = "macro"):
        if average not in self.AVERAGES:
            raise ValueError(
                f"F1: no average is called {average!r}; {nearest(average, self.AVERAGES)}"
            )
        self.average = average
        self.name = "f1" if average == "macro" else f"f1_{average}"
        super().__init__()

    @property
    def value(self) -> Any:
        """The average over the classes, or an array of the classes' own; NaN before any row."""
        if self.counts is None:
            return math.nan
        labelled, guessed = self.counts.sum(1), self.counts.sum(0)
        met = labelled + guessed > 0
        scores = np.full(len(met), np.nan)
        scores[met] = 2 * self.counts.diagonal()[met] / (labelled + guessed)[met]
        if self.average == "none":
            return scores
        shares = met if self.average == "macro" else labelled
        total = shares.sum()
        return float((scores[met] * shares[met]).sum() / total) if total else math.nan


__all__ = ["F1", "Accuracy", "Confusion", "Metric", "TopK"]
