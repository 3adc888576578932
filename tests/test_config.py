"""Trainings as TOML files: what they say, and how what is wrong with one is told."""

import pytest

import numbagrad as ng
from numbagrad.commands import config
from numbagrad.errors import ConfigError

NET = """\
[data]
name = "digits"   # 8x8

[solver]
epochs = 2
lr = 0.01

[[net]]
layer = "Conv2d"
out_channels = 4
kernel_size = 3
padding = 1

[[net]]
layer = "batchnorm2d"

[[net]]
layer = "ReLU"

[[net]]
layer = "MaxPool2d"
kernel_size = 2

[[net]]
layer = "Flatten"

[[net]]
layer = "Linear"
"""


def read(tmp_path, text, changes=None):
    path = tmp_path / "net.toml"
    path.write_text(text)
    return config.read(path, changes)


def test_what_follows_from_the_layer_before_may_be_left_out(tmp_path):
    model = read(tmp_path, NET).model((8, 8, 1), 10)
    assert [repr(layer) for layer in model] == [
        "Conv2d(1, 4, 3, padding=1)", "BatchNorm2d(4)", "ReLU()", "MaxPool2d(2)", "Flatten()",
        "Linear(64, 10)",
    ]  # fmt: skip


def test_what_it_writes_reads_as_the_same(tmp_path):
    for text in (NET, '[net]\nmodel = "mlp"\nhidden = [32, 16]\n[solver]\noptimizer = "sgd"'):
        first = read(tmp_path, text)
        again = read(tmp_path, first.toml())
        assert again == first
        assert again.toml() == first.toml()


def test_changes_come_before_what_the_file_says(tmp_path):
    changed = read(tmp_path, '[net]\nmodel = "mlp"', {"solver": {"optimizer": "sgd"}})
    assert changed.solver["lr"] == 0.05
    assert isinstance(changed.optimizer(ng.layers.Linear(1, 1)), ng.optim.SGD)
    assert read(tmp_path, NET, {"solver": {"lr": 0.5}}).solver["lr"] == 0.5


@pytest.mark.parametrize(
    ("old", "new", "line", "text"),
    [
        ("epochs = 2", "epoch = 2", 5, "did you mean 'epochs'"),
        ("epochs = 2", "epochs = 0", 5, "epochs = 0: needs a whole number of at least 1"),
        ("epochs = 2", "epochs = true", 5, "whole number"),
        ("lr = 0.01", "lr = -1", 6, "needs a number of at least 0"),
        ("lr = 0.01", "lr = nan", 6, "needs a number"),
        ("lr = 0.01", 'lr = "fast"', 6, 'lr = "fast"'),
        ("lr = 0.01", "lr = 1e40", 6, "finite in float32"),
        ("lr = 0.01", "momentum = 0.5", 6, "for optimizer = \"sgd\""),
        ("lr = 0.01", "clip_norm = 0", 6, "above 0"),
        ("lr = 0.01", 'compile = "yes"', 6, "true or false"),
        ("lr = 0.01", 'schedule = "cosin"', 6, "'cosine'"),
        ('"digits"', '"digit"', 2, "'digits'"),
        ("[solver]", "[solvers]", 4, "[solver"),
        ("padding = 1", "paddin = 1", 12, "did you mean 'padding'"),
        ('"ReLU"', '"ReLUU"', 18, "'ReLU'"),
        ("kernel_size = 3", "kernel_size = 30", 8, "Conv2d"),
        ("kernel_size = 3", "", 8, "kernel_size"),
        ("out_channels = 4", "out_channels = {}", 10, "must not be a table"),
        ('layer = "Flatten"', "", 24, "layer = is missing"),
        ('layer = "Linear"', 'layer = "Linear"\nout_features = 7', 27, "10 classes"),
        ('layer = "Linear"', 'layer = "Linear"\nin_features = 7', 27, "7"),
        ("epochs = 2", "epochs = = 2", 5, "Invalid value"),
        ("epochs = 2", "lr = 1", 6, "overwrite"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_line(tmp_path, old, new, line, text):
    assert old in NET
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, NET.replace(old, new, 1)).model((8, 8, 1), 10)
    assert str(caught.value).startswith(f"{tmp_path / 'net.toml'}:{line}: "), caught.value
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_done_to_training_images(tmp_path):
    assert read(tmp_path, NET).transform((8, 8, 1)) is None
    text = NET.replace('name = "digits"', "flip = true\nshift = 2\ncutout = 3")
    changes = read(tmp_path, text).transform((8, 8, 1)).transforms
    assert [type(one).__name__ for one in changes] == ["RandomCrop", "RandomFlip", "Cutout"]
    assert (changes[0].size, changes[0].padding, changes[2].size) == (8, 2, 3)


def test_a_dotted_key_has_its_line(tmp_path):
    with pytest.raises(ConfigError, match=r"net\.toml:2: .*'lr'"):
        read(tmp_path, 'net = {model = "mlp"}\nsolver . lrr = 1')
    with pytest.raises(ConfigError, match=r"net\.toml:1: .*'mlp'"):
        read(tmp_path, 'net = {model = "mlpp"}')


@pytest.mark.parametrize("text", ["", "net = 3", "net = []", "data = 3", "net = ["])
def test_what_has_no_net(tmp_path, text):
    with pytest.raises(ConfigError, match=r"net\.toml:"):
        read(tmp_path, text)


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "net.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        config.read(path)


def test_facts_of_data_sets_are_those_of_their_files():
    train, test = ng.data.digits()
    facts = config.DATA["digits"]
    assert (facts.shape, facts.classes) == (train.images.shape[1:], len(train.classes))
    assert (facts.train, facts.test) == (len(train), len(test))
