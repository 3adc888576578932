"""Saving and loading weights."""

import numpy as np
import pytest

import numbagrad as ng
from numbagrad import weights
from numbagrad.errors import DataError
from numbagrad.layers import BatchNorm2d, Linear, Sequential


def test_there_and_back(tmp_path):
    model, path = Sequential(Linear(2, 3), BatchNorm2d(3)), tmp_path / "new" / "model.safetensors"
    weights.save(path, model, {"epoch": "3"})
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]
    twin = Sequential(Linear(2, 3), BatchNorm2d(3))
    twin.load_state_dict(weights.load(path))
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(twin.state_dict()[name], value)
    assert weights.read_metadata(path) == {"epoch": "3"}


def test_an_optimiser_too(tmp_path):
    optimizer = ng.optim.Adam(Linear(2, 2).parameters(), lr=0.25)
    weights.save(tmp_path / "adam", optimizer)
    other = ng.optim.Adam(Linear(2, 2).parameters())
    other.load_state_dict(weights.load(tmp_path / "adam"))
    assert other.lr == 0.25


def damage(path, kind):
    content = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(content[:-3])
    elif kind == "corrupt":
        path.write_bytes(b"\xff" * len(content))
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()


@pytest.mark.parametrize("kind", ["truncated", "corrupt", "empty", "missing"])
def test_a_damaged_file_is_named(tmp_path, kind):
    path = tmp_path / "model.safetensors"
    weights.save(path, Linear(2, 2))
    damage(path, kind)
    for read in (weights.load, weights.read_metadata):
        with pytest.raises(DataError, match=r"model\.safetensors: no weights could be read"):
            read(path)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    weights.save(path, {"x": np.ones(2)})

    def fail(*paths):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        weights.save(path, {"x": np.zeros(2)})
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    np.testing.assert_array_equal(weights.load(path)["x"], np.ones(2))
