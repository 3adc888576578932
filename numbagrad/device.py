"""Where memory lives: one backend for each kind of device.

A backend allocates, copies and views raw buffers; arrays, ops and gradients are built on top and
do not know one from the other. ``"cpu"`` holds NumPy arrays. ``"cuda"`` holds device arrays, those
of the CUDA simulator when ``NUMBA_ENABLE_CUDASIM=1`` is set.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import importlib.util
import itertools
import math
import mmap
import os
import sys
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from . import kernels_cpu
from .errors import DeviceError, DTypeError, nearest
from .memory import MemorySummary

DEVICES = ("cpu", "cuda")
MAX_CHECKS = 256  # error flags that may wait for the next read

POOLED_FROM = 64 * 1024  # bytes; smaller buffers come from NumPy
CHUNK = 32 * 1024 * 1024  # bytes of the pool's first chunk
MAX_CARVED = 1024  # kernels whose workspace a thread remembers
LINE = 64  # bytes of a cache line, and of the widest vector
SWEEP_EVERY = 1000  # buffers; a chunk of which none was taken in the meantime is given back


# ------------------------------------------------------------- host memory


class _Chunk:
    """One piece of memory from the operating system, and which stretches of it are free."""

    def __init__(self, size: int):
        # Private: a forked child must not write into its parent's arrays.
        unix = {} if sys.platform == "win32" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
        self.memory = mmap.mmap(-1, size, **unix)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without huge pages
                self.memory.madvise(mmap.MADV_HUGEPAGE)
        self.free = [(0, size)]  # (start, stop), in order; neighbours are merged
        self.is_used = True  # since the last sweep

    def take(self, size: int) -> int | None:
        """Return the start of the first stretch that is large enough."""
        for at, (start, stop) in enumerate(self.free):
            if stop - start >= size:
                self.free[at : at + 1] = [(start + size, stop)] if stop - start > size else []
                self.is_used = True
                return start
        return None

    def give_back(self, start: int, stop: int) -> None:
        at = bisect.bisect(self.free, (start, stop))
        if at < len(self.free) and self.free[at][0] == stop:
            stop = self.free.pop(at)[1]
        if at > 0 and self.free[at - 1][1] == start:
            at -= 1
            start = self.free.pop(at)[0]
        self.free.insert(at, (start, stop))

    @property
    def is_free(self) -> bool:
        return self.free == [(0, len(self.memory))]


class _Lease(weakref.ref):
    """Watches an array in the pool: while it lives, its stretch of a chunk is taken."""

    __slots__ = ("chunk", "start", "stop")


class Pool:
    """Memory of large CPU buffers, used again as soon as an array has died.

    The operating system gives a new page of memory when it is first touched, which takes longer
    than most kernels take to fill it with results; and what the C library's allocator is given
    back, it returns to the system. So large buffers come from here: from the lowest free address
    of the first chunk with room. Therefore the memory in use is hardly more than what arrays
    needed at one time, whatever their sizes; the rest of a chunk is addresses without pages.

    A stretch is free again when the array made on it is gone, and all views of that array: whoever
    still looks at a buffer, another library too, keeps it from being used again. That may happen in
    any thread and in the middle of anything, so the stretch is merely put on a queue then.
    """

    def __init__(self):
        self._chunks: list[_Chunk] = []
        self._leases: dict[int, _Lease] = {}  # by id; a watch is lost if nobody holds it
        self._returned: deque[_Lease] = deque()
        self._lock = threading.Lock()
        self._taken = 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype, nbytes: int) -> np.ndarray:
        """Return an array of ``nbytes``, with whatever is in that memory, at a full cache line."""
        # Two threads seldom meet here, and a finaliser hardly ever comes in the middle: then one
        # buffer comes from NumPy. A full memory is NumPy's to report, too.
        if not self._lock.acquire(blocking=False):
            return np.empty(shape, dtype)
        try:
            chunk, start, stop = self._take(-(-nbytes // LINE) * LINE)
        except (OSError, OverflowError):
            return np.empty(shape, dtype)
        finally:
            self._lock.release()
        # The chunk is no NumPy array. So the base of a view is this array, not what lies below.
        array = np.ndarray(shape, dtype, chunk.memory, start)
        lease = _Lease(array, self._take_back)
        lease.chunk, lease.start, lease.stop = chunk, start, stop
        self._leases[id(lease)] = lease
        return array

    def _take_back(self, lease: _Lease) -> None:
        del self._leases[id(lease)]
        self._returned.append(lease)

    def _take(self, size: int) -> tuple[_Chunk, int, int]:
        while self._returned:
            lease = self._returned.popleft()
            lease.chunk.give_back(lease.start, lease.stop)
        self._taken += 1
        if self._taken % SWEEP_EVERY == 0:
            self._chunks = [chunk for chunk in self._chunks if chunk.is_used or not chunk.is_free]
            for chunk in self._chunks:
                chunk.is_used = False
        for chunk in self._chunks:
            start = chunk.take(size)
            if start is not None:
                return chunk, start, start + size
        self._chunks.append(_Chunk(max(size, CHUNK, self.mapped)))
        return self._chunks[-1], self._chunks[-1].take(size), size

    @property
    def used(self) -> int:
        """Bytes of the arrays that there are."""
        return sum(lease.stop - lease.start for lease in [*self._leases.values()])

    @property
    def mapped(self) -> int:
        """Bytes of all chunks, most of which may have no memory behind them."""
        return sum(len(chunk.memory) for chunk in self._chunks)


pool = Pool()


def aligned(nbytes: int) -> np.ndarray:
    """Return so many bytes of new memory, at a full cache line, as a uint8 array."""
    raw = np.empty(nbytes + LINE, np.uint8)
    first = -raw.ctypes.data % LINE
    return raw[first : first + nbytes]


class _Arena(threading.local):
    """Memory that a Python thread's kernels use one after the other, as workspace.

    It is as large as the most that one of them wanted, never shrinks, and stays in cache from one
    to the next.
    """

    def __init__(self):
        self.memory = np.empty(0, np.uint8)
        self.carved: dict[Workspace, list] = {}


_arena = _Arena()


class Workspace:
    """The scratch arrays of a kernel: calling it gives them, with whatever is in them.

    Parameters
    ----------
    wanted
        Shape and dtype of each.
    copies
        If given, each array is as many, along a new first axis: one for each shard or thread,
        whichever are fewer.
    """

    def __init__(self, wanted: Sequence[tuple], copies: int | None = None):
        each = () if copies is None else (copies,)
        self.wanted = [((*each, *shape), dtype) for shape, dtype in wanted]

    def __call__(self) -> list[np.ndarray]:
        arrays = _arena.carved.get(self)
        return self._carve() if arrays is None else arrays

    def _carve(self) -> list[np.ndarray]:
        sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in self.wanted]
        starts = [0, *itertools.accumulate(-(-size // LINE) * LINE for size in sizes)]
        if starts[-1] > _arena.memory.size:
            _arena.carved.clear()  # nobody should keep the old memory
            _arena.memory = aligned(starts[-1])
        if len(_arena.carved) >= MAX_CARVED:
            _arena.carved.clear()
        arrays = [
            CPU.carve(_arena.memory, start, shape, dtype)
            for start, (shape, dtype) in zip(starts, self.wanted, strict=False)
        ]
        _arena.carved[self] = arrays
        return arrays


class CPU:
    """Buffers are C-contiguous NumPy arrays."""

    name = "cpu"
    kernels: ModuleType = kernels_cpu
    launch_arguments = ()  # what every kernel or launcher is given last
    defers_checks = False  # whether `check` looks at a flag later, at the next read

    @staticmethod
    def allocator(shape: tuple[int, ...], dtype: np.dtype) -> Callable[[], np.ndarray]:
        """Return a function that gives a new buffer, of unknown content, at each call."""
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes < POOLED_FROM:
            return partial(np.empty, shape, dtype)
        return partial(pool.empty, shape, dtype, nbytes)

    workspace = Workspace

    @staticmethod
    def from_host(value: np.ndarray) -> np.ndarray:
        """Copy a NumPy array into a new buffer."""
        buffer = CPU.allocator(value.shape, value.dtype)()
        np.copyto(buffer, value)
        return buffer

    @staticmethod
    def to_host(data: np.ndarray) -> np.ndarray:
        """Return the buffer as a NumPy array, without a copy where that is possible."""
        return data

    reshape = staticmethod(np.ndarray.reshape)  # of data, to a shape
    flat = staticmethod(np.ndarray.ravel)  # twice as quick; a view, as buffers are contiguous

    @staticmethod
    def rows(data: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Return rows of the leading axis as a view."""
        return data[start:stop]

    @staticmethod
    def carve(memory: np.ndarray, start: int, shape: tuple[int, ...], dtype: np.dtype):
        """Return the array that lies at byte number ``start`` of a buffer of uint8, as a view."""
        stop = start + math.prod(shape) * dtype.itemsize
        return memory[start:stop].view(dtype).reshape(shape)

    @staticmethod
    def copy(data: np.ndarray) -> np.ndarray:
        return CPU.from_host(data)

    @staticmethod
    def copy_into(target: np.ndarray, source: np.ndarray) -> None:
        np.copyto(target, source)

    @staticmethod
    def check(raise_bad_value: Callable) -> None:
        """Look at a kernel's error flag: ``raise_bad_value(read=...)`` raises if it is set."""
        raise_bad_value(read=CPU.to_host)

    @staticmethod
    def synchronize() -> None:
        """Do nothing: CPU kernels have finished when they return."""

    @staticmethod
    def dlpack(data: np.ndarray, **options: Any) -> Any:
        """Return a DLPack capsule, of a copy: who gets it may write to it."""
        return data.copy().__dlpack__(**options)

    @staticmethod
    def dlpack_device(data: np.ndarray) -> tuple[int, int]:
        """Return DLPack's numbers for the device."""
        return data.__dlpack_device__()

    @staticmethod
    def adopt(x: Any, copy: bool | None = None) -> np.ndarray:
        """Return another library's array as a buffer: in the same memory, or copied if it must."""
        try:
            host = np.from_dlpack(x)
        except RuntimeError as error:  # bfloat16 and others
            raise DTypeError(f"from_dlpack: NumPy cannot hold it ({error}): convert it") from None
        fits = host.flags.c_contiguous and host.flags.aligned
        if not fits and copy is False:
            raise BufferError("from_dlpack: the array is not C-contiguous: copy=None copies it")
        return host if fits and not copy else CPU.from_host(host)

    @staticmethod
    def staging(places: int) -> type[CPU]:
        """Return what prepares arrays, as `put`, and hands them over, as `send`."""
        return CPU

    @staticmethod
    def put(value: np.ndarray) -> tuple[np.ndarray]:
        """Copy an array into a buffer."""
        return (CPU.from_host(value),)

    @staticmethod
    def send(data: np.ndarray) -> np.ndarray:
        """Return the buffer: it is where it is wanted."""
        return data

    @staticmethod
    def summary() -> MemorySummary:
        """Say what the memory is used for."""
        page = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
        free, total = (
            page * os.sysconf(name) if name in getattr(os, "sysconf_names", ()) else 0
            for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES")
        )
        return MemorySummary("cpu", pool.used, pool.mapped, free, total)

    @staticmethod
    def cuda_array_interface(data: np.ndarray) -> dict[str, Any]:
        """Describe the buffer to other CUDA libraries, which then share it.

        Raises
        ------
        AttributeError
            If it is not in a GPU's memory; so ``hasattr`` tells.
        """
        raise AttributeError("an array on 'cpu' is not in a GPU's memory: call x.to('cuda') first")


