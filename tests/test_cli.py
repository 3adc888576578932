"""The command line: what it prints, what it writes, and how it fails."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

import numbagrad as ng
from numbagrad import cli, weights
from numbagrad.commands import demo, doctor, runs
from numbagrad.memory import MemorySummary


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_train_prints_the_accuracy_last_and_saves(tmp_path):
    out = tmp_path / "run"
    result = run("train", "mlp", "--epochs", 2, "--batch-size", 256, "--lr", 0.01, "--out", out)
    assert result.exit_code == 0, result.output
    *rest, last = result.stdout.splitlines()
    assert rest[0] == "mlp with 9,610 parameters, 1,437 images of digits"
    assert last.startswith("test accuracy ")
    assert last.endswith(" %")
    header, *lines = (out / "metrics.csv").read_text().splitlines()
    assert header.startswith("epoch,train_loss")
    assert len(lines) == 2
    model = ng.models.mlp(image_size=8)
    model.load_state_dict(weights.load(out / "model.safetensors"))
    accuracy = ng.train.evaluate(model, ng.data.digits()[1])[1]
    assert last == f"test accuracy {100 * accuracy:.1f} %"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("train", "lennet"), "'lenet'"),
        (("train", "lenet", "--data", "digts"), "'digits'"),
        (("train", "lenet", "--optimizer", "adm"), "'adam'"),
        (("train", "lenet", "--device", "cudaa"), "'cuda'"),
        (("train", "lenet", "--epoch", "3"), "--epochs"),
        (("train", "lenet", "--epochs", "0"), "--epochs"),
        (("train", "lenet", "--threads", "1000"), "between 1 and"),
        (("train", "lenet", "--lr", "inf"), "--lr"),
        (("train", "lenet", "--lr", "nan"), "--lr"),
        (("train", "lenet", "--seed", str(2**63)), "--seed"),
        (("trian",), "train"),
    ],
)
def test_a_wrong_name_gets_the_nearest(arguments, hint):
    result = run(*arguments)
    assert result.exit_code == 2
    assert hint in result.output
    assert "Traceback" not in result.output


def test_the_seed_fixes_every_byte_of_the_weights(tmp_path):
    threads = ng.get_num_threads()
    try:
        for count in (1, threads):
            out = tmp_path / str(count)
            arguments = "train", "lenet", "--epochs", 1, "--batch-size", 256, "--seed", 3
            result = run(*arguments, "--threads", count, "--out", out)
            assert result.exit_code == 0, result.output
    finally:
        ng.set_num_threads(threads)
    alone, together = (tmp_path / str(count) / "model.safetensors" for count in (1, threads))
    assert alone.read_bytes() == together.read_bytes()


@pytest.mark.parametrize("command", [("train", "mlp"), ("demo",)])
def test_a_folder_that_cannot_be_made_is_found_before_training(tmp_path, monkeypatch, command):
    for module in (ng.train, demo):
        monkeypatch.setattr(module, "fit", lambda *args, **options: pytest.fail("it trained"))
    file = tmp_path / "file"
    file.write_text("mine")
    result = run(*command, "--out", file)
    assert result.exit_code == 2
    assert "--out" in result.output
    result = run(*command, "--out", file / "inside")
    assert result.exit_code == 1
    assert "Not a directory" in result.stderr
    assert file.read_text() == "mine"


def test_divergence_names_the_learning_rate_that_was_given():
    result = run("train", "mlp", "--lr", "1e30", "--epochs", 1)
    assert result.exit_code == 1
    assert "a smaller lr than 1e+30 may help" in result.stderr


def test_errors_of_ours_are_one_line(monkeypatch):
    monkeypatch.setenv("NUMBAGRAD_DATA", "/nowhere")
    result = run("train", "lenet", "--data", "mnist")
    assert result.exit_code == 1
    assert result.stderr.startswith("numbagrad: mnist: /nowhere/mnist has no train-images")
    assert result.stderr.count("\n") == 1


def test_doctor():
    result = run("doctor")
    assert result.exit_code == 0
    for fact in ("numbagrad  " + ng.__version__, "CPU", "kernel cache", "CUDA", "passed: matmul"):
        assert fact in result.stdout


FACTS = {
    "numba_cuda": "0.30", "simulator": False, "unavailable": None, "toolkit": "13.0",
    "driver": "13.0", "device": "GPU", "compute_capability": (9, 0),
}  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({}, "GPU, compute capability 9.0, driver for CUDA 13.0"),
        ({}, "3.0 GiB of 80.0 GiB are free"),
        ({"simulator": True}, "unset NUMBA_ENABLE_CUDASIM"),
    ],
)
def test_doctor_describes_a_gpu(monkeypatch, facts, text):
    support = SimpleNamespace(describe=lambda: FACTS | facts)
    summary = MemorySummary("cuda", 0, 0, 3 * 2**30, 80 * 2**30)
    monkeypatch.setattr(doctor, "memory_summary", lambda device: summary)
    monkeypatch.setattr(doctor, "backend", lambda name: SimpleNamespace(support=support))
    assert text in doctor.describe_cuda()


@pytest.mark.parametrize(
    ("reason", "mend"),
    [
        ("CUDA needs the package numba-cuda", '    pip install "numbagrad[cuda]"'),
        ("CUDA driver library cannot be found", "    install driver 580"),
        ("CUDA_ERROR_NO_DEVICE (100)", "    nvidia-smi"),
        ("disabled due to setting NUMBA_DISABLE_CUDA=1", "    unset NUMBA_DISABLE_CUDA"),
        ("the toolkit lacks NVVM", "    update the driver"),
        ("the driver serves CUDA 12.8, which is too old", "    update the driver to 580"),
    ],
)
def test_doctor_says_what_would_mend_cuda(monkeypatch, reason, mend):
    def backend(name):
        raise ng.errors.DeviceError(reason)

    monkeypatch.setattr(doctor, "backend", backend)
    assert mend in doctor.describe_cuda()


def test_pictures(tmp_path):
    _, test = ng.data.digits()
    classes = test.labels.copy()
    classes[5] += 1
    demo.draw(tmp_path, test, classes)
    assert (tmp_path / "predictions.png").stat().st_size > 10_000


def test_augmented_slants_and_adds_noise():
    images = np.zeros((500, 8, 8, 1), np.float32)
    images[:, 1, 4] = 1
    augmented = demo.augmented(images, np.random.default_rng(0))
    assert augmented.shape == images.shape
    assert augmented.dtype == np.float32
    mean = augmented.mean(0)[..., 0]  # the noise averages out, and the pixel has not gone far
    assert mean[0:3, 3:6].sum() == pytest.approx(1, abs=0.1)
    assert 0.3 < mean[1, 4] < 0.9
    np.testing.assert_allclose(mean[4:], 0, atol=0.05)


# -------------------------------------------------------------------- runs

SMALL = """\
[data]
name = "digits"
train_images = 1400
test_images = 200
shift = 1

