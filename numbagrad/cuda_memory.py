"""A GPU's memory: the arrays in it, where they come from, copies, and what other libraries share.

The way to the driver is NVIDIA's ``cuda.core``, imported when a GPU is first asked for. Memory
comes from a pool of our own whose allocations and deallocations are ordered with the kernels on
the stream: an array's memory is used again as soon as its Python object is gone, by kernels that
start after those which still read it. So nothing ever waits for the GPU but what needs a value.

All work goes to the default stream that CUDA's libraries share, so kernels of PyTorch and CuPy
see our results without being told to wait.
"""

from __future__ import annotations

import ctypes
import gc
import math
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np

from .errors import DeviceError, DTypeError, OutOfMemoryError
from .memory import MemorySummary, held_by, in_bytes


@dataclass(frozen=True, eq=False)
class Layout:
    """What arrays of one shape and dtype share, in the form in which a launch needs it.

    Numba's kernels take an array as numbers: two pointers of its own (null), the number of
    elements, the bytes of one, the address, the extents, and the bytes from row to row.

    Attributes
    ----------
    kind
        Dtype and number of dimensions: what kernels are compiled for.
    head, tail
        The numbers before and after the address.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    size: int
    nbytes: int
    kind: str
    head: tuple[int, ...]
    tail: tuple[int, ...]


@lru_cache(maxsize=4096)
def layout_of(shape: tuple[int, ...], dtype: np.dtype) -> Layout:
    """Return the layout of a C-contiguous array."""
    shape = tuple(map(int, shape))
    size, item = math.prod(shape), dtype.itemsize
    strides = tuple(item * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    head, tail = (0, 0, size, item), (*shape, *strides)
    return Layout(shape, dtype, size, size * item, f"{dtype}[{len(shape)}]", head, tail)


class DeviceArray:
    """A C-contiguous array in a GPU's memory, or a view of one.

    Attributes
    ----------
    layout
        Its shape and dtype.
    address
        Of its first element; 0 if it has none.
    memory
        Whose memory it is: while an array refers to it, nobody else gets it.
    """

    __slots__ = ("__weakref__", "address", "layout", "memory")

    def __init__(self, layout: Layout, address: int, memory: Any):
        self.layout, self.address, self.memory = layout, address, memory

    shape = property(lambda self: self.layout.shape)
    dtype = property(lambda self: self.layout.dtype)
    size = property(lambda self: self.layout.size)
    ndim = property(lambda self: len(self.layout.shape))
    nbytes = property(lambda self: self.layout.nbytes)

    def reshape(self, shape: int | tuple[int, ...]) -> DeviceArray:
        """View the array in another shape of the same size; nothing is copied."""
        shape = shape if isinstance(shape, tuple) else (shape,)
        layout = layout_of(shape, self.layout.dtype)
        if layout.size != self.layout.size:
            raise ValueError(f"cannot reshape {self.shape} to {shape}")
        return DeviceArray(layout, self.address, self.memory)

    def at(self, start: int, layout: Layout) -> DeviceArray:
        """View what lies at byte number ``start``."""
        if not 0 <= start <= start + layout.nbytes <= self.nbytes:
            raise IndexError(f"bytes {start}:{start + layout.nbytes} of {self.nbytes} bytes")
        return DeviceArray(layout, self.address + start if layout.size else 0, self.memory)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """What describes it to other libraries, by version 3 of the CUDA array interface.

        Wait for the array first: no stream is named. It is not marked as read-only, since PyTorch
        takes no array that is.
        """
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "version": 3,
            "stream": None,
        }


class _Here(threading.local):
    """The GPU's stream, for a thread: CUDA serves one that has made the GPU its own."""

    def __init__(self, device: Any):
        device.set_current()
        self.stream = device.default_stream
        self.handle = int(self.stream.handle)


