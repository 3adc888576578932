"""The CIFAR-10 speed run: schedule, data, network, what it writes."""

import doctest
import time
from contextlib import nullcontext

import numpy as np
import pytest
import speedrun

import numbagrad as ng
from benchmarks import cifar10_speedrun as cifar


def test_rehearsal(tmp_path):
    speedrun.check("cpu", tmp_path)


def test_examples():
    assert doctest.testmod(cifar).failed == 0


def test_data_is_standardised_and_padded():
    data = cifar.prepare(*cifar.made_up(30, 8), padding=2)
    assert data.train_images.shape == (30, 12, 12, 3)
    inside = data.train_images[:, 2:-2, 2:-2]
    np.testing.assert_allclose(inside.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(inside.std((0, 1, 2)), 1, atol=1e-5)
    np.testing.assert_array_equal(data.train_images[:, 1], data.train_images[:, 3])
    assert data.name == "noise, 30 images"


def test_network():
    network = cifar.network(64, 32)
    assert network.output_spec((5, 32, 32, 3)).shape == (5, 10)
    with_weights = (ng.layers.Conv2d, ng.layers.Linear)
    assert sum(isinstance(layer, with_weights) for layer in network.modules()) == 9


class Guessing:
    """Learns to be right in its third epoch."""

    def __init__(self, data):
        self.data, self.steps, self.rates = data, 0, []
        self.precision = nullcontext

    def step(self, indices, lr):
        self.rates.append(lr)
        self.steps += 1
        return np.float32(1)

    def logits(self, start, stop):
        return np.eye(10)[self.data.test_labels[start:stop]] * (1 if self.steps > 6 else -1)

    def snapshot(self):
        return lambda: setattr(self, "steps", 0)


def train(seconds):
    data = cifar.prepare(*cifar.made_up(9, 8), padding=1)
    noted = []
    settings = cifar.Settings(epochs=4, batch=3)
    trainee = Guessing(data)
    outcome = cifar.train(trainee, settings, time.monotonic() + seconds, noted.append)
    return trainee, outcome, noted


def test_training_notes_when_the_target_is_reached():
    trainee, outcome, noted = train(seconds=100)
    assert len(noted) == len(outcome.epochs) == 4
    assert [epoch["accuracy"] for epoch in outcome.epochs] == [0, 0, 100, 100]
    assert outcome.seconds_to_target == outcome.epochs[2]["seconds"]
    rates = trainee.rates[1:]  # the first step is undone
    assert max(rates) < 0.4
    assert rates[-1] == 0
    assert np.argmax(rates) in (1, 2)


def test_training_that_is_cut_off():
    _, outcome, _ = train(seconds=0)
    assert outcome.cut_off
    assert len(outcome.epochs) == 1
    assert outcome.seconds_to_target is None


def test_too_few_images(tmp_path, monkeypatch):
    monkeypatch.setattr(ng.data, "cifar10", lambda: cifar.made_up(9, 8))
    with pytest.raises(cifar.typer.BadParameter, match="--batch 512: there are fewer"):
        cifar.main(device="cpu", out=tmp_path / "x.json")
