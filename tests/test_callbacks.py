"""What `fit` does beside learning: callbacks, clipping, the NaN guard, validation, Ctrl-C."""

import csv
import math
import os
import signal

import matplotlib
import numpy as np
import pytest

import numbagrad as ng
from numbagrad.layers import Flatten, Linear, Module, ReLU, Sequential
from numbagrad.train import (
    F1,
    Callback,
    Confusion,
    CSVLog,
    EarlyStopping,
    TensorBoard,
    TopK,
    WeightedCrossEntropy,
    balanced_weights,
    find_lr,
    fit,
)

TRAIN, TEST = ng.data.digits()
BOTH = pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])


def small_model(seed=0):
    ng.random.seed(seed)
    return Sequential(Flatten(), Linear(64, 32), ReLU(), Linear(32, 10))


FEW = TRAIN.take(300)


def quick(model=None, train=FEW, test=TEST, **options):
    options = {"epochs": 2, "batch_size": 128, "lr": 0.01, "progress": False} | options
    model = model or small_model()
    return model, fit(model, train, test, **options)


# ------------------------------------------------------------ metrics, splits


def test_metrics_go_into_the_history():
    confusion = Confusion()
    model, history = quick(metrics=[TopK(3), F1(), confusion])
    last = history.epochs[-1]
    assert set(last.metrics) == {"top3", "f1"}
    assert last.value("top3") >= last.test_accuracy
    assert confusion.value.sum() == len(TEST)
    assert confusion.value.trace() / len(TEST) == last.test_accuracy
    f1 = F1()
    ng.train.evaluate(model, TEST, 77, metrics=[f1])
    assert f1.value == pytest.approx(last.metrics["f1"])
    header, *lines = history.csv().splitlines()
    assert header.endswith("images_per_second,top3,f1")
    assert len(lines) == 2
    assert f"f1 {last.metrics['f1']:.4g}" in str(last)
    with pytest.raises(ValueError, match="no number is called 'top'; did you mean 'top3'"):
        last.value("top")


def test_a_validation_split_is_the_seed_s():
    class Sees(Callback):
        def begin(self, run):
            self.images = run.loader.images

    def kept(seed, share=0.2):
        sees = Sees()
        quick(test=None, validation_split=share, seed=seed, epochs=1, callbacks=[sees])
        return sees.images

    one, again, other = kept(1), kept(1), kept(2)
    assert len(one) == 240
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    history = quick(test=None, validation_split=0.2)[1]
    assert not math.isnan(history.test_accuracy)
    with pytest.raises(ValueError, match="give test or validation_split, not both"):
        quick(validation_split=0.1)
    for share in (1.0, -0.1, 1e-6, "a"):
        with pytest.raises(ValueError, match=r"validation_split must be a share, such as 0\.1"):
            quick(test=None, validation_split=share)


def test_wrong_kinds_are_refused():
    with pytest.raises(TypeError, match=r"such as numbagrad.train.F1\(\), got 'f1'"):
        quick(metrics=["f1"])
    with pytest.raises(TypeError, match=r"such as numbagrad.train.EarlyStopping\(patience=3\)"):
        quick(callbacks=[print])
    with pytest.raises(ValueError, match=r"each metric needs a name of its own.*'f1'"):
        quick(metrics=[F1(), TopK(2), F1()])
    with pytest.raises(ValueError, match="metrics are measured on a test set"):
        quick(test=None, metrics=[F1()])


# ------------------------------------------------------------------ callbacks


def test_callbacks_are_told_of_everything():
    class Told(Callback):
        def __init__(self):
            self.of = []

        def begin(self, run):
            self.of.append("begin")

        def step(self, run):
            self.of.append(run.steps)

        def epoch(self, run, epoch):
            self.of.append(f"epoch {epoch.epoch}")

        def end(self, run):
            self.of.append("end")

    told = Told()
    quick(callbacks=[told])
    assert told.of == ["begin", 1, 2, 3, "epoch 1", 4, 5, 6, "epoch 2", "end"]