class Memory:
    """The memory of the GPU that CUDA lists first.

    Attributes
    ----------
    device
        The GPU, as ``cuda.core`` has it.
    """

    def __init__(self):
        from cuda.bindings import driver
        from cuda.core import Device, DeviceMemoryResource, DeviceMemoryResourceOptions

        self._driver = driver
        self.device = Device(0)
        self._here = _Here(self.device)
        # A pool of our own: what it counts is ours alone.
        self._pool = DeviceMemoryResource(self.device, DeviceMemoryResourceOptions())
        # Else it would hand free memory back to the system whenever somebody waits for the GPU.
        threshold = driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
        keep_all = driver.cuuint64_t(2**64 - 1)
        self._require(driver.cuMemPoolSetAttribute(self._pool.handle, threshold, keep_all))

    @property
    def stream(self) -> Any:
        """The default stream; asking for it makes this thread able to use the GPU."""
        return self._here.stream

    def _require(self, result: tuple) -> Any:
        """Return what a function of the driver gave, after the error code."""
        error, *values = result
        if error:
            raise DeviceError(f"cuda: the driver says {error.name}")
        return values

    # ------------------------------------------------------------- allocation

    def allocator(self, shape: tuple[int, ...], dtype: np.dtype) -> Callable[[], DeviceArray]:
        """Return a function that gives a new array, of unknown content, at each call."""
        return partial(self._new, layout_of(shape, dtype))

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """Return a new array of unknown content."""
        return self._new(layout_of(shape, np.dtype(dtype)))

    def _new(self, layout: Layout) -> DeviceArray:
        if not layout.nbytes:
            return DeviceArray(layout, 0, None)
        memory = self._allocate(layout) or self._allocate(layout, is_last=True)
        return DeviceArray(layout, int(memory.handle), memory)

    def _allocate(self, layout: Layout, is_last: bool = False) -> Any:
        try:
            return self._pool.allocate(layout.nbytes, stream=self.stream)
        except Exception as error:
            if "OUT_OF_MEMORY" not in str(error):
                raise
            if is_last:
                raise OutOfMemoryError(self._no_room_for(layout)) from None
        gc.collect()  # arrays may wait for it, in cycles of references
        return None

    def _no_room_for(self, layout: Layout) -> str:
        extents = ",".join(map(str, layout.shape))
        return (
            f"the GPU has no room for {layout.dtype}[{extents}], {in_bytes(layout.nbytes)}. "
            f"{self.summary()}\nSmaller batches need less"
        )

    # ------------------------------------------------------------------ views

    @staticmethod
    def rows(array: DeviceArray, start: int, stop: int) -> DeviceArray:
        """View rows ``start`` to ``stop`` (exclusive) of the leading axis."""
        extent, *rest = array.shape
        if not 0 <= start <= stop <= extent:
            raise IndexError(f"rows {start}:{stop} of an array of {extent} rows")
        layout = layout_of((stop - start, *rest), array.dtype)
        return array.at(start * math.prod(rest) * array.dtype.itemsize, layout)

    @staticmethod
    def carve(
        array: DeviceArray, start: int, shape: tuple[int, ...], dtype: np.dtype
    ) -> DeviceArray:
        """View what lies at byte number ``start`` of an array of uint8."""
        return array.at(start, layout_of(shape, dtype))

    # ----------------------------------------------------------------- copies

    def from_host(self, value: np.ndarray) -> DeviceArray:
        """Copy a NumPy array to the GPU; it may be changed once this returns."""
        out = self._new(layout_of(value.shape, value.dtype))
        if out.size:
            host = np.ascontiguousarray(value)  # held until the driver has read it
            self.upload(out, host.ctypes.data)
        return out

    def upload(self, target: DeviceArray, address: int) -> None:
        """Copy from an address of the host; from pinned memory, while the host goes on."""
        copy = self._driver.cuMemcpyHtoDAsync
        self._require(copy(target.address, address, target.layout.nbytes, self._here.handle))

    def to_host(self, array: DeviceArray) -> np.ndarray:
        """Wait for an array, and copy it to a new NumPy array."""
        out = np.empty(array.shape, array.dtype)
        stream = self.stream
        if array.size:
            self._require(
                self._driver.cuMemcpyDtoHAsync(
                    out.ctypes.data, array.address, array.nbytes, stream.handle
                )
            )
        stream.sync()  # also for an empty one: a kernel's error must show here
        return out

    def copy(self, array: DeviceArray) -> DeviceArray:
        """Copy an array to a new one."""
        out = self._new(array.layout)
        self.copy_into(out, array)
        return out

    def copy_into(self, target: DeviceArray, source: DeviceArray) -> None:
        """Overwrite an array with another of the same shape and dtype."""
        if target.layout is not source.layout:
            require_alike(target, source)
        if source.layout.size:
            copy, nbytes = self._driver.cuMemcpyDtoDAsync, source.layout.nbytes
            self._require(copy(target.address, source.address, nbytes, self._here.handle))

    def synchronize(self) -> None:
        """Wait until all work is done."""
        self.stream.sync()

    def staging(self, places: int) -> Staging:
        """Return a way for a thread to prepare arrays that another sends to the GPU."""
        return Staging(self, places)

    # ----------------------------------------------------------------- graphs

    def capture(self, run: Callable[[Any], None]) -> Any:
        """Return what ``run(stream)`` launches, as one graph; nothing of it runs now."""
        self.stream  # noqa: B018 - this thread can use the GPU from now on
        builder = self.device.create_stream().create_graph_builder()
        builder.begin_building()
        try:
            run(builder)
        except BaseException:
            with suppress(Exception):  # what went wrong first is what to tell
                builder.end_building()
            raise
        return builder.end_building().complete()

    def replay(self, graph: Any) -> None:
        """Start a graph."""
        graph.launch(self.stream)

    # --------------------------------------------------------------- exchange

    def dlpack_device(self, array: DeviceArray) -> tuple[int, int]:
        """Return DLPack's numbers for the GPU."""
        return 2, self.device.device_id

    def dlpack(
        self,
        array: DeviceArray,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Return a DLPack capsule of an array's memory, ready for work on the consumer's stream.

        Source: "Data interchange mechanisms", Python array API standard.
        """
        from cuda.core import Stream

        if dl_device not in (None, self.dlpack_device(array)):
            raise BufferError(f"an array on 'cuda' is not on DLPack's device {dl_device}")
        if copy:
            array = self.copy(array)
        if stream not in (None, -1, 1):  # 1: the default stream; -1: the consumer will wait itself
            Stream.from_handle(stream).wait(self.stream)
        if not array.size:  # without an address nobody would know which device it is on
            array = DeviceArray(array.layout, int(self._nothing.handle), self._nothing)
        return self._strided(array).__dlpack__(max_version=max_version)

    @cached_property
    def _nothing(self) -> Any:
        return self._pool.allocate(1, stream=self.stream)

    @staticmethod
    def _strided(array: DeviceArray) -> Any:
        """Return an array as `cuda.core` describes it."""
        from cuda.core import Buffer
        from cuda.core.utils import StridedMemoryView

        memory = Buffer.from_handle(array.address, array.nbytes, owner=array)
        return StridedMemoryView.from_buffer(memory, array.shape, dtype=array.dtype)

    def adopt(self, x: Any, copy: bool | None = None) -> DeviceArray:
        """Return another library's array as one of ours, in the same memory unless ``copy``."""
        from cuda.core.utils import StridedMemoryView

        # The producer makes this stream, the default one, wait for the array.
        view = StridedMemoryView.from_any_interface(x, stream_ptr=int(self.stream.handle))
        if view.device_id != self.device.device_id:
            raise DeviceError(
                f"from_dlpack: the array is on GPU {view.device_id}, and numbagrad uses GPU "
                f"{self.device.device_id}: copy it there first"
            )
        if view.dtype is None:
            raise DTypeError("from_dlpack: the array's dtype is none of NumPy's: convert it first")
        layout = layout_of(tuple(view.shape), np.dtype(view.dtype))
        if not _is_contiguous(layout, view.strides):
            raise BufferError("from_dlpack: the array on the GPU is not C-contiguous: make it so")
        array = DeviceArray(layout, int(view.ptr) if layout.size else 0, view)
        return self.copy(array) if copy else array

    # ---------------------------------------------------------------- summary

    def summary(self) -> MemorySummary:
        """Say what the memory is used for."""
        pool = self._pool.attributes
        self.stream  # noqa: B018 - the driver answers a thread that uses the GPU
        free, total = self._require(self._driver.cuMemGetInfo())
        return MemorySummary(
            "cuda",
            pool.used_mem_current,
            pool.reserved_mem_current,
            free,
            total,
            pool.used_mem_high,
            held_by(each for each in gc.get_objects() if type(each) is DeviceArray),
        )


def require_alike(target: Any, source: Any) -> None:
    """Raise ValueError unless two arrays have the same shape and dtype."""
    if tuple(target.shape) != tuple(source.shape) or target.dtype != source.dtype:
        raise ValueError(
            f"cannot copy {source.dtype} of shape {tuple(source.shape)} "
            f"into {target.dtype} of shape {tuple(target.shape)}"
        )


def _is_contiguous(layout: Layout, strides: tuple[int, ...] | None) -> bool:
    """Say whether strides, in elements, are those of a layout; None stands for these."""
    if strides is None or not layout.size:
        return True
    own = layout.tail[len(layout.shape) :]
    return all(
        extent == 1 or stride * layout.dtype.itemsize == expected
        for extent, stride, expected in zip(layout.shape, strides, own, strict=True)
    )


class Pinned:
    """Memory of the host that the GPU reads by itself, while the host goes on.

    It is given back once the default stream is done with what it has been told so far.

    Attributes
    ----------
    memory
        So many bytes, as a uint8 array.
    """

    def __init__(self, nbytes: int):
        from cuda.core import LegacyPinnedMemoryResource

        self._buffer = LegacyPinnedMemoryResource().allocate(nbytes)
        data = (ctypes.c_uint8 * nbytes).from_address(int(self._buffer.handle))
        self.memory = np.frombuffer(data, np.uint8)


class Staging:
    """Arrays on their way to the GPU: one thread puts them down, another sends them off.

    Parameters
    ----------
    memory
        The GPU's.
    places
        How many arrays may wait, or be under way, at a time. The next takes the place of the
        oldest, once that has arrived.
    """

    def __init__(self, memory: Memory, places: int):
        self._memory = memory
        self._places: deque[_Place] = deque(_Place() for _ in range(places))

    def put(self, value: np.ndarray) -> tuple[_Place, Layout]:
        """Copy an array to where the GPU reads it by itself."""
        self._memory.stream  # noqa: B018 - this thread can use the GPU from now on
        place, layout = self._places[0], layout_of(value.shape, value.dtype)
        self._places.rotate(-1)
        target = place.ready(layout.nbytes)[: layout.nbytes]
        np.copyto(target.view(layout.dtype).reshape(layout.shape), value)
        return place, layout

    def send(self, place: _Place, layout: Layout) -> DeviceArray:
        """Start the copy of what was put down to the GPU; the host goes on."""
        out = self._memory._new(layout)
        if layout.nbytes:
            self._memory.upload(out, place.pinned.memory.ctypes.data)
            place.sent = self._memory.stream.record()
        return out


class _Place:
    """Room for an array in pinned memory, and the event after which it is free."""

    pinned: Pinned | None = None
    sent: Any = None

    def ready(self, nbytes: int) -> np.ndarray:
        """Wait until it is free; return its memory, at least so many bytes."""
        if self.sent is not None:
            self.sent.sync()
            self.sent = None
        if self.pinned is None or self.pinned.memory.size < nbytes:
            self.pinned = Pinned(max(nbytes, 1))
        return self.pinned.memory


__all__ = [
    "DeviceArray",
    "Layout",
    "Memory",
    "Pinned",
    "Staging",
    "layout_of",
    "require_alike",
]
