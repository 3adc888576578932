"""Metrics count exactly, whatever the batches."""

import numpy as np
import pytest

import numbagrad as ng
from numbagrad.errors import DataError, ShapeError
from numbagrad.train import F1, Accuracy, Confusion, TopK, WeightedCrossEntropy, balanced_weights


def rows(n=103, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    outputs = rng.normal(size=(n, classes)).astype(np.float32)
    return outputs, rng.integers(0, classes, n)


def value_of(metric, outputs, labels, batch=None):
    metric.reset()
    for start in range(0, len(labels), batch or len(labels)):
        stop = start + (batch or len(labels))
        metric.update(outputs[start:stop], labels[start:stop])
    return metric.value


@pytest.mark.parametrize(
    "metric", [Accuracy(), TopK(1), TopK(3), Confusion(), F1(), F1("weighted"), F1("none")]
)
def test_batches_make_no_difference(metric):
    outputs, labels = rows()
    whole = value_of(metric, outputs, labels)
    np.testing.assert_array_equal(value_of(metric, outputs, labels, 10), whole)
    np.testing.assert_array_equal(value_of(metric, outputs, labels, 102), whole)


def test_top_k():
    outputs, labels = rows()
    ranks = [sorted(row, reverse=True).index(row[k]) for row, k in zip(outputs, labels)]
    assert value_of(TopK(2), outputs, labels) == (np.array(ranks) < 2).mean()
    assert value_of(TopK(1), outputs, labels) == value_of(Accuracy(), outputs, labels)
    assert value_of(TopK(9), outputs, labels) == 1
    tied = np.zeros((2, 3), np.float32)
    assert value_of(TopK(1), tied, np.array([0, 1])) == 0.5  # the first of them, as argmax
    assert np.isnan(Accuracy().value)


def test_confusion_and_f1():
    outputs, labels = rows()
    outputs[:, 4] = -9  # never guessed
    labels[labels == 3] = 2
    outputs[:, 3] = -9  # neither guessed nor there
    counts = np.zeros((5, 5), int)
    for row, label in zip(outputs, labels):
        counts[label, row.argmax()] += 1
    np.testing.assert_array_equal(value_of(Confusion(), outputs, labels), counts)
    scores = []
    for k in range(5):
        hits, wrong = counts[k, k], counts[:, k].sum() - counts[k, k]
        missed = counts[k].sum() - hits
        scores.append(2 * hits / (2 * hits + wrong + missed) if hits + wrong + missed else np.nan)
    np.testing.assert_allclose(value_of(F1("none"), outputs, labels), scores)
    assert value_of(F1(), outputs, labels) == pytest.approx(np.nanmean(scores))
    weighted = np.nansum(scores * counts.sum(1)) / counts.sum()
    assert value_of(F1("weighted"), outputs, labels) == pytest.approx(weighted)


def test_metrics_say_what_would_fit():
    with pytest.raises(ValueError, match="TopK: k must be a whole number of at least 1, got 0"):
        TopK(0)
    with pytest.raises(ValueError, match="no average is called 'micr'"):
        F1("micr")
    for metric in (Accuracy(), TopK(2), F1()):
        with pytest.raises(ShapeError, match=r"needs outputs of shape \(n, classes\)"):
            metric.update(np.zeros((4, 2)), np.zeros((4, 1)))
    with pytest.raises(DataError, match="Confusion: label 7; 2 outputs allow 0 to 1"):
        Confusion().update(np.zeros((1, 2)), np.array([7]))


def test_weighted_cross_entropy():
    outputs, labels = rows()
    weights = np.arange(1.0, 6.0)
    logits = ng.layers.Parameter(outputs)
    loss = WeightedCrossEntropy(weights)(logits, ng.asarray(labels))
    loss.backward()
    probs = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
    each = -np.log(probs[np.arange(len(labels)), labels])
    assert loss.item() == pytest.approx((weights[labels] * each).mean(), rel=1e-5)
    expected = weights[labels, None] * (probs - np.eye(5)[labels]) / len(labels)
    np.testing.assert_allclose(logits.grad.numpy(), expected, atol=1e-6)
    with pytest.raises(ShapeError, match="5 weights, but logits of shape"):
        WeightedCrossEntropy(weights)(ng.asarray([[1.0, 2.0]]), ng.asarray([0]))
    for bad in ([-1.0, 1.0], [[1.0]], [np.inf, 1.0]):
        with pytest.raises(ValueError, match="one finite number of at least 0 for each class"):
            WeightedCrossEntropy(bad)


def test_balanced_weights():
    train, _ = ng.data.digits()
    weights = balanced_weights(train)
    counts = np.bincount(train.labels)
    np.testing.assert_allclose(weights * counts, len(train) / 10)
    with pytest.raises(DataError, match="no label of class 1"):
        balanced_weights([0, 2])
