"""The command line: what it prints, what it writes, and how it fails."""

from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

import numbagrad as ng
from numbagrad import cli, weights


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
    monkeypatch.setattr(cli, "fit", lambda *arguments, **options: pytest.fail("it trained"))
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
    monkeypatch.delenv("NUMBAGRAD_DATA", raising=False)
    result = run("train", "lenet", "--data", "mnist")
    assert result.exit_code == 1
    assert result.stderr.startswith("numbagrad: mnist: no folder to look in")
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
        ({"simulator": True}, "unset NUMBA_ENABLE_CUDASIM"),
    ],
)
def test_doctor_describes_a_gpu(monkeypatch, facts, text):
    support = SimpleNamespace(describe=lambda: FACTS | facts)
    monkeypatch.setattr(cli, "backend", lambda name: SimpleNamespace(support=support))
    assert text in cli._describe_cuda()


@pytest.mark.parametrize(
    ("reason", "mend"),
    [
        ("CUDA needs the package numba-cuda", '    pip install "numbagrad[cuda]"'),
        ("CUDA driver library cannot be found", "    install driver 580"),
        ("CUDA_ERROR_NO_DEVICE (100)", "    nvidia-smi"),
        ("disabled due to setting NUMBA_DISABLE_CUDA=1", "    unset NUMBA_DISABLE_CUDA"),
        ("the toolkit lacks NVVM", "    update the driver"),
    ],
)
def test_doctor_says_what_would_mend_cuda(monkeypatch, reason, mend):
    def backend(name):
        raise ng.errors.DeviceError(reason)

    monkeypatch.setattr(cli, "backend", backend)
    assert mend in cli._describe_cuda()


def test_pictures(tmp_path):
    _, test = ng.data.digits()
    classes = test.labels.copy()
    classes[5] += 1
    epochs = [ng.train.Epoch(n, 1 / n, 0.9, 1 / n, 0.8, 1.0, 1437.0) for n in (1, 2, 3)]
    cli._draw(tmp_path, ng.train.History(epochs), test, classes)
    for name in ("learning_curve.png", "predictions.png"):
        assert (tmp_path / name).stat().st_size > 10_000


def test_augmented_slants_and_adds_noise():
    images = np.zeros((500, 8, 8, 1), np.float32)
    images[:, 1, 4] = 1
    augmented = cli._augmented(images, np.random.default_rng(0))
    assert augmented.shape == images.shape
    assert augmented.dtype == np.float32
    mean = augmented.mean(0)[..., 0]  # the noise averages out, and the pixel has not gone far
    assert mean[0:3, 3:6].sum() == pytest.approx(1, abs=0.1)
    assert 0.3 < mean[1, 4] < 0.9
    np.testing.assert_allclose(mean[4:], 0, atol=0.05)
