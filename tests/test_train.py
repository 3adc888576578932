"""The training loop: it learns, it repeats itself to the bit, and it says what does not fit."""

import matplotlib
import numpy as np
import pytest

import numbagrad as ng
from numbagrad.errors import DataError, ShapeError
from numbagrad.layers import BatchNorm1d, Dropout, Flatten, Linear, Module, ReLU, Sequential
from numbagrad.train import evaluate, fit, predict

TRAIN, TEST = ng.data.digits()


def small_model(seed=0, classes=10):
    ng.random.seed(seed)
    return Sequential(Flatten(), Linear(64, 128), ReLU(), Dropout(0.1), Linear(128, classes))


def quick(model=None, **options):
    options = {"epochs": 2, "batch_size": 256, "lr": 0.01, "progress": False} | options
    model = model or small_model()
    return model, fit(model, TRAIN.take(600), TEST, **options)


def test_it_learns_and_measures():
    model, history = quick(epochs=8)
    assert history.test_accuracy > 0.9
    first, last = history.epochs[0], history.epochs[-1]
    assert (first.epoch, last.epoch) == (1, 8)
    assert last.train_loss < first.train_loss
    assert last.train_accuracy > first.train_accuracy
    assert last.images_per_second == pytest.approx(600 / last.seconds)
    assert not model.training
    loss, accuracy = evaluate(model, TEST, 100)
    assert loss == pytest.approx(last.test_loss, rel=1e-5)
    assert accuracy == last.test_accuracy
    classes = predict(model, TEST.images)
    assert classes.dtype == np.int64
    assert (classes == TEST.labels).mean() == accuracy
    assert predict(model, TEST.images[:0]).shape == (0,)
    assert repr(history).startswith("History(8 epochs in ")
    assert len(history.csv().splitlines()) == 9


def test_compiled_steps_do_as_eager_ones():
    # 600 images in batches of 256: the last one is shorter.
    (model, history), (other, expected) = quick(compile=True), quick()
    for name, value in model.state_dict().items():
        np.testing.assert_allclose(value, other.state_dict()[name], rtol=1e-3, atol=1e-5)
    for mine, its in zip(history.epochs, expected.epochs, strict=True):
        assert mine.train_loss == pytest.approx(its.train_loss, rel=1e-4)
        assert mine.test_accuracy == pytest.approx(its.test_accuracy, abs=0.01)


def weights_after(**options):
    return quick(**options)[0].state_dict()


def test_the_seed_fixes_every_bit_on_any_number_of_threads():
    threads = ng.get_num_threads()
    try:
        ng.set_num_threads(1)
        alone = weights_after(seed=1)
    finally:
        ng.set_num_threads(threads)
    together, other = weights_after(seed=1), weights_after(seed=2)
    for name, value in alone.items():
        np.testing.assert_array_equal(together[name], value)
    assert any((other[name] != value).any() for name, value in alone.items())


def test_optimisers_by_name_and_by_object():
    model, history = quick(optimizer="sgd", epochs=1)
    assert history.epochs[0].train_loss < 3
    with pytest.raises(ValueError, match="no optimizer is called 'adma'; did you mean 'adam'"):
        quick(model, optimizer="adma")
    with pytest.raises(ValueError, match="has its own lr"):
        quick(model, optimizer=ng.optim.SGD(model.parameters(), lr=0.1))


def test_a_schedule_moves_the_learning_rate():
    model = small_model()
    optimizer = ng.optim.SGD(model.parameters(), lr=0.5)
    seen = []

    def schedule(progress):
        seen.append((progress, optimizer.lr))
        return 1 - progress

    quick(model, optimizer=optimizer, lr=None, epochs=2, schedule=schedule)
    progress, lrs = zip(*seen, strict=True)
    assert progress == pytest.approx([step / 6 for step in range(6)])
    assert lrs == pytest.approx([0.5, *(0.5 * (1 - step / 6) for step in range(5))])
    assert optimizer.lr == 0.5  # as it was given


def test_without_test_set_and_with_a_transform():
    seen = []

    def transform(images):
        seen.append(images.shape)
        return images

    history = fit(
        small_model(),
        TRAIN.take(300),
        epochs=1,
        batch_size=256,
        progress=False,
        transform=transform,
    )
    assert seen == [(256, 8, 8, 1), (44, 8, 8, 1)]
    assert np.isnan(history.test_accuracy)
    assert "test" not in str(history.epochs[0])


