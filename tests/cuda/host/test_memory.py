"""Memory on a GPU: taken and given back in order, viewed, copied, shared."""

import gc
import threading

import numpy as np
import pytest

import numbagrad as ng
from numbagrad.array import from_dlpack
from numbagrad.cuda_memory import Pinned
from numbagrad.errors import DeviceError, DTypeError, OutOfMemoryError

SHAPES = [(), (1,), (6,), (2, 3), (0,), (3, 0), (2, 1, 3)]


class Foreign:
    """An array of a library that has no DLPack."""

    def __init__(self, array, **changes):
        self.array = array
        self.__cuda_array_interface__ = {**array.__cuda_array_interface__, **changes}


def test_memory_is_given_back_at_once(driver, memory):
    before = driver.live
    array = memory.empty((1000,), np.float32)
    assert driver.live == before + 4000
    row = memory.rows(array.reshape((10, 100)), 3, 4)
    del array
    assert driver.live == before + 4000  # the row is a view
    del row
    assert driver.live == before


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.bool_])
def test_copies(memory, shape, dtype):
    host = (np.arange(np.prod(shape, dtype=int)) % 2).astype(dtype).reshape(shape)
    array = memory.from_host(host)
    target = memory.empty(shape, dtype)
    memory.copy_into(target, memory.copy(array))
    back = memory.to_host(target)
    assert (back.dtype, back.shape) == (dtype, shape)
    np.testing.assert_array_equal(back, host)


def test_views(memory):
    host = np.arange(12, dtype=np.float32).reshape(4, 3)
    array = memory.from_host(host)
    rows = memory.rows(array, 1, 3)
    assert rows.address == array.address + 12
    np.testing.assert_array_equal(memory.to_host(rows.reshape((6,))), host[1:3].ravel())
    arena = memory.from_host(np.arange(64, dtype=np.uint8))
    part = memory.carve(arena, 16, (2, 2), np.dtype(np.int32))
    np.testing.assert_array_equal(
        memory.to_host(part).ravel(), np.arange(16, 32, dtype=np.uint8).view(np.int32)
    )
    assert memory.rows(array, 4, 4).shape == (0, 3)
    with pytest.raises(IndexError, match="rows 2:5 of an array of 4 rows"):
        memory.rows(array, 2, 5)
    with pytest.raises(IndexError, match="bytes 60:68 of 64 bytes"):
        memory.carve(arena, 60, (2,), np.dtype(np.float32))
    with pytest.raises(ValueError, match=r"reshape \(4, 3\) to \(5,\)"):
        array.reshape((5,))
    with pytest.raises(ValueError, match=r"copy float64 .* into float32"):
        memory.copy_into(array, memory.empty((4, 3), np.float64))


def test_host_arrays_in_any_layout(memory):
    host = np.arange(12.0).reshape(3, 4)
    for view in (host.T, host[:, ::2], np.broadcast_to(host[:, :1], (3, 5)), host[:, :, None]):
        np.testing.assert_array_equal(memory.to_host(memory.from_host(view)), view)
    large = np.arange(2_000_000.0)[::2]  # a copy of it that has gone is given back to the system
    np.testing.assert_array_equal(memory.to_host(memory.from_host(large)), large)


def test_other_threads_can_use_the_gpu(memory):
    found = []

    def work():
        found.append(memory.to_host(memory.from_host(np.ones(3))))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    np.testing.assert_array_equal(found[0], np.ones(3))


def test_pinned_memory(memory):
    pinned = Pinned(12)
    pinned.memory.view(np.float32)[:] = [1, 2, 3]
    array = memory.empty((3,), np.float32)
    memory.upload(array, pinned.memory.ctypes.data)
    np.testing.assert_array_equal(memory.to_host(array), [1, 2, 3])


def test_batches_come_from_pinned_memory_and_stay_apart(driver):
    images = np.arange(40, dtype=np.float32).reshape(10, 2, 2, 1)
    labels = np.arange(10)
    loader = ng.data.DataLoader((images, labels), 3, device="cuda")
    for _ in range(2):
        steps, waits = iter(loader), driver.waits
        batches = [next(steps) for _ in range(4)]
        assert driver.waits == waits  # there is a place for each
        assert next(steps, None) is None
        assert [x.device for batch in batches for x in batch] == ["cuda"] * 8
        np.testing.assert_array_equal(np.concatenate([x.numpy() for x, _ in batches]), images)
        np.testing.assert_array_equal(np.concatenate([y.numpy() for _, y in batches]), labels)