class CUDA:
    """Buffers are device arrays of the CUDA target, or of its simulator."""

    name = "cuda"
    defers_checks = True
    started: CUDA | None = None  # the backend, once something has asked for it

    def __init__(self):
        from . import cuda_support

        reason = cuda_support.why_unavailable()
        if reason:
            raise DeviceError(
                f"device 'cuda' cannot be used: {reason.rstrip('.')}. It needs an NVIDIA GPU, its "
                f"driver, and {cuda_support.INSTALL}"
            )
        from . import kernels_cuda

        self.support = cuda_support
        self.memory = memory = cuda_support.memory()
        self.kernels = kernels_cuda
        self.is_simulator = cuda_support.SIMULATOR
        self.launch_arguments = (memory.stream,)
        self.allocator, self.from_host = memory.allocator, memory.from_host
        self.rows, self.carve = memory.rows, memory.carve
        self.copy, self.copy_into = memory.copy, memory.copy_into
        self.capture, self.replay = cuda_support.capture, cuda_support.replay
        self.dlpack, self.dlpack_device = memory.dlpack, memory.dlpack_device
        self.adopt, self.summary = memory.adopt, memory.summary
        self.staging = memory.staging
        self._checks: list[Callable] = []
        CUDA.started = self

    def workspace(self, wanted):
        """Return a function that gives a kernel's scratch arrays."""
        allocators = [self.allocator(*each) for each in wanted]
        return lambda: [new() for new in allocators]

    def to_host(self, data) -> np.ndarray:
        self._check_all()
        return self.memory.to_host(data)

    @staticmethod
    def reshape(data, shape):
        return data.reshape(shape)

    @staticmethod
    def flat(data):
        return data.reshape((data.size,))

    def check(self, raise_bad_value: Callable) -> None:
        """Put the look at an error flag off to the next read: it makes the host wait."""
        self._checks.append(raise_bad_value)
        if len(self._checks) >= MAX_CHECKS:
            self._check_all()

    def _check_all(self) -> None:
        # An error's message reads arrays too: that must not start the next check.
        checks, self._checks = self._checks, []
        try:
            while checks:
                checks.pop(0)(read=self.memory.to_host)
        finally:
            self._checks = checks  # after an error: those that the next read looks at

    def synchronize(self) -> None:
        self.memory.synchronize()
        self._check_all()

    def cuda_array_interface(self, data) -> dict[str, Any]:
        if self.is_simulator:
            raise AttributeError("a simulated GPU's memory cannot be shared: use x.numpy()")
        self.synchronize()  # then others need not wait for our stream
        return data.__cuda_array_interface__