[solver]
epochs = 3
batch_size = 64
lr = 0.01
patience = 9

[[net]]
layer = "Conv2d"
out_channels = 4
kernel_size = 3

[[net]]
layer = "ReLU"

[[net]]
layer = "Dropout"
p = 0.1

[[net]]
layer = "Flatten"

[[net]]
layer = "Linear"
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that nobody may change."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "net.toml").write_text(SMALL)
    result = run("train", folder / "net.toml", "--out", folder / "run")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("net with 1,490 parameters, 1,400 images of digits\n")
    return folder / "run"


def test_a_run_holds_all_that_it_came_to(trained):
    names = {path.relative_to(trained).as_posix() for path in trained.rglob("*.*")}
    assert names == {
        "config.toml", "model.safetensors", "metrics.csv", "curves.png",
        "checkpoints/last.safetensors", "checkpoints/best.safetensors",
    }  # fmt: skip
    assert len(runs.read_history(trained).epochs) == 3
    assert runs.load(trained).classes == tuple("0123456789")


def test_the_config_of_a_run_repeats_it_to_the_bit(trained, tmp_path):
    result = run("train", trained / "config.toml", "--out", tmp_path / "again")
    assert result.exit_code == 0, result.output
    for name in ("model.safetensors", "config.toml", "checkpoints/best.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (trained / name).read_bytes(), name


@pytest.mark.parametrize("epochs_before", [0, 2])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    trained, tmp_path, monkeypatch, epochs_before
):
    class PowerCut(ng.train.Callback):
        def step(self, run):
            if len(run.history.epochs) == epochs_before:
                raise FloatingPointError("the lights went out")

    fit = ng.train.fit
    with monkeypatch.context() as patch:
        patch.setattr(
            ng.train,
            "fit",
            lambda *args, callbacks, **options: fit(
                *args, callbacks=[*callbacks, PowerCut()], **options
            ),
        )
        result = run("train", trained / "config.toml", "--out", tmp_path / "run")
        assert (result.exit_code, result.stderr) == (1, "numbagrad: the lights went out\n")
    result = run("train", "--resume", tmp_path / "run")
    assert result.exit_code == 0, result.output
    name = "model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (trained / name).read_bytes()
    assert len(runs.read_history(tmp_path / "run").epochs) == 3


