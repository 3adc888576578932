"""A run that was stopped, or killed, and resumed ends with the bits of one that was not.

Runs are killed at $NUMBAGRAD_KILLS random moments, 3 by default.
"""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from resumed_run import Result, model_and_options

import numbagrad as ng
from numbagrad import weights
from numbagrad.errors import DataError
from numbagrad.train import Callback, Checkpoint, EarlyStopping, fit

KILLS = int(os.environ.get("NUMBAGRAD_KILLS", "3"))
TRAIN, TEST = (part.take(100) for part in ng.data.digits())
BOTH = pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals")


def assert_same(results, expected):
    assert results.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(results[name], value, err_msg=name)


# ----------------------------------------------------------------- kill -9


def start(folder, threads, mode="compiled", **environment):
    folder.mkdir(exist_ok=True)
    script = Path(__file__).with_name("resumed_run.py")
    child = subprocess.Popen(
        [sys.executable, script, folder, str(threads), mode],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "training\n"
    return child


def end(child):
    with child.stdout:
        return child.wait()


def results_of(folder):
    with np.load(folder / "result.npz") as file:
        return dict(file)


@pytest.fixture(scope="module", params=["eager", "compiled"])
def uninterrupted(request, tmp_path_factory):
    """The mode, the results, the seconds from the first step on, and the best weights."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    started = None
    for _ in range(2):  # the first time it compiles
        for path in folder.glob("*.safetensors"):
            path.unlink()
        child = start(folder, 2, request.param)
        started = time.perf_counter()
        assert end(child) == 0
    seconds = time.perf_counter() - started
    best = (folder / "best.safetensors").read_bytes()
    return request.param, results_of(folder), seconds, best


@POSIX
def test_killed_at_random_moments(tmp_path, uninterrupted):
    mode, expected, seconds, best = uninterrupted
    moments = random.Random(os.environ.get("NUMBAGRAD_KILL_SEED", mode))
    kills = runs = 0
    folder = tmp_path / "0"
    while True:
        child = start(folder, 1 + kills % 2, mode)
        if kills < KILLS:
            time.sleep(moments.uniform(0, seconds))
            child.kill()
            if end(child) == -signal.SIGKILL:
                kills += 1
                continue
        else:
            assert end(child) == 0
        assert_same(results_of(folder), expected)
        assert (folder / "best.safetensors").read_bytes() == best
        assert not list(folder.glob("*.tmp"))
        if kills >= KILLS:
            return
        runs += 1
        folder = tmp_path / str(runs)


@POSIX
@pytest.mark.parametrize("place", ["replace:2", "replace:9", "fsync:4", "fsync:5"])
def test_killed_while_a_checkpoint_is_written(tmp_path, uninterrupted, place):
    mode, expected, _, best = uninterrupted
    assert end(start(tmp_path, 2, mode, DIE_AT=place)) == -signal.SIGKILL
    assert end(start(tmp_path, 1, mode)) == 0
    assert_same(results_of(tmp_path), expected)
    assert (tmp_path / "best.safetensors").read_bytes() == best


# ------------------------------------------------------- stopped and resumed


class Press(Callback):
    """Presses Ctrl-C at a step."""

    def __init__(self, at):
        self.at = at

    def step(self, run):
        if run.steps == self.at:
            os.kill(os.getpid(), signal.SIGINT)


def run(folder, *callbacks, resume=False, **changes):
    model, options = model_and_options()
    result = Result()
    history = fit(
        model,
        TRAIN,
        TEST,
        callbacks=[Checkpoint(folder), *callbacks, result],
        resume=folder if resume else None,
        **options | {"epochs": 3} | changes,
    )
    return model, history, result.arrays


@POSIX
@BOTH
@pytest.mark.parametrize("at", [1, 5, 7, 14])  # of 15; 5 ends an epoch
def test_ctrl_c_then_resume(tmp_path, at, compile):
    _, expected_history, expected = run(tmp_path / "whole", compile=compile)
    _, history, _ = run(tmp_path / "cut", Press(at), compile=compile)
    assert history.stopped == "interrupted"
    assert len(history.epochs) == (at - 1) // 5  # the last step of an epoch comes before its end
    _, history, results = run(tmp_path / "cut", resume=True, compile=compile)
    assert history.stopped == ""
    assert_same(results, expected)
    assert history.epochs[-1].test_loss == expected_history.epochs[-1].test_loss
    best = [(tmp_path / name / "best.safetensors").read_bytes() for name in ("whole", "cut")]
    assert best[0] == best[1]


def test_what_is_done_stays_done(tmp_path):
    _, history, expected = run(tmp_path)
    model, again, results = run(tmp_path, resume=True)
    assert_same(results, expected)
    assert repr(again.epochs) == repr(history.epochs)
    assert not model.training
    best = weights.load(tmp_path / "best.safetensors")
    model.load_state_dict(best)
    assert weights.read_metadata(tmp_path / "best.safetensors")["epoch"] in "123"


def test_early_stopping_stays_stopped(tmp_path):
    changes = {"lr": 0.0, "schedule": None, "epochs": 9}  # nothing gets better, the noise aside
    stopping = {"patience": 1, "min_delta": 10.0}
    _, history, expected = run(tmp_path, EarlyStopping(**stopping), **changes)
    assert len(history.epochs) == 2
    _, history, results = run(tmp_path, EarlyStopping(**stopping), resume=True, **changes)
    assert_same(results, expected)
    assert history.stopped == "no better loss for 1 epoch"
    more = EarlyStopping(**stopping | {"patience": 3})
    assert len(run(tmp_path, more, resume=True, **changes)[1].epochs) == 4


def test_more_epochs_without_a_schedule(tmp_path):
    _, _, expected = run(tmp_path / "a", epochs=3, schedule=None)
    run(tmp_path / "b", epochs=1, schedule=None)
    assert_same(run(tmp_path / "b", resume=True, schedule=None)[2], expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.5}, "lr is 0.5, was 0.02"),
        ({"batch_size": 10}, "batch_size is 10, was 24"),
        ({"seed": 8}, "seed is 8, was 7"),
        ({"optimizer": "sgd"}, "optimizer is 'SGD', was 'Adam'"),
        ({"epochs": 4}, "epochs is 4, was 3"),
        ({"compile": True}, "compiled is True, was False"),
    ],
)
def test_another_run_is_refused(tmp_path, changes, message):
    run(tmp_path)
    with pytest.raises(DataError, match=f"a run with other settings.*{message}"):
        run(tmp_path, resume=True, **changes)


def test_another_model_is_refused_and_nothing_changed(tmp_path):
    run(tmp_path)
    model = ng.models.mlp(image_size=8)
    before = model.state_dict()
    _, options = model_and_options()
    with pytest.raises(DataError, match=r"nothing was loaded:\n  missing: model\."):
        fit(model, TRAIN, TEST, resume=tmp_path, **options | {"epochs": 3})
    assert_same(model.state_dict(), before)


# ------------------------------------------------------------ what goes wrong


def test_no_checkpoint(tmp_path):
    with pytest.raises(DataError, match=r"last.safetensors: no checkpoint to go on from"):
        run(tmp_path, resume=True)
    weights.save(tmp_path / "last.safetensors", {"x": np.ones(2)})
    with pytest.raises(DataError, match="holds weights, but no state of a training"):
        run(tmp_path, resume=True)


def test_damage_is_found(tmp_path):
    run(tmp_path)
    path = tmp_path / "last.safetensors"
    content = path.read_bytes()
    dice = random.Random(0)
    for _ in range(20):
        path.write_bytes(content[: dice.randrange(len(content))])
        with pytest.raises(DataError, match=r"last\.safetensors: no weights could be read"):
            run(tmp_path, resume=True)
    for _ in range(40):
        at = dice.randrange(len(content))
        path.write_bytes(
            content[:at] + bytes([content[at] ^ 1 << dice.randrange(8)]) + content[at + 1 :]
        )
        with pytest.raises(DataError, match=r"last\.safetensors"):
            run(tmp_path, resume=True)
    path.write_bytes(content)
    run(tmp_path, resume=True)


class Failing:
    """Fails with an error at the n-th call."""

    def __init__(self, real, number, at=1):
        self.real, self.number, self.left = real, number, at

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if not self.left:
            raise OSError(self.number, os.strerror(self.number))
        return self.real(*args, **kwargs)


@pytest.mark.parametrize("place", ["fsync", "replace"])
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch, place):
    run(tmp_path, epochs=1, schedule=None)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(os, place, Failing(getattr(os, place), errno.ENOSPC))
        with pytest.raises(
            OSError,
            match=r"not written; the one before is as it was \(No space left on device\): free "
            r"some space on that disk: '.*safetensors'",
        ) as raised:
            run(tmp_path, resume=True, epochs=2, schedule=None)
    assert raised.value.errno == errno.ENOSPC
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    run(tmp_path, resume=True, epochs=2, schedule=None)


def test_a_folder_that_cannot_be_written_is_found_before_any_step(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    steps = []

    class Steps(Callback):
        def step(self, run):
            steps.append(run.steps)

    for folder in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(OSError, match=r"no checkpoint can be written .*a file is in the place"):
            run(folder, Steps())
    monkeypatch.setattr(Path, "write_bytes", Failing(None, errno.EACCES))
    with pytest.raises(PermissionError, match="choose a folder that you may write to"):
        run(tmp_path / "new", Steps())
    assert steps == []


def test_no_checkpoint_holds_nan(tmp_path):
    class Spoil(Callback):
        def step(self, run):
            if run.steps == 10:
                weight = next(run.model.parameters())
                ng.ops.optimisation.assign(weight, np.full(weight.shape, np.nan, np.float32))

    model, options = model_and_options()
    with pytest.raises(FloatingPointError, match=r"after step 10 the parameter '1\.weight'"):
        fit(
            model, TRAIN, callbacks=[Spoil(), Checkpoint(tmp_path)],
            **options | {"epochs": 3, "metrics": []},
        )  # fmt: skip
    assert np.isfinite(weights.load(tmp_path / "last.safetensors")["model.1.weight"]).all()
