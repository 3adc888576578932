"""Weights that come with numbagrad."""

import hashlib
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

import numbagrad as ng
from numbagrad import pretrained

KNOWN = [(name, data) for name, sets in pretrained.WEIGHTS.items() for data in sets]


@pytest.mark.parametrize(("name", "data"), KNOWN)
def test_weights_are_those_of_the_table(name, data):
    weights = pretrained.WEIGHTS[name][data]
    content = resources.files(pretrained).joinpath(weights.name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == weights.sha256
    assert len(content) < 250_000
    assert (Path(__file__).parents[1] / "configs" / weights.config).is_file()
    _, width, channels = weights.shape
    model = ng.models.get(name, in_channels=channels, image_size=width, pretrained=data)
    ng.random.seed(0)
    fresh = ng.models.get(name, in_channels=channels, image_size=width)
    state, start = model.state_dict(), fresh.state_dict()
    assert state.keys() == start.keys()
    assert all(state[key].dtype == np.float32 for key in state)
    assert any(not np.array_equal(state[key], start[key]) for key in state)


def test_lenet_knows_strokes():
    """A bar is a one, a ring is a zero: it has learnt from pictures like these."""
    one, zero = np.zeros((2, 28, 28, 1), np.float32)
    one[5:23, 13:15] = 1
    rows, columns = np.mgrid[:28, :28] - 13.5
    zero[..., 0] = np.abs(np.hypot(rows, 1.4 * columns) - 8) < 1.3
    model = ng.models.lenet(pretrained="mnist")
    assert ng.train.predict(model, np.stack([one, zero])).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pretrained": "mnst"}, "no weights for pretrained='mnst'; did you mean 'mnist'"),
        ({"pretrained": "mnist", "classes": 5}, r"\(28, 28, 1\) and 10 classes, not for .* and 5"),
        ({"pretrained": "mnist", "image_size": 32}, r"not for \(32, 32, 1\) and 10"),
    ],
)
def test_other_weights(options, message):
    with pytest.raises(ValueError, match=message):
        ng.models.lenet(**options)


def test_a_damaged_file(monkeypatch, tmp_path):
    weights = pretrained.WEIGHTS["lenet"]["mnist"]
    (tmp_path / weights.name).write_bytes(b"no weights")
    monkeypatch.setattr(pretrained.resources, "files", lambda package: tmp_path)
    with pytest.raises(ng.errors.DataError, match="damaged"):
        ng.models.lenet(pretrained="mnist")