@functools.cache
def backend(name: str) -> CPU | CUDA:
    """Return the backend of a device.

    Raises
    ------
    DeviceError
        If the device is unknown or cannot be used here, with the reason.
    """
    if name == "cpu":
        return CPU()
    if name == "cuda":
        return CUDA()
    raise DeviceError(f"unknown device {name!r}: {nearest(str(name), (*DEVICES, 'auto'))}")


@functools.cache
def _auto() -> str:
    if importlib.util.find_spec("numba_cuda") is None:
        return "cpu"
    try:
        cuda = backend("cuda")
    except DeviceError as error:
        warnings.warn(f"device 'auto' is the CPU here: {error}", stacklevel=4)
        return "cpu"
    return "cpu" if cuda.is_simulator else "cuda"


def synchronize() -> None:
    """Wait until the GPU has done all that it was told; raise what its kernels found wrong.

    To time it, say: launches return at once. Where no GPU is used nothing waits.

    Raises
    ------
    ValueError, IndexError
        What an op found in its inputs, such as a label that is out of range.
    """
    if CUDA.started is not None:
        CUDA.started.synchronize()


def memory_summary(device: str = "cpu") -> MemorySummary:
    """Say what a device's memory is used for.

    Parameters
    ----------
    device
        ``"cpu"``, ``"cuda"`` or ``"auto"``.

    Raises
    ------
    DeviceError
        If the device cannot be used.

    Examples
    --------
    >>> memory_summary().device
    'cpu'
    """
    return backend(resolve(device)).summary()


def resolve(name: str | None) -> str:
    """Turn a device argument (``None``, ``"auto"``, ``"cpu"``, ``"cuda"``) into a device's name."""
    if name is None:
        return "cpu"
    if name == "auto":
        return _auto()
    backend(name)
    return name
