"""Callbacks that look at a network while it trains, and the curves that move."""

import sys
import time
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

import numbagrad as ng
from numbagrad.layers import BatchNorm1d, Dropout, Flatten, Linear, ReLU, Sequential
from numbagrad.training import live


def fit(callbacks=(), *, epochs=3, compile=False, **options):
    ng.random.seed(1)
    relu = ReLU()
    model = Sequential(
        Flatten(), Linear(64, 32), BatchNorm1d(32), relu, Dropout(0.2), Linear(32, 16), relu,
        Linear(16, 10),
    )  # fmt: skip
    train, test = ng.data.digits()
    history = ng.train.fit(
        model, train.take(300), test.take(50), epochs=epochs, batch_size=50, progress=False,
        compile=compile, callbacks=callbacks, **options,
    )  # fmt: skip
    return model, history


@pytest.mark.parametrize("compile", [False, True])
def test_monitors_leave_every_bit_as_it_is(compile):
    alone, before = fit(compile=compile)
    watched, after = fit(
        [ng.train.GradientNorms(), ng.train.DeadUnits(40), ng.train.LiveCurves()], compile=compile
    )
    for name, value in alone.state_dict().items():
        np.testing.assert_array_equal(watched.state_dict()[name], value)
    for one, other in zip(before.epochs, after.epochs, strict=True):
        assert one.train_loss == other.train_loss
        assert set(other.metrics) == {"gradient_norm", "dead_units"}


def test_gradient_norms_are_those_of_the_gradients():
    norms = ng.train.GradientNorms(images=70)
    model, history = fit([norms])
    train, _ = ng.data.digits()
    loss = ng.softmax_cross_entropy(
        model(ng.asarray(train.images[:70])), ng.asarray(train.labels[:70])
    )
    loss.backward()
    last = norms.history[-1]
    assert len(norms.history) == 3
    for name, parameter in model.named_parameters():
        assert last[name] == pytest.approx(np.linalg.norm(parameter.grad.numpy()), rel=1e-5)
    total = np.linalg.norm(list(last.values()))
    assert history.epochs[-1].metrics["gradient_norm"] == pytest.approx(total)
    figure = norms.plot()
    assert len(figure.axes[0].lines) == len(last)


def test_dead_units_are_found():
    dead = ng.train.DeadUnits()

    class Kill(ng.train.Callback):
        def step(self, run):
            with ng.no_grad():
                bias = run.model[5].bias
                bias[...] = ng.asarray(np.r_[np.full(4, -1e3), np.zeros(12)].astype(np.float32))

    _, history = fit([Kill(), dead])
    assert list(dead.history[-1]) == ["3", "3 (2)"]
    assert dead.history[-1]["3 (2)"] >= 0.25
    share = (32 * dead.history[-1]["3"] + 16 * dead.history[-1]["3 (2)"]) / 48
    assert history.epochs[-1].metrics["dead_units"] == pytest.approx(share)


def test_what_monitors_measure_goes_into_the_logs(tmp_path):
    fit([ng.train.CSVLog(tmp_path / "log.csv"), ng.train.DeadUnits()], epochs=1)
    header, row = (tmp_path / "log.csv").read_text().splitlines()
    assert header.endswith(",dead_units")
    assert 0 <= float(row.split(",")[-1]) <= 1


def test_monitors_and_exact_resume(tmp_path):
    def callbacks(folder):
        return [ng.train.Checkpoint(folder), ng.train.GradientNorms()]

    whole, _ = fit(callbacks(tmp_path / "whole"), epochs=4)
    fit(callbacks(tmp_path / "part"), epochs=2)
    resumed, history = fit(callbacks(tmp_path / "part"), epochs=4, resume=tmp_path / "part")
    for name, value in whole.state_dict().items():
        np.testing.assert_array_equal(resumed.state_dict()[name], value)
    assert all("gradient_norm" in epoch.metrics for epoch in history.epochs)


def test_monitors_say_what_would_fit():
    with pytest.raises(ValueError, match="GradientNorms: images must be a whole number"):
        ng.train.GradientNorms(0)


@pytest.fixture
def notebook(monkeypatch):
    """Stand in for IPython's display."""
    shown = []
    handle = SimpleNamespace(update=lambda bundle, raw: shown.append((time.perf_counter(), bundle)))

    def display(bundle, raw, display_id):
        shown.append((time.perf_counter(), bundle))
        return handle

    module = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=None), display=None)
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    return shown


def test_curves_are_drawn_at_most_five_times_a_second(notebook):
    curves = ng.train.LiveCurves()
    started = time.perf_counter()
    fit([curves], epochs=25)
    seconds = time.perf_counter() - started
    times = [when for when, _ in notebook]
    # The first one is empty and the last one is drawn whenever training ends.
    assert all(b - a > 0.19 for a, b in pairwise(times[1:-1]))
    assert len(notebook) == curves.drawings + 1 <= 5 * seconds + 3
    last = notebook[-1][1]
    assert last["text/html"].count("<svg") == 2
    assert "after epoch 25" in last["text/html"]
    assert "25 epochs" in last["text/plain"]
    assert len(last["text/html"]) < 20_000


def test_curves_of_a_long_training_stay_small(notebook, monkeypatch):
    monkeypatch.setattr(live, "POINTS", 20)
    curves = ng.train.LiveCurves()
    fit([curves], epochs=60)
    assert len(curves._losses) <= 20
