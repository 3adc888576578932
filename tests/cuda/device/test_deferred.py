"""A GPU's kernels report bad values late: at the next read, one error after the other."""

import gc
import weakref

import numpy as np
import pytest

import numbagrad as ng

pytestmark = pytest.mark.smoke


def on_gpu(values, dtype=np.float32):
    return ng.asarray(np.array(values, dtype), device="cuda")


def test_every_error_shows():
    weight = on_gpu(np.ones((3, 2)))
    ng.embedding(weight, on_gpu([0, 7], np.int64))
    ng.take(weight, on_gpu([5], np.int64), axis=1)
    out = ng.embedding(weight, on_gpu([9], np.int64))
    for message in ("embedding: .* is 7", "take: index 5", "embedding: .* is 9"):
        with pytest.raises(IndexError, match=message):
            out.numpy()
    out.numpy()  # each error shows once


@pytest.mark.parametrize("make", [lambda x: x, ng.layers.Buffer])
def test_an_error_names_the_value_that_the_kernel_saw(make):
    labels = make(on_gpu([0, 3], np.int64))
    ng.softmax_cross_entropy(on_gpu(np.ones((2, 3))), labels)
    with ng.no_grad():
        labels[1] = 1
    with pytest.raises(IndexError, match=r"labels\[1\] is 3;"):
        labels.numpy()
    np.testing.assert_array_equal(labels.numpy(), [0, 1])


def test_what_waits_keeps_no_floats():
    weight = on_gpu(np.ones((3, 2)))
    memory = weakref.ref(weight._data)
    ng.embedding(weight, on_gpu([0], np.int64))
    del weight
    gc.collect()
    assert memory() is None


def test_few_checks_wait(monkeypatch):
    ng.device.backend("cuda").synchronize()  # none is left from elsewhere
    monkeypatch.setattr(ng.device, "MAX_CHECKS", 2)
    weight, bad = on_gpu(np.ones((1, 1))), on_gpu([1], np.int64)
    ng.embedding(weight, bad)
    with pytest.raises(IndexError, match="embedding"):
        ng.embedding(weight, bad)
    with pytest.raises(IndexError, match="embedding"):
        ng.device.backend("cuda").synchronize()


@pytest.mark.simulator
def test_simulated_memory_is_not_shared():
    with pytest.raises(AttributeError, match=r"simulated .*x\.numpy\(\)"):
        ng.device.backend("cuda").cuda_array_interface(on_gpu([1])._data)