def test_early_stopping_waits_for_its_patience():
    stopping = EarlyStopping(patience=2)
    _, history = quick(epochs=9, lr=0.0, callbacks=[stopping])  # nothing ever gets better
    assert len(history.epochs) == 3
    assert history.stopped == "no better loss for 2 epochs"
    assert len(quick(epochs=4, callbacks=[stopping])[1].epochs) == 4  # it starts anew
    with pytest.raises(ValueError, match="no number is called 'acuracy'"):
        quick(callbacks=[EarlyStopping(1, monitor="acuracy")])
    with pytest.raises(ValueError, match="patience must be a whole number of at least 1"):
        EarlyStopping(0)
    with pytest.raises(ValueError, match="min_delta must be at least 0"):
        EarlyStopping(1, min_delta=-1)


def test_early_stopping_knows_what_is_better():
    def epochs(losses, **options):
        stopping = EarlyStopping(patience=1, **options)
        run = type("Run", (), {"stopped": None, "stop": lambda self, why: setattr(self, "s", why)})
        for k, loss in enumerate(losses):
            one = run()
            stopping.epoch(one, ng.train.Epoch(k, loss, loss, math.nan, math.nan, 1.0, 1.0))
            if hasattr(one, "s"):
                return k
        return None

    assert epochs([3, 2, 1, 1]) == 3
    assert epochs([1, 2, 3, 3], monitor="train_accuracy") == 3
    assert epochs([3, 2, 1.99], min_delta=0.1) == 2
    assert epochs([3, math.nan]) == 1


def test_the_csv_file_is_the_history(tmp_path):
    path = tmp_path / "new" / "metrics.csv"
    _, history = quick(callbacks=[CSVLog(path)], metrics=[F1()])
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [int(row["epoch"]) for row in rows] == [1, 2]
    assert [float(row["f1"]) for row in rows] == [e.metrics["f1"] for e in history.epochs]
    assert [file.name for file in path.parent.iterdir()] == ["metrics.csv"]


def test_tensorboard_shows_the_history(tmp_path):
    from test_events import read

    _, history = quick(callbacks=[TensorBoard(tmp_path)], metrics=[F1()])
    shown = read(tmp_path)
    assert [step for step, _ in shown["loss/train"]] == [3, 6]
    losses = [np.float32(epoch.test_loss) for epoch in history.epochs]
    assert [value for _, value in shown["loss/test"]] == losses
    assert "metrics/f1" in shown
    assert shown["learning rate"][0][1] == pytest.approx(0.01)


# ------------------------------------------------- gradients and their health


