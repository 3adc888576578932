"""What of CUDA can be tested with plain numba-cuda: no GPU, no CUDA toolkit, no simulator."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cuda_kernels import F32, F64, add_tenth, arrays, gather, softened_log, tiled_matmul

from numbagrad import cuda_support as cs
from numbagrad import device
from numbagrad.cuda_support import BLOCK, TILE, launch, types

ROOT = Path(__file__).parents[1]


# --- launching -------------------------------------------------------------------------------


def test_recording_collects_types_and_launches_nothing():
    x, out = np.ones(5, np.float32), np.zeros(5, np.float32)
    with cs.record_launches() as launches:
        launch(softened_log, 1, BLOCK, 0, x, out)
        launch(softened_log, 9, BLOCK, 0, x[:2], out)
        launch(
            gather,
            (1, 2),
            (BLOCK, 1),
            0,
            *(x.astype(np.float64), x > 0, x[:, None].astype(np.int64)),
            *((4, 5), np.float32(2), True, np.array(1)),
        )
        launch(add_tenth, 0, BLOCK, 0, x, out)
        launch(tiled_matmul, (3, 0), (TILE, TILE), 0, x, x, out)
    assert launches == {
        (softened_log, arrays(F32, 1, 1)),
        (
            gather,
            (
                *(*arrays(F64, 1), *arrays(types.boolean, 1), *arrays(types.int64, 2)),
                *(types.UniTuple(types.int64, 2), F32, types.boolean, *arrays(types.int64, 0)),
            ),
        ),
    }
    assert not out.any()


def test_recording_ends_with_its_block():
    with cs.record_launches() as outer:
        with cs.record_launches() as inner:
            launch(add_tenth, 1, 1, 0, np.ones(1), np.ones(1))
        launch(add_tenth, 2, 1, 0, np.ones(1, np.float32), np.ones(1, np.float32))
    assert inner == {(add_tenth, arrays(F64, 1, 1))}
    assert outer == {(add_tenth, arrays(F32, 1, 1))}


@pytest.mark.parametrize(
    ("value", "message"),
    [(0.5, r"add_tenth: argument 1 .*x\.dtype\.type"), (None, "argument 1 .*NoneType")],
)
def test_arguments_that_no_kernel_takes(value, message):
    with cs.record_launches(), pytest.raises(TypeError, match=message):
        launch(add_tenth, 1, BLOCK, 0, np.ones(2), value)


# --- memory ----------------------------------------------------------------------------------


def test_cpu_memory_is_no_gpu_memory():
    with pytest.raises(AttributeError, match=r"x\.to\('cuda'\)"):
        device.CPU.cuda_array_interface(np.ones(1))


# --- what is here ----------------------------------------------------------------------------


def test_describe():
    facts = cs.describe()
    assert facts["simulator"] is False
    assert facts["unavailable"] == cs.why_unavailable()
    assert (facts["device"] is None) == (facts["unavailable"] is not None)


# --- choosing a device -----------------------------------------------------------------------

# numba-cuda, a driver and a GPU may each be there or not: these processes lack what they say.
WITHOUT_NUMBA_CUDA = "import sys; sys.modules['numba_cuda'] = None"
WITH_A_BROKEN_NUMBA_CUDA = "import sys; sys.modules['numba.cuda'] = None"
WITHOUT_A_GPU = """
from numbagrad import cuda_support
cuda_support.why_unavailable = lambda: "the driver is missing."
"""
TRY_TWICE = """
import numbagrad as ng
for _ in range(2):
    try:
        print(ng.asarray([1.0], device="{name}").device)
    except ng.errors.DeviceError as error:
        print(error)
"""


def try_twice(setting, name):
    """Return the lines that a new process prints, and those of them that warn."""
    code = setting + TRY_TWICE.format(name=name)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines(), re.findall("Warning: (.*)", result.stderr)


@pytest.mark.parametrize(
    ("setting", "start", "end"),
    [
        (WITHOUT_NUMBA_CUDA, "CUDA needs the package numba-cuda", ": "),
        (WITH_A_BROKEN_NUMBA_CUDA, "numba-cuda does not load (", "). Repair it: "),
        (WITHOUT_A_GPU, "device 'cuda' cannot be used: the driver is missing. ", ", and "),
    ],
    ids=["no numba-cuda", "broken numba-cuda", "no GPU"],
)
def test_a_missing_device(setting, start, end):
    lines, warned = try_twice(setting, "cuda")
    assert lines[0] == lines[1]
    assert lines[0].startswith(start)
    assert lines[0].endswith(end + 'pip install "numbagrad[cuda]"')
    assert not warned
    warning = f"device 'auto' is the CPU here: {lines[0]}"
    expected = [] if setting == WITHOUT_NUMBA_CUDA else [warning]
    assert try_twice(setting, "auto") == (["cpu", "cpu"], expected)


def test_auto_takes_a_gpu_but_no_simulator(monkeypatch):
    cuda = SimpleNamespace(is_simulator=False)
    monkeypatch.setattr(device, "backend", lambda name: cuda)
    assert device._auto.__wrapped__() == "cuda"
    cuda.is_simulator = True
    assert device._auto.__wrapped__() == "cpu"