def test_a_run_goes_on_with_its_own_settings(trained):
    result = run("train", "--resume", trained, "--lr", 0.1)
    assert result.exit_code == 2
    assert "--lr" in result.output
    result = run("train", "lenet", "--resume", trained)
    assert result.exit_code == 2
    assert "MODEL" in result.output
    result = run("train")
    assert result.exit_code == 2
    assert "--resume" in result.output


def test_a_run_is_overwritten_only_on_purpose(trained, tmp_path, monkeypatch):
    out = tmp_path / "run"
    arguments = "train", trained / "config.toml", "--epochs", 1, "--out", out
    assert run(*arguments).exit_code == 0
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    result = run(*arguments)
    assert result.exit_code == 1
    assert "--overwrite" in result.stderr
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
    (out / "mine.txt").write_text("mine")

    def no_data(name):
        raise ng.errors.DataError("no data")

    with monkeypatch.context() as patch:
        patch.setattr(ng.data, "load", no_data)
        assert run(*arguments, "--overwrite").exit_code == 1
    assert (out / "model.safetensors").read_bytes() == before[out / "model.safetensors"]
    assert run(*arguments, "--epochs", 2, "--overwrite").exit_code == 0
    assert len(runs.read_history(out).epochs) == 2
    assert (out / "mine.txt").read_text() == "mine"