@BOTH
def test_clipping(compile):
    def moved(**options):
        model = small_model()
        before = model.state_dict()
        quick(
            model,
            optimizer=ng.optim.SGD(model.parameters(), lr=1.0),
            lr=None,
            epochs=1,
            batch_size=300,
            compile=compile,
            **options,
        )
        return {name: value - before[name] for name, value in model.state_dict().items()}

    free = moved()
    norm = math.sqrt(sum(float((x.astype(np.float64) ** 2).sum()) for x in free.values()))
    for name, value in moved(clip_norm=norm / 4).items():
        np.testing.assert_allclose(value, free[name] / 4, rtol=1e-3, atol=1e-6)
    for name, value in moved(clip_norm=norm * 4).items():
        np.testing.assert_allclose(value, free[name], rtol=1e-3, atol=1e-6)
    for name, value in moved(clip_value=1e-3).items():
        np.testing.assert_allclose(value, free[name].clip(-1e-3, 1e-3), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("option", ["clip_norm", "clip_value"])
def test_clipping_needs_a_bound_above_zero(option):
    with pytest.raises(ValueError, match="must be above 0 and finite in float32, got 0"):
        quick(**{option: 0})


class Log(Module):
    def forward(self, x):
        return ng.log(x)


@BOTH
def test_the_nan_guard_names_step_and_layer(compile):
    images = TRAIN.images[:300].copy()
    images[150] = -1  # of which Log makes NaN
    images[np.arange(300) != 150] += 1
    order = np.argsort(np.random.Philox(key=np.zeros(2, np.uint64)).random_raw(300))
    step = 1 + int(np.flatnonzero(order == 150)[0]) // 32
    ng.random.seed(0)
    model = Sequential(Flatten(), Log(), Linear(64, 10))
    with pytest.raises(
        FloatingPointError,
        match=rf"the loss is nan at step {step} in epoch 1; the first output that is not finite: "
        r"layer '1' \(Log\); a smaller lr than 0\.001 may help$",
    ):
        quick(
            model, (images, TRAIN.labels[:300]), batch_size=32, lr=0.001, nan_guard=True,
            test=None, compile=compile,
        )  # fmt: skip


def test_the_nan_guard_looks_at_gradients():
    class Root(Module):  # finite, but its slope at 0 is not
        def forward(self, x):
            return ng.sqrt(x * 0.0)

    model = Sequential(Flatten(), Linear(64, 10), Root())
    with pytest.raises(
        FloatingPointError, match=r"the gradient of '1.weight' is not finite at step 1 in epoch 1"
    ):
        quick(model, nan_guard=True)


@BOTH
def test_the_nan_guard_changes_no_bit_of_a_healthy_run(compile):
    plain, _ = quick(compile=compile)
    guarded, _ = quick(compile=compile, nan_guard=True)
    for name, value in plain.state_dict().items():
        if compile:  # other loops, other rounding
            np.testing.assert_allclose(guarded.state_dict()[name], value, rtol=1e-4, atol=1e-6)
        else:
            np.testing.assert_array_equal(guarded.state_dict()[name], value)


@BOTH
def test_everything_at_once_compiles_once(compile, capfd):
    loss = WeightedCrossEntropy(balanced_weights(TRAIN))
    _, history = quick(
        epochs=4,
        lr=0.02,
        compile=compile,
        loss=loss,
        schedule=ng.optim.warmup(0.1, ng.optim.one_cycle()),
        clip_norm=1.0,
        clip_value=0.5,
        nan_guard=True,
        metrics=[TopK(2)],
        callbacks=[EarlyStopping(3)],
    )
    assert history.epochs[-1].train_loss < history.epochs[0].train_loss
    assert "again" not in capfd.readouterr().err


# --------------------------------------------------------------------- Ctrl-C


class Press(Callback):
    """Presses Ctrl-C at a step."""

    def __init__(self, at, times=1):
        self.at, self.times = at, times

    def step(self, run):
        if run.steps == self.at:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.skipif(os.name != "posix", reason="sends a signal to itself")
def test_ctrl_c_returns_the_history():
    model, history = quick(epochs=9, callbacks=[Press(7)])
    assert len(history.epochs) == 2
    assert history.stopped == "interrupted"
    assert not model.training
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    history = quick(epochs=9, callbacks=[Press(2)])[1]
    assert history.epochs == []
    assert math.isnan(history.test_accuracy)
    with pytest.raises(KeyboardInterrupt):
        quick(epochs=9, callbacks=[Press(2, times=2)])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# ------------------------------------------------------ search, and schedules


@BOTH
def test_the_search_finds_a_rate_and_leaves_no_trace(compile):
    model = small_model()
    optimizer = ng.optim.Adam(model.parameters(), lr=0.25)
    ng.random.uniform(3)
    before, moments = model.state_dict(), optimizer.state_dict()
    found = find_lr(model, TRAIN, optimizer=optimizer, highest=1e3, steps=60, compile=compile)
    assert 1e-3 < found.suggestion < 0.5
    assert len(found.lrs) < 60  # it exploded
    for name, value in (model.state_dict() | optimizer.state_dict()).items():
        np.testing.assert_array_equal(value, (before | moments)[name])
    drawn = ng.random.uniform(3).tolist()
    ng.random.seed(0)
    small_model()
    ng.random.uniform(3)
    assert ng.random.uniform(3).tolist() == drawn
    assert model.training
    assert repr(found).startswith(f"LearningRates({len(found.lrs)} steps from 1e-06 to ")
    matplotlib.use("Agg")
    figure = found.plot()
    assert figure.axes[0].get_xscale() == "log"
    matplotlib.pyplot.close(figure)
    with pytest.raises(ValueError, match="0 < lowest < highest"):
        find_lr(model, TRAIN, lowest=1, highest=0.1)
    images = np.full((20, 8, 8, 1), np.nan, np.float32)
    with pytest.raises(ValueError, match="the loss explodes at once"):
        find_lr(model, (images, np.zeros(20, np.int64)))
