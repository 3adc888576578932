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


@pytest.mark.parametrize(
    "value",
    [
        np.arange(6.0).reshape(2, 3).T,
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(6)[::-2],
        np.float32(3),
        ng.asarray([1.0, 2.0]),
    ],
)
def test_arrays_of_any_layout(tmp_path, value):
    weights.save(tmp_path / "x", {"x": value})
    np.testing.assert_array_equal(weights.load(tmp_path / "x")["x"], np.asarray(value))
    assert weights.load(tmp_path / "x")["x"].shape == value.shape


def test_notes_do_not_change_the_bytes_from_run_to_run(tmp_path):
    notes = {"model": "lenet", "data": "digits", "seed": "0"}
    weights.save(tmp_path / "a", {"x": np.ones(1)}, notes)
    weights.save(tmp_path / "b", {"x": np.ones(1)}, dict(reversed(notes.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


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
