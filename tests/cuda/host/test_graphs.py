"""Compiled steps as CUDA graphs."""

import gc

import numpy as np
import pytest
from cuda_device import Training, adam, perceptron

import numbagrad as ng
from numbagrad import cuda_support as cs
from numbagrad import kernels_cuda
from numbagrad.errors import OutOfMemoryError


def counted(driver, run):
    """Return how many kernels were launched one by one, and how many by a graph."""
    launches, replayed = driver.launches, driver.replayed
    run()
    return driver.launches - launches, driver.replayed - replayed


def test_a_step_is_one_graph_from_the_second_call_on(driver):
    training = Training(perceptron, adam)
    batches = training.batches([4] * 6, (4,))

    def call():
        return counted(driver, lambda: training.step(*next(batches)))

    launched, replayed = call()
    assert launched > 0
    assert replayed == 0
    none, count = call()
    assert none == 0
    assert 0 < count <= launched  # tracing folds constants
    assert call() == (0, count)
    training.opt.lr = 0.5  # it is written to its place in the GPU's memory
    launched, replayed = call()
    assert replayed == count
    assert launched <= 1
    assert call() == (0, count)


def test_weights_may_be_loaded_between_steps(driver):
    model = ng.layers.Linear(3, 3).to("cuda")
    step = ng.compile(lambda x: model(x))
    x = ng.asarray(np.ones((2, 3), np.float32), device="cuda")
    with ng.no_grad():
        for _ in range(3):
            step(x)
        assert counted(driver, lambda: step(x)) == (0, 1)
        model.load_state_dict(model.state_dict())
        assert counted(driver, lambda: step(x)) == (0, 1)


def test_arguments_are_copied_to_where_the_graph_reads_them(driver, memory):
    step = ng.compile(lambda x: x * 2)
    results = []
    for value in (1.0, 2.0, 3.0):
        x = ng.asarray(np.full(3, value, np.float32), device="cuda")
        results.append((x, step(x)))
    executable = step._compiled()
    (staged,) = executable._staged.values()
    np.testing.assert_array_equal(memory.to_host(staged), [3, 3, 3])
    addresses = [out._data.address for _, out in results]
    assert len(set(addresses)) == 3  # nobody's result changes


def test_memory_stays_flat(driver):
    training = Training(perceptron, adam)
    (batch,) = training.batches([4], (4,))
    live = []
    for _ in range(6):
        training.step(*batch)
        gc.collect()
        live.append(driver.live)
    # An error's flag waits for the next read.
    assert live[5] - live[4] == live[4] - live[3] <= 64


def double(x, out):
    for i in range(x.size):
        out[i] = 2 * x[i]


def test_what_cannot_be_captured_is_launched_one_by_one(driver, memory):
    def waiting(x, out, stream):
        memory.synchronize()
        kernels_cuda.negative_forward(x, out, stream)

    op = ng.custom_op("waiting", cpu=double, cuda=waiting, infer=lambda x: (x.shape, x.dtype))
    step = ng.compile(lambda x: op(x) + 1)
    x = ng.asarray(np.ones(3, np.float32), device="cuda")
    step(x)
    with pytest.warns(UserWarning, match="one by one, since they cannot be captured"):
        step(x)
    launched, replayed = counted(driver, lambda: step(x))
    assert launched > 0
    assert replayed == 0


def test_out_of_memory_names_the_compiled_function(driver):
    @ng.compile
    def widen(x):
        return x.reshape((-1, 1)) * x

    x = ng.asarray(np.ones(300, np.float32), device="cuda")
    driver.limit(driver.live)
    with pytest.raises(OutOfMemoryError, match="compiled widen: the GPU has no room for"):
        widen(x)
    driver.limit(2**63)
    for _ in range(3):
        widen(x)
    driver.limit(driver.live)
    with pytest.raises(OutOfMemoryError, match="compiled widen: the GPU has no room for"):
        widen(x)
    driver.limit(2**63)
    assert widen(x).shape == (300, 300)


def test_constants_of_a_graph_outlive_the_cache(memory):
    x = ng.asarray(np.ones((2, 3), np.float32), device="cuda")
    step = ng.compile(lambda x: ng.permute_dims(x, (1, 0)))
    for _ in range(3):
        step(x)
    constants = step._compiled()._graph.constants
    before = [memory.to_host(each) for each in constants]
    assert before
    cs._constant.cache_clear()
    gc.collect()
    for each, expected in zip(constants, before, strict=True):  # the driver spoils what is free
        np.testing.assert_array_equal(memory.to_host(each), expected)
