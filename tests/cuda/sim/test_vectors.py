"""Vectors and asynchronous copies on the simulator, which is stricter with them than a GPU."""

import numpy as np
import pytest
from cuda_kernels import FOUR_EACH, copy_without_waiting, reverse_vectors, shift_by_copies

from numbagrad import cuda_support as cs
from numbagrad.cuda_support import BLOCK, launch

memory = cs.memory()

pytestmark = pytest.mark.smoke


def run(kernel, x, *args):
    out = memory.empty(x.shape, x.dtype)
    launch(kernel, 1, BLOCK, 0, memory.from_host(x), *args, out)
    return memory.to_host(out)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_vectors(dtype):
    x = np.arange(FOUR_EACH, dtype=dtype)
    np.testing.assert_array_equal(run(reverse_vectors, x), x[::-1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [FOUR_EACH, FOUR_EACH - 3, 1, 0])
def test_copies(dtype, size):
    x = np.arange(1, FOUR_EACH + 1, dtype=dtype)
    there = np.where(np.arange(FOUR_EACH) < size, x, 0)
    expected = 2 * there + np.append(there[1:], 0)
    np.testing.assert_array_equal(run(shift_by_copies, x, size), expected)


def test_what_is_not_waited_for_is_nan():
    assert np.isnan(run(copy_without_waiting, np.ones(FOUR_EACH, np.float32))[::4]).all()


def test_places_that_a_gpu_would_refuse():
    x = np.zeros(8, np.float32)
    with pytest.raises(IndexError, match="element 2 of float32"):
        cs.load4(x, 2)
    with pytest.raises(IndexError, match="elements 8 to 11 of 8"):
        cs.store4(x, 8, (0, 0, 0, 0))
