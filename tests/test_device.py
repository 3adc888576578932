"""The memory of large CPU buffers, and of other libraries."""

import gc
import threading
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

import numbagrad as ng
from numbagrad import device
from numbagrad.device import CHUNK, POOLED_FROM, SWEEP_EVERY, Pool

F32 = np.dtype(np.float32)


@pytest.fixture
def pool():
    return Pool()


def take(pool, nbytes=POOLED_FROM):
    return pool.empty((nbytes // 4,), F32, nbytes)


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_is_used_again(pool):
    x = take(pool)
    before = address(x)
    del x
    assert address(take(pool)) == before


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x.reshape(2, -1),
        lambda x: x[1:],
        lambda x: x.reshape(2, -1).view()[0],
        memoryview,
        np.from_dlpack,
        lambda x: x.__dlpack__(),
    ],
    ids=["reshape", "slice", "view of a view", "memoryview", "dlpack", "capsule"],
)
def test_memory_somebody_looks_at_is_not_used_again(pool, look):
    x = take(pool)
    before = address(x)
    view = look(x)
    del x
    assert address(take(pool)) != before
    del view
    assert address(take(pool)) == before


def test_exported_array_keeps_its_memory():
    x = ng.asarray(np.full(POOLED_FROM, 3, np.float32))
    view = np.asarray(x)
    before = address(view)
    del x
    others = [ng.asarray(np.zeros(POOLED_FROM, np.float32)) for _ in range(3)]
    assert all(address(np.asarray(other)) != before for other in others)
    assert (view == 3).all()


def test_large_buffers_of_ops_come_from_the_pool():
    x = ng.asarray(np.ones(POOLED_FROM, np.float32))
    for array in (x, x + x, x.reshape(2, -1), x.sum(axis=0, keepdims=True) + x):
        base = array._data
        while isinstance(base, np.ndarray):
            base = base.base
        assert any(base is chunk.memory for chunk in device.pool._chunks)


def test_small_buffers_do_not():
    x = ng.asarray(np.ones(3, np.float32))
    assert (x + x)._data.base is None


@pytest.mark.parametrize("nbytes", [POOLED_FROM, POOLED_FROM + 4, CHUNK + 4])
def test_alignment(pool, nbytes):
    arrays = [take(pool, nbytes) for _ in range(3)]
    assert [address(x) % 64 for x in arrays] == [0, 0, 0]
    assert all(x.flags.c_contiguous and x.flags.writeable for x in arrays)


def test_lowest_addresses_first_and_neighbours_merge(pool):
    a, b, c, d = (take(pool) for _ in range(4))
    low, high = address(a), address(d)
    del a, c
    del b  # joins both of them
    assert address(take(pool, 3 * POOLED_FROM)) == low
    assert address(take(pool, 4 * POOLED_FROM)) > high


def test_many_sizes_stay_in_one_chunk(pool):
    """In whichever order they come and go, no room is lost."""
    rng = np.random.default_rng(0)
    alive = []
    for _ in range(3000):
        if len(alive) > 20:
            alive.pop(int(rng.integers(len(alive))))
        alive.append(take(pool, int(rng.integers(POOLED_FROM, 8 * POOLED_FROM)) // 4 * 4))
    assert pool.mapped == CHUNK
    spans = sorted((address(x), address(x) + x.nbytes) for x in alive)
    assert all(one[1] <= other[0] for one, other in pairwise(spans))


def test_chunks_that_nobody_uses_are_given_back(pool):
    first = take(pool)
    large = take(pool, 2 * CHUNK)
    assert pool.mapped == 3 * CHUNK
    for _ in range(2 * SWEEP_EVERY):
        take(pool)
    assert pool.mapped == 3 * CHUNK  # in use
    del large
    for _ in range(2 * SWEEP_EVERY):
        take(pool)
    assert pool.mapped == CHUNK
    first[:] = 1


def test_arrays_come_and_go_in_many_threads(pool):
    """Each marks its arrays and passes some on; nobody finds another's mark in them."""
    passed_on, wrong = [], []

    def work(mark):
        rng = np.random.default_rng(mark)
        alive = []
        for step in range(300):
            x = take(pool, int(rng.integers(POOLED_FROM, 4 * POOLED_FROM)) // 4 * 4)
            x.fill(mark)
            alive.append(x)
            if len(alive) > 5:
                one = alive.pop(int(rng.integers(5)))
                wrong.extend([mark] if (one != mark).any() else [])
                if step % 3 == 0:
                    passed_on.append(one)
                elif passed_on and step % 3 == 1:
                    passed_on.pop()

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    passed_on.clear()
    gc.collect()
    take(pool)
    assert len(pool._leases) == 0


def test_a_buffer_asked_for_in_the_middle_of_another(pool):
    """As by another thread, or by a finaliser that the garbage collector runs."""
    with pool._lock:
        x = take(pool)
    assert x.base is None
    assert address(take(pool)) % 64 == 0


def test_no_memory():
    with pytest.raises(MemoryError, match="Unable to allocate"):
        Pool().empty((1 << 60,), F32, 1 << 62)


def test_out_of_memory_names_the_op():
    column = ng.asarray(np.ones((2**24, 1), np.float32))
    with pytest.raises(ng.errors.OutOfMemoryError, match="matmul: Unable to allocate"):
        column @ column.reshape((1, 2**24))


def test_memory_summary_of_the_cpu():
    before = ng.memory_summary()
    x = ng.asarray(np.ones(2**20, np.float32))
    after = ng.memory_summary()
    assert after.used == before.used + x.nbytes
    assert after.reserved >= after.used
    assert str(after).startswith("cpu: arrays take ")


# ----------------------------------------------------------- other libraries


def test_memory_of_another_library_is_taken_over():
    theirs = np.arange(12, dtype=np.float32).reshape(3, 4)
    ours = ng.from_dlpack(theirs)
    theirs[0, 0] = 7
    assert ours[0, 0].item() == 7
    assert ng.from_dlpack(theirs, copy=True)._data.base is not theirs
    np.testing.assert_array_equal(ng.from_dlpack(theirs.T).numpy(), theirs.T)
    np.testing.assert_array_equal(ng.from_dlpack(ng.asarray(theirs)).numpy(), theirs)


class Bfloat16:
    """An array of another library, of a dtype that NumPy does not know."""

    def __dlpack_device__(self):
        return 1, 0

    def __dlpack__(self, **options):
        raise RuntimeError("Unsupported dtype in DLTensor.")


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (np.ones((2, 3)).T, {"copy": False}, BufferError, "not C-contiguous"),
        (np.ones(3), {"device": "cuda"}, ng.errors.DeviceError, "cuda"),
        (np.ones(3, np.complex64), {}, ng.errors.DTypeError, "complex64"),
        (Bfloat16(), {}, ng.errors.DTypeError, "NumPy cannot hold it"),
        ([1.0], {}, TypeError, "list has neither __dlpack__"),
        (
            SimpleNamespace(__dlpack_device__=lambda: (10, 0)),
            {},
            ng.errors.DeviceError,
            "device 10",
        ),
    ],
)
def test_what_cannot_be_taken_over(x, options, error, message):
    with pytest.raises(error, match=message):
        ng.from_dlpack(x, **options)