def test_a_place_is_used_again_once_its_array_has_arrived(driver, memory):
    staging = memory.staging(2)
    for extent in (3, 2, 5, 0, 4, 1, 7):  # a larger one takes new memory
        value = np.arange(extent, dtype=np.float32)
        np.testing.assert_array_equal(memory.to_host(staging.send(*staging.put(value))), value)


# ---------------------------------------------------------------- what is left


def test_out_of_memory_says_who_asked_and_what_is_held(driver):
    column = ng.asarray(np.ones((300, 1), np.float32), device="cuda")
    row = ng.asarray(np.ones((1, 300), np.float32), device="cuda")
    driver.limit(driver.live + 1000)
    with pytest.raises(OutOfMemoryError) as caught:
        column @ row
    text = str(caught.value)
    assert text.startswith("matmul: the GPU has no room for float32[300,300], 351.6 KiB. cuda: ")
    assert "x float32[300,1]" in text


@pytest.mark.usefixtures("_no_collector")
def test_arrays_in_cycles_make_room(driver, memory):
    cycle = [memory.empty((1000,), np.float32)]
    cycle.append(cycle)
    del cycle
    driver.limit(driver.live)
    assert memory.empty((500,), np.float32).nbytes == 2000


def test_summary(memory):
    gc.collect()
    before = ng.memory_summary("cuda")
    arrays = [memory.empty((1024, 1024), np.float32) for _ in range(3)]
    view = memory.rows(arrays[0], 0, 5)
    summary = ng.memory_summary("cuda")
    assert summary.used == before.used + 3 * 2**22
    assert summary.most_used >= summary.used
    assert summary.held[0] == (3 * 2**22, 3, "float32[1024,1024]")
    assert "12.0 MiB  3 x float32[1024,1024]" in str(summary)
    assert "40.0 GiB of 80.0 GiB are free" in str(summary)
    assert view.memory is arrays[0].memory


# -------------------------------------------------------------------- exchange


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "uint32", "int64", "bool"])
@pytest.mark.parametrize("shape", SHAPES)
def test_others_share_our_memory_and_we_theirs(dtype, shape):
    x = ng.asarray(np.ones(shape, dtype), device="cuda")
    for taken in (from_dlpack(x), from_dlpack(Foreign(x))):
        assert (taken.shape, taken.dtype, taken.device) == (shape, np.dtype(dtype), "cuda")
        assert taken._data.address == x._data.address
        np.testing.assert_array_equal(taken.numpy(), x.numpy())


def test_who_takes_memory_over_keeps_it(driver):
    x = ng.asarray(np.ones(1000, np.float32), device="cuda")
    taken, address = from_dlpack(x), x._data.address
    before = driver.live
    del x
    assert driver.live == before
    assert taken._data.address == address
    del taken
    assert driver.live < before


def test_copies_of_foreign_arrays():
    x = ng.asarray(np.arange(3.0), device="cuda")
    for copied in (
        from_dlpack(x, copy=True),
        ng.asarray(Foreign(x)),
        ng.asarray(Foreign(x), dtype="float64"),
    ):
        assert copied._data.address != x._data.address
        np.testing.assert_array_equal(copied.numpy(), x.numpy())


def test_streams_wait_for_each_other(driver, memory):
    x = ng.asarray(np.ones(3, np.float32), device="cuda")
    other = int(memory.device.create_stream().handle)
    before = driver.attached
    for stream in (None, 1, -1):
        x.__dlpack__(stream=stream)
    assert driver.attached == before
    x.__dlpack__(stream=other)
    assert driver.attached == before + 1
    from_dlpack(Foreign(x, stream=other))
    assert driver.attached == before + 2


def test_what_cannot_be_taken_over():
    x = ng.asarray(np.ones((3, 4), np.float32), device="cuda")
    transposed = Foreign(x, shape=(4, 3), strides=(4, 16))
    with pytest.raises(BufferError, match="not C-contiguous"):
        from_dlpack(transposed)
    one_row = Foreign(x, shape=(1, 4), strides=(400, 4))  # no stride leads anywhere else
    assert from_dlpack(one_row).shape == (1, 4)
    with pytest.raises(DeviceError, match=r"on 'cuda'; nothing moves .*'cpu'"):
        from_dlpack(x, device="cpu")
    with pytest.raises(DTypeError, match="complex64"):
        from_dlpack(Foreign(x, typestr="<c8", shape=(3, 2)))
    with pytest.raises(BufferError, match="device"):
        x.__dlpack__(dl_device=(1, 0))
