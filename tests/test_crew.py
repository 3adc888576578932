"""Helper processes compile what the disk does not have, and nothing depends on them."""

import os
import subprocess
import sys
from collections import deque

import pytest
from numba import config, types

from numbagrad import kernels_cpu
from numbagrad.compiler import crew
from numbagrad.compiler.crew import Crew
from numbagrad.jit import njit

pytestmark = pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")

VECTOR = types.Array(types.float64, 1, "C")
KERNELS = [kernels_cpu.relu_forward, kernels_cpu.negative_forward, kernels_cpu.abs_forward]
PROGRAM = """
import sys
import numpy as np
import numbagrad as ng
from numbagrad.compiler import crew

crew._spare_cores = lambda: int(sys.argv[1])

@ng.compile
def run(x, index):
    picked = ng.take(ng.softmax(x, axis=1), index)
    return ng.max(picked, axis=0), ng.concat([x, ng.flip(picked)])

x = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
largest, both = run(x, np.arange(6))
print(largest.numpy().tobytes().hex(), both.numpy().tobytes().hex())
"""


@pytest.fixture
def jobs(cache, monkeypatch):
    """Kernels that nobody has compiled yet, as dispatchers of their own."""
    monkeypatch.setattr(crew, "_spare_cores", lambda: 1)
    return [(njit(kernel.py_func), (VECTOR, VECTOR)) for kernel in KERNELS]


def names(folder):
    return {path.name.partition("-")[0] for path in folder.glob("*_forward-*.nbc")}


def test_a_helper_leaves_what_it_compiles_on_disk(cache, jobs):
    with Crew(("", "")) as helpers:
        helpers._helpers = list(crew._started(1))
        left = deque(jobs)
        helpers._feed(helpers._helpers[0], left)
        assert not left
    assert names(cache) == {kernel.__name__ for kernel in KERNELS}
    for function, kinds in jobs:
        assert function.is_compiled(kinds)
        assert not function.overloads


def test_all_is_compiled_in_the_end(cache, jobs):
    with Crew(("", "")) as helpers:
        helpers.compile(jobs)
        assert len(helpers._helpers) == 1
    assert names(cache) == {kernel.__name__ for kernel in KERNELS}
    assert helpers._helpers[0].returncode is not None


def test_a_helper_that_dies_is_done_without(jobs):
    with Crew(("", "")) as helpers:
        helpers._helpers = list(crew._started(1))
        helpers._helpers[0].kill()
        helpers._helpers[0].wait()
        helpers.compile(jobs)
    # It may have been given one: that is compiled where it is needed.
    assert sum(function.is_compiled(kinds) for function, kinds in jobs) >= len(jobs) - 1


def test_no_process_can_be_started(jobs, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no more processes")

    monkeypatch.setattr(subprocess, "Popen", fail)
    with Crew(("", "")) as helpers:
        helpers.compile(jobs)
    assert all(function.is_compiled(kinds) for function, kinds in jobs)


def test_nobody_helps_with_little(jobs, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    with Crew(("", "")) as helpers:
        helpers.compile(jobs[:2])
        helpers.compile(jobs[:2] * 3)  # they are there by now
    assert all(function.is_compiled(kinds) for function, kinds in jobs[:2])


def test_users_kernels_are_left_alone(cache, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)

    @njit
    def double(x, out):
        for i in range(x.size):
            out[i] = 2 * x[i]

    with Crew(("", "")) as helpers:
        helpers.compile([(double, (VECTOR, VECTOR))] * 5)
    assert not double.overloads


def test_the_same_bits_whoever_compiles_it(tmp_path):
    outputs = []
    for helpers in (0, 2):
        folder = tmp_path / str(helpers)
        environment = {**os.environ, "NUMBAGRAD_CACHE_DIR": str(folder)}
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(helpers)],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        outputs.append(run.stdout)
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) > 100