def test_other_losses_have_no_accuracy():
    x = np.linspace(-1, 1, 64, dtype=np.float32).reshape(-1, 1)
    ng.random.seed(0)
    model = Linear(1, 1)
    data = x, 2 * x
    history = fit(
        model, data, data, epochs=20, batch_size=64, lr=0.1, loss=ng.mse_loss, progress=False
    )
    # evaluate() inside fit takes the same loss
    assert history.epochs[-1].test_loss < history.epochs[0].test_loss
    assert np.isnan(history.test_accuracy)


def test_lines_without_a_terminal(capsys):
    quick(epochs=2, progress=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:11] for line in lines] == ["epoch 1/2  ", "epoch 2/2  "]
    assert "test accuracy" in lines[0]


def test_a_loss_that_is_not_finite_stops():
    images = TRAIN.images[:300].copy()
    images[:] = np.nan
    with pytest.raises(
        FloatingPointError, match=r"the loss is nan at step 1 in epoch 1.*than 0\.01"
    ):
        fit(small_model(), (images, TRAIN.labels[:300]), epochs=1, lr=0.01, progress=False)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"train": TRAIN.take(0)}, ValueError, "dataset is empty"),
        ({"test": TRAIN.take(0)}, ValueError, "dataset is empty"),
        ({"model": small_model(classes=8)}, DataError, "the model has 8 outputs"),
        (
            {"train": (np.zeros((4, 5, 5, 1), np.float32), np.zeros(4, np.int64))},
            ShapeError,
            r"in layer '1' \(Linear\(64, 128\)\)",
        ),
        ({"model": ng.models.lenet(in_channels=3, image_size=8)}, ShapeError, "in layer '0'"),
        ({"epochs": 0}, ValueError, "epochs must be a whole number"),
        ({"loss": "x"}, TypeError, "fit: loss must be a function of outputs and labels.*'x'"),
        ({"schedule": "cosine"}, TypeError, r"such as numbagrad\.optim\.cosine, got 'cosine'"),
        (
            {"optimizer": ng.optim.SGD(Linear(2, 2).parameters(), lr=0.1)},
            ValueError,
            "the optimizer holds no parameter of this model",
        ),
        (
            {"model": Sequential(Flatten(), BatchNorm1d(64)), "train": TRAIN.take(129)},
            ValueError,
            "129 images in batches of batch_size=128 leave a last batch of one",
        ),
    ],
)
def test_errors_come_before_any_step(arguments, error, message):
    defaults = {"model": small_model(), "train": TRAIN, "test": TEST, "epochs": 1}
    arguments = defaults | arguments
    before = arguments["model"].state_dict()
    with pytest.raises(error, match=message):
        fit(**arguments, progress=False)
    for name, value in arguments["model"].state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_a_function_is_no_model():
    for run in (lambda f: fit(f, TRAIN, epochs=1), lambda f: predict(f, TEST)):
        with pytest.raises(TypeError, match=r"model must be a .*Module, got function"):
            run(lambda x: x)
    with pytest.raises(TypeError, match="evaluate: loss must be a function"):
        evaluate(small_model(), TEST, loss="x")


def test_a_model_may_look_at_values():
    class Dynamic(Module):
        def __init__(self, classes):
            self.linear = Linear(64, classes)

        def forward(self, x):
            h = self.linear(x.reshape(-1, 64))
            return h * 2 if h.mean().item() > 100 else h

    assert quick(Dynamic(10), epochs=1)[1].epochs[0].train_loss < 3
    with pytest.raises(DataError, match="the model has 8 outputs"):
        quick(Dynamic(8))


def test_predict_takes_a_data_set_and_says_what_it_needs():
    model = small_model().eval()
    np.testing.assert_array_equal(predict(model, TEST), predict(model, TEST.images, 7))
    with pytest.raises(ValueError, match="predict: batch_size must be a whole number"):
        predict(model, TEST, batch_size=0)
    with pytest.raises(ShapeError, match=r"predict: the output must be \(n, classes\)"):
        predict(ReLU(), TEST)


def test_a_model_returns_one_array():
    class Two(Module):
        def forward(self, x):
            return x, x

    for run in (predict, evaluate):
        with pytest.raises(TypeError, match=r"Two\.forward\(\) returns a tuple; one Array"):
            run(Two(), TEST)


def test_plot(monkeypatch):
    matplotlib.use("Agg")
    figure = quick(epochs=2)[1].plot()
    assert [axes.get_title() for axes in figure.axes] == ["loss", "accuracy"]
    matplotlib.pyplot.close(figure)


def test_import_stays_light():
    import subprocess
    import sys

    code = (
        "import sys, numbagrad\n"
        "heavy = {'rich', 'typer', 'matplotlib', 'IPython', 'numba_cuda', 'torch'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