def test_a_full_disk_is_told_in_one_line_and_leaves_the_config_as_it_was(
    trained, tmp_path, monkeypatch
):
    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "x"))

    monkeypatch.setattr(os, "fsync", full)
    result = run("train", trained / "config.toml", "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    assert "free some space" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_a_full_disk_names_the_file_that_was_not_written(trained, tmp_path, monkeypatch):
    def full(path, *args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    page = tmp_path / "page.html"
    page.write_text("the one before")
    monkeypatch.setattr(os, "replace", full)
    result = run("report", trained, "--out", page)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"numbagrad: {page}: No space left on device; free some space")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["the one before"]


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    class Interrupt(ng.train.Callback):
        def step(self, run):
            if run.steps == 30:
                os.kill(os.getpid(), signal.SIGINT)

    arguments = "train", "mlp", "--epochs", 3, "--batch-size", 64, "--out"
    with pytest.MonkeyPatch.context() as patch:
        callbacks = runs._callbacks
        patch.setattr(runs, "_callbacks", lambda *args: [*callbacks(*args), Interrupt()])
        result = run(*arguments, tmp_path / "run")
    assert result.exit_code == 130
    assert f"to go on: numbagrad train --resume {tmp_path / 'run'}" in result.stdout
    assert run("train", "--resume", tmp_path / "run").exit_code == 0
    assert run(*arguments, tmp_path / "whole").exit_code == 0
    name = "model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_errors_of_a_file_name_its_line(tmp_path):
    path = tmp_path / "net.toml"
    path.write_text(SMALL.replace("patience", "patients"))
    result = run("train", path, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"numbagrad: {path}:11: ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
    result = run("train", tmp_path / "no.toml")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "No such file" in result.stderr


def test_evaluate(trained):
    last = runs.read_history(trained).epochs[-1]
    result = run("evaluate", trained)
    assert result.exit_code == 0, result.output
    assert f"test loss {last.test_loss:.4f}\n" in result.stdout
    assert result.stdout.endswith(f"test accuracy {100 * last.test_accuracy:.1f} %\n")
    result = run("evaluate", trained, "--best")
    assert "best.safetensors" in result.stdout
    result = run("evaluate", trained.parent)
    assert result.exit_code == 1
    assert "no run is here" in result.stderr


def test_a_checkpoint_serves_until_there_is_a_model(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (folder / "model.safetensors").unlink()
    assert (
        run("evaluate", folder).stdout.splitlines()[1:]
        == (run("evaluate", trained).stdout.splitlines()[1:])
    )
    shutil.rmtree(folder / "checkpoints")
    result = run("evaluate", folder)
    assert result.exit_code == 1
    assert "no weights yet" in result.stderr
    (folder / "model.safetensors").write_bytes(b"not this")
    assert "no weights could be read" in run("evaluate", folder).stderr


@pytest.mark.parametrize(
    ("mode", "name"),
    [("L", "a.png"), ("RGB", "a.jpg"), ("RGBA", "a.png"), ("P", "a.gif"), ("1", "a.png"),
     ("I;16", "a.png"), ("CMYK", "a.jpg"), ("LA", "a.png")],
)  # fmt: skip
def test_predict_takes_pictures_of_any_kind_and_size(trained, tmp_path, mode, name):
    from PIL import Image

    image, label = ng.data.digits()[1][3]
    grey = Image.fromarray((image[:, :, 0] * 255).astype(np.uint8)).resize((70, 70))
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        picture = grey.convert("L" if mode in ("L", "LA") else "RGB").convert(mode)
    picture.save(tmp_path / name)
    result = run("predict", trained, tmp_path / name, "--top", 2)
    assert result.exit_code == 0, result.output
    first = result.stdout.splitlines()[1]
    assert first.endswith("%")
    assert first.split()[0] == str(label)


def test_predict_says_what_is_no_picture(trained, tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    for name, text in (("a.png", "cannot be read as a picture"), ("b.png", "no such file")):
        result = run("predict", trained, tmp_path / name)
        assert result.exit_code == 1
        assert text in result.stderr
        assert result.stderr.count("\n") == 1


def test_predict_turns_bright_pictures(trained, tmp_path):
    from PIL import Image

    image, label = ng.data.digits()[1][3]
    Image.fromarray(255 - (image[:, :, 0] * 255).astype(np.uint8)).save(tmp_path / "a.png")
    assert "try with --invert" in run("predict", trained, tmp_path / "a.png").stdout
    turned = run("predict", trained, tmp_path / "a.png", "--invert").stdout
    assert "--invert" not in turned
    assert f"{label} █" in turned


def test_summary(trained):
    result = run("summary", "lenet", "--data", "mnist")
    assert result.exit_code == 0
    assert "Conv2d(1, 6, 5, padding=2)" in result.stdout
    assert "Linear(400, 120)" in result.stdout
    assert "Linear(144, 10)" in run("summary", trained).stdout
    assert "'lenet'" in run("summary", "lennet").output


def test_what_was_warmed_up_compiles_nothing_more(trained):
    def numbagrad(command):
        line = [sys.executable, "-m", "numbagrad", command, str(trained / "config.toml")]
        process = subprocess.run(line, capture_output=True, text=True, timeout=280, check=True)
        return process.stdout + process.stderr

    assert "warm after " in numbagrad("warmup")
    assert "compiling" not in numbagrad("train")
