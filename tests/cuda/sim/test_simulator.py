"""Launches and memory on the simulator."""

import numpy as np
import pytest
from cuda_kernels import (
    F32,
    add_scalar,
    add_tenth,
    arrays,
    index_out_of_range,
    product_words,
    return_early,
    softened_log,
    sum_each_block,
    tiled_matmul,
)

from numbagrad import cuda_support as cs
from numbagrad.cuda_support import BLOCK, TILE, compile_offline, launch
from numbagrad.errors import DeviceError

memory = cs.memory()

pytestmark = pytest.mark.smoke

# --- launching -------------------------------------------------------------------------------


def run(kernel, grid, block, out, *args):
    args = [memory.from_host(a) if isinstance(a, np.ndarray) else a for a in args]
    device_out = memory.from_host(out)
    launch(kernel, grid, block, 0, *args, device_out)
    return memory.to_host(device_out)


def test_elementwise_keeps_float32_and_does_not_raise_at_the_edges():
    x = np.array([1, 2, 0, -1, np.inf, 3, 4, 5, 6], np.float32)
    out = run(softened_log, 2, BLOCK, np.empty_like(x), x)
    np.testing.assert_allclose(out[:2], [0.08427008, 0.79267937], rtol=1e-6)
    assert out[2] == -np.inf
    assert np.isnan(out[3])
    assert out[4] == np.inf


def test_tiles_in_shared_memory():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((5, 6), np.float32)
    b = rng.standard_normal((6, 3), np.float32)
    out = run(tiled_matmul, (1, 2), (TILE, TILE), np.empty((5, 3), np.float32), a, b)
    np.testing.assert_allclose(out, a @ b, rtol=1e-5, atol=1e-6)


def test_division_by_zero_and_zero_dimensional_arrays():
    x = np.array([1, -1], np.float32)
    out = run(add_scalar, 1, BLOCK, np.empty_like(x), x, np.array(0, np.float32))
    np.testing.assert_array_equal(out, [np.inf, -np.inf])


def test_words_of_a_product():
    a = np.array([0xFFFFFFFF, 0xD2511F53, 7], np.uint32)
    high, low = memory.empty(3, np.uint32), memory.empty(3, np.uint32)
    launch(product_words, 1, BLOCK, 0, memory.from_host(a), memory.from_host(a), high, low)
    square = a.astype(np.uint64) ** 2
    np.testing.assert_array_equal(memory.to_host(high), square >> 32)
    np.testing.assert_array_equal(memory.to_host(low), square & 0xFFFFFFFF)


def test_threads_may_leave_before_a_barrier():
    out = run(return_early, 1, BLOCK, np.zeros(3), np.zeros(3))
    np.testing.assert_array_equal(out, 3)


def test_a_barrier_in_a_device_function():
    x = np.arange(20 * BLOCK, dtype=np.float32)
    out = run(sum_each_block, 20, BLOCK, np.empty_like(x), x)
    np.testing.assert_array_equal(out, x.reshape(20, BLOCK).sum(axis=1).repeat(BLOCK))


def test_errors_name_the_thread():
    with pytest.raises(IndexError) as caught:
        launch(index_out_of_range, 1, 4, 0, memory.from_host(np.zeros(3)))
    assert caught.value.__notes__ == ["in thread (2, 0, 0) of block (0, 0, 0)"]


def test_arguments_that_a_gpu_refuses():
    with pytest.raises(TypeError, match=r"add_tenth: argument 1 .*x\.dtype\.type"):
        launch(add_tenth, 1, BLOCK, 0, memory.from_host(np.ones(2)), 0.5)


def test_simulator_does_not_compile():
    with pytest.raises(DeviceError, match="NUMBA_ENABLE_CUDASIM"):
        compile_offline(add_tenth, arrays(F32, 1, 1))


# --- memory ----------------------------------------------------------------------------------

SHAPES = [(), (1,), (6,), (2, 3), (0,), (3, 0), (0, 2, 4), (2, 1, 3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.bool_])
def test_memory_round_trip(shape, dtype):
    host = (np.arange(np.prod(shape, dtype=int)) % 2).astype(dtype).reshape(shape)
    device = memory.from_host(host)
    copied = memory.copy(device)
    target = memory.empty(shape, dtype)
    memory.copy_into(target, copied)
    memory.synchronize()
    for array in (device, copied, target):
        back = memory.to_host(array)
        assert back.dtype == dtype
        assert back.shape == shape
        np.testing.assert_array_equal(back, host)


def test_axes_of_stride_zero_are_copied_too():
    column = np.arange(3.0)[:, None]
    np.testing.assert_array_equal(memory.to_host(memory.from_host(column)), column)


def test_constants_are_copied_once():
    first, second = np.arange(6).reshape(2, 3), np.arange(6).reshape(3, 2)
    assert cs.constant(first) is cs.constant(first.copy())
    np.testing.assert_array_equal(memory.to_host(cs.constant(second)), second)
    with cs.record_launches():
        assert cs.constant(first) is first


def test_views_share_memory():
    host = np.arange(12, dtype=np.float32).reshape(4, 3)
    device = memory.from_host(host)
    rows = memory.rows(device, 1, 3)
    flat = rows.reshape((6,))
    launch(add_tenth, 1, BLOCK, 0, flat, flat)
    host[1:3] += np.float32(0.1)
    np.testing.assert_array_equal(memory.to_host(device), host)
    assert memory.rows(device, 4, 4).shape == (0, 3)
    assert memory.empty((1, 1), np.int64).reshape(()).shape == ()
    assert memory.empty((0, 3), np.int64).reshape((7, 0)).shape == (7, 0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.bool_])
def test_carved_arrays_lie_in_the_arena(shape, dtype):
    host = (np.arange(np.prod(shape, dtype=int)) % 2).astype(dtype).reshape(shape)
    arena = memory.from_host(np.full(256, 7, np.uint8))
    array = memory.carve(arena, 64, shape, np.dtype(dtype))
    assert array.shape == shape
    memory.copy_into(array, memory.from_host(host))
    bytes_now = memory.to_host(arena)
    assert bytes_now[64 : 64 + host.nbytes].tobytes() == host.tobytes()
    assert (np.delete(bytes_now, np.arange(64, 64 + host.nbytes)) == 7).all()


def test_memory_errors():
    with pytest.raises(IndexError, match="bytes 8:16 of 12 bytes"):
        memory.carve(memory.empty(12, np.uint8), 8, (2,), np.dtype(np.float32))
    x = memory.empty((4, 3), np.float32)
    with pytest.raises(ValueError, match="cannot reshape"):
        x.reshape((5,))
    with pytest.raises(IndexError, match="rows 2:5 of an array of 4 rows"):
        memory.rows(x, 2, 5)
    with pytest.raises(ValueError, match="cannot copy"):
        memory.copy_into(x, memory.empty((4, 3), np.float64))


# --- what is here ----------------------------------------------------------------------------


def test_describe():
    facts = cs.describe()
    assert facts["simulator"] is True
    assert facts["unavailable"] is cs.why_unavailable() is None
