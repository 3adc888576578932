"""Launches on a GPU: what kernels are given, and what the host waits for."""

import ctypes

import numpy as np
import pytest
from cuda_device import Training, adam, momentum, perceptron
from cuda_kernels import gather

import numbagrad as ng
from numbagrad import cuda_support as cs
from numbagrad import jit, kernels_cuda
from numbagrad.commands import doctor


def read(arguments, kinds):
    """Return a kernel's arguments, of C types given."""
    return [kind.from_address(arguments[k]).value for k, kind in enumerate(kinds)]


WORD = ctypes.c_int64


def words(array):
    """Return how Numba's kernels take an array."""
    strides = [array.dtype.itemsize * int(np.prod(array.shape[k + 1 :])) for k in range(array.ndim)]
    return [0, 0, array.size, array.dtype.itemsize, array.address, *array.shape, *strides]


def test_arguments_of_all_kinds(driver, memory):
    x = memory.from_host(np.ones(3, np.float32))
    mask = memory.from_host(np.ones(3, bool))
    indices = memory.from_host(np.ones((2, 4), np.int64))
    out = memory.empty((3,), np.float32)
    found = []
    kinds = [WORD] * (7 + 7 + 9 + 2) + [ctypes.c_float, ctypes.c_bool] + [WORD] * 7
    driver.on_launch(lambda name, arguments: found.append((name, read(arguments, kinds))))
    cs.launch(
        gather, (1, 2), (32, 1), memory.stream, x, mask, indices, (4, 5), np.float32(2.5), True, out
    )
    ((name, values),) = found
    assert b"gather" in name
    assert values == [*words(x), *words(mask), *words(indices), 4, 5, 2.5, True, *words(out)]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, ctypes.c_bool),
        (-5, WORD),
        (np.bool_(True), ctypes.c_bool),
        (np.int32(-7), ctypes.c_int32),
        (np.uint32(2**32 - 1), ctypes.c_uint32),
        (np.int64(-(2**40)), WORD),
        (np.float32(1.5), ctypes.c_float),
        (np.float64(0.1), ctypes.c_double),
    ],
)
def test_numbers(driver, memory, value, kind):
    out, found = memory.empty((3,), np.float64), []
    driver.on_launch(lambda _, arguments: found.append(read(arguments, [kind, *[WORD] * 7])))
    cs.launch(_fill, 1, 32, memory.stream, value, out)
    assert found == [[value, *words(out)]]


@cs.cuda.jit
def _fill(value, out):
    i = cs.cuda.grid(1)
    if i < out.size:
        out[i] = value


def test_all_kernels_can_be_kept_on_disk():
    kernels = [each for each in vars(kernels_cuda).values() if isinstance(each, type(gather))]
    kernels.append(kernels_cuda._matmul_forward(kernels_cuda.LARGE, *[kernels_cuda.ALONG] * 2))
    keys = [jit.content_key(kernel) for kernel in kernels]
    assert None not in keys
    assert len(set(keys)) == len(keys)


def test_code_is_kept_on_disk(driver, monkeypatch, cache):
    compiled = []
    compile_offline = cs.compile_offline

    def counted(kernel, signature, cc):
        compiled.append((kernel.__name__, cc))
        return compile_offline(kernel, signature, cc)

    monkeypatch.setattr(cs, "compile_offline", counted)
    x = ng.asarray(np.ones(5, np.float32), device="cuda")
    for _ in range(2):
        monkeypatch.setattr(cs, "_loaded", {})  # as in a new process
        for _ in range(2):
            ng.negative(x)
    assert compiled == [("_negative_forward", (9, 0))]
    assert len(list(cache.glob("*.cubin"))) == 1
    assert not list(cache.glob("*.tmp"))


def test_an_edited_kernel_is_another_one():
    keys = [jit.content_key(kernel) for kernel in (gather, cs.cuda.jit(gather.py_func))]
    assert keys[0] == keys[1]
    limited = cs.cuda.jit(max_registers=64)(gather.py_func)
    assert jit.content_key(limited) != keys[0]


@pytest.mark.parametrize("optimizer", [adam, momentum])
def test_a_step_waits_for_nothing(driver, optimizer):
    training = Training(perceptron, optimizer, wrap=lambda step: step)
    x, labels = next(training.batches([4], (4,)))
    training.step(x, labels)
    waits, launches = driver.waits, driver.launches
    training.step(x, labels)
    assert driver.waits == waits
    assert driver.launches > launches


def test_synchronize_waits(driver):
    ng.synchronize()  # looks at errors' flags that tests before left
    waits = driver.waits
    ng.synchronize()
    assert driver.waits == waits + 1


@cs.cuda.jit
def _triple(x, out):
    i = cs.cuda.grid(1)
    if i < out.size:
        out[i] = 3 * x[i]


@pytest.mark.filterwarnings("ignore::numba.cuda.core.errors.NumbaPerformanceWarning")
def test_launchers_may_be_written_for_numba_cuda(driver):
    def triple(x, out, stream):
        _triple[1, 32, stream](x.reshape(x.size), out.reshape(out.size))

    def kernel(x, out):
        for i in range(x.size):
            out[i] = 3 * x[i]

    op = ng.custom_op("triple", cpu=kernel, cuda=triple, infer=lambda x: (x.shape, x.dtype))
    x = ng.asarray(np.ones((2, 3), np.float32), device="cuda")
    launches = driver.launches
    assert op(x).shape == (2, 3)
    assert driver.launches == launches + 1
    step = ng.compile(lambda x: op(x) + 1)
    for _ in range(3):
        step(x)
    launches, replayed = driver.launches, driver.replayed
    step(x)
    assert (driver.launches - launches, driver.replayed - replayed) == (0, 2)


def test_an_old_driver_is_named(driver):
    assert cs.why_unavailable.__wrapped__() is None
    driver.serve(12080)
    reason = cs.why_unavailable.__wrapped__()
    assert reason.startswith("the driver serves CUDA 12.8, which is too old for the toolkit's 13.")


def test_a_doctor_tells_of_a_gpu_that_computes_wrongly(driver):
    facts = doctor.facts()
    assert facts["CUDA"].startswith("Stand-in, compute capability 9.0, driver for CUDA 13.0")
    assert "40.0 GiB of 80.0 GiB are free" in facts["CUDA"]
    assert facts["self-test"].startswith("passed")
    assert facts["on the GPU"] == "FAILED: matmul differs from NumPy's"
