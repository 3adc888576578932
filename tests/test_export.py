"""An exported step runs without the package and gives the same bits."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

import numbagrad as ng
from numbagrad import layers
from numbagrad.errors import GraphError
from numbagrad.jit import njit

RUN = """
import sys
sys.path.insert(0, sys.argv[1])
sys.modules["numbagrad"] = None  # importing it fails
import numpy as np
import step
given = np.load(sys.argv[1] + "/given.npz")
losses = [step.step(given["x"], given["labels"]) for _ in range(2)]
try:
    step.step(given["x"], given["labels"] + 100)
except IndexError as error:
    assert "position 0" in str(error), error
else:
    raise AssertionError("bad labels were taken")
"""


def training():
    ng.random.seed(0)
    model = layers.Sequential(
        layers.Linear(6, 4),
        layers.BatchNorm1d(4),
        layers.ReLU(),
        layers.Dropout(0.3),
        layers.Linear(4, 5),
    )
    opt = ng.optim.Adam(model.parameters(), lr=0.01)

    @ng.compile
    def step(x, labels):
        opt.zero_grad()
        loss = ng.softmax_cross_entropy(model(x), labels)
        loss.backward()
        opt.step()
        return loss

    return model, step


def test_an_exported_step_gives_the_same_bits_without_the_package(tmp_path):
    model, step = training()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 6)).astype(np.float32)
    labels = rng.integers(0, 5, 8)
    step(x, labels)
    tmp_path /= "made"  # by export
    step.export(tmp_path / "step.py")
    np.savez(tmp_path / "given.npz", x=x, labels=labels)
    losses = [step(x, labels).numpy() for _ in range(2)]
    after = RUN.partition("try:")[0] + (
        "np.savez(sys.argv[1] + '/after.npz', losses=np.array(losses), **step.states)\n"
    )
    script = after + "try:" + RUN.partition("try:")[2]
    subprocess.run([sys.executable, "-I", "-c", script, str(tmp_path)], check=True)
    with np.load(tmp_path / "after.npz") as file:
        np.testing.assert_array_equal(file["losses"], np.array(losses))
        for name, value in model.state_dict().items():
            value = np.asarray(value)
            np.testing.assert_array_equal(file["model_" + name.replace(".", "_")], value)


SCALE = 3


def thrice(value):
    return value * SCALE


helper = njit(thrice)


def thrice_kernel(x, out):
    for i in range(x.size):
        out[i] = helper(x[i])


def compiled_op(name, kernel):
    op = ng.custom_op(name, cpu=kernel, infer=lambda x: (x.shape, x.dtype))

    @ng.compile
    def step(x):
        return op(x)

    return step


def test_a_users_kernel_is_written_with_what_it_calls(tmp_path):
    x = np.arange(5, dtype=np.float32)
    step = compiled_op("export_thrice", thrice_kernel)
    step(x)
    step.export(tmp_path / "thrice.py")
    spec = importlib.util.spec_from_file_location("exported_thrice", tmp_path / "thrice.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["exported_thrice"] = module
    spec.loader.exec_module(module)
    np.testing.assert_array_equal(module.step(x), x * 3)
    with pytest.raises(TypeError, match="must be float32 of shape"):
        module.step(x[:3])


def test_a_users_kernel_without_source_is_an_error(tmp_path):
    space = {}
    exec("def lost(x, out):\n    for i in range(x.size):\n        out[i] = x[i]\n", space)
    step = compiled_op("export_lost", space["lost"])
    step(np.ones(3, np.float32))
    with pytest.raises(GraphError, match="no source can be had of the kernel lost"):
        step.export(tmp_path / "lost.py")


def test_export_needs_a_call_and_a_python_path(tmp_path):
    @ng.compile
    def double(x):
        return x * 2

    with pytest.raises(GraphError, match="not been called"):
        double.export(tmp_path / "step.py")
    double(np.ones(3, np.float32))
    with pytest.raises(ValueError, match=r"end in \.py"):
        double.export(tmp_path / "step.txt")
    assert not list(tmp_path.iterdir())


def test_what_weights_make_is_made_at_each_exported_step(tmp_path):
    model = layers.Sequential(layers.Conv2d(2, 20, 3), layers.BatchNorm2d(20), layers.ReLU())
    model.eval()
    predict = ng.compile(lambda x: model(x))
    x = np.random.default_rng(0).standard_normal((3, 6, 5, 2)).astype(np.float32)
    with ng.no_grad():
        expected = predict(x).numpy()
    assert "Of weights alone." in predict.source
    predict.export(tmp_path / "predict.py")
    assert "has changed" not in (tmp_path / "predict.py").read_text()  # it is made at each call
    spec = importlib.util.spec_from_file_location("exported_predict", tmp_path / "predict.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["exported_predict"] = module
    spec.loader.exec_module(module)
    np.testing.assert_array_equal(module.step(x), expected)
    module.states["model_1_bias"] += 1.0
    assert (module.step(x) > expected).any()
