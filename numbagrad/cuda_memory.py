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
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np

from .errors import DeviceError, OutOfMemoryError

LISTED = 5  # kinds of arrays that a summary names


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

    def reshape(self, shape: tuple[int, ...]) -> DeviceArray:
        """View the array in another shape of the same size; nothing is copied."""
        layout = layout_of(shape, self.layout.dtype)
        if layout.size != self.layout.size:
            raise ValueError(f"cannot reshape {self.shape} to {tuple(shape)}")
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

    def __dlpack__(self, **options: Any) -> Any:
        return self._strided.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._strided.__dlpack_device__()

    @property
    def _strided(self) -> Any:
        from cuda.core import Buffer
        from cuda.core.utils import StridedMemoryView

        whole = Buffer.from_handle(self.address, self.nbytes, owner=self)
        return StridedMemoryView.from_buffer(whole, self.shape, dtype=self.dtype)


class _Here(threading.local):
    """The GPU's stream, for a thread: CUDA serves one that has made the GPU its own."""

    def __init__(self, device: Any):
        device.set_current()
        self.stream = device.default_stream


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
        return values[0] if values else None

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
            self.upload(out, np.ascontiguousarray(value).ctypes.data)
        return out

    def upload(self, target: DeviceArray, address: int) -> None:
        """Copy from an address of the host; from pinned memory, while the host goes on."""
        stream = self.stream.handle
        self._require(
            self._driver.cuMemcpyHtoDAsync(target.address, address, target.nbytes, stream)
        )

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
        require_alike(target, source)
        if source.size:
            stream = self.stream.handle
            self._require(
                self._driver.cuMemcpyDtoDAsync(
                    target.address, source.address, source.nbytes, stream
                )
            )

    def synchronize(self) -> None:
        """Wait until all work is done."""
        self.stream.sync()

    # ----------------------------------------------------------------- graphs

    def capture(self, run: Callable[[Any], None]) -> Any:
        """Return what ``run(stream)`` launches, as one graph; nothing of it runs now.

        All code must be on the GPU already, and ``run`` may not allocate.
        """
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

    def adopt(self, x: Any) -> DeviceArray | None:
        """Return another library's array as one of ours, in the same memory.

        None, if it is not C-contiguous; or not in the memory of this GPU: then its own library
        must copy it.
        """
        from cuda.core.utils import StridedMemoryView

        # The producer makes this stream, the default one, wait for the array.
        view = StridedMemoryView.from_any_interface(x, stream_ptr=int(self.stream.handle))
        layout = layout_of(tuple(view.shape), np.dtype(view.dtype))
        item = layout.dtype.itemsize
        expected = tuple(stride // item for stride in layout.tail[len(layout.shape) :])
        moved = [
            stride != own
            for extent, stride, own in zip(layout.shape, view.strides or (), expected, strict=False)
            if extent > 1
        ]
        if (layout.size and any(moved)) or view.device_id != self.device.device_id:
            return None
        return DeviceArray(layout, int(view.ptr) if layout.size else 0, view)

    # ---------------------------------------------------------------- summary

    def summary(self) -> Summary:
        """Say what the memory is used for."""
        attributes = self._pool.attributes
        self.stream  # noqa: B018 - the driver answers a thread that uses the GPU
        free, total = self._memory_info()
        return Summary(
            "cuda",
            attributes.used_mem_current,
            attributes.used_mem_high,
            attributes.reserved_mem_current,
            free,
            total,
            held_by(each for each in gc.get_objects() if type(each) is DeviceArray),
        )

    def _memory_info(self) -> tuple[int, int]:
        error, free, total = self._driver.cuMemGetInfo()
        self._require((error,))
        return free, total


def require_alike(target: Any, source: Any) -> None:
    """Raise ValueError unless two arrays have the same shape and dtype."""
    if tuple(target.shape) != tuple(source.shape) or target.dtype != source.dtype:
        raise ValueError(
            f"cannot copy {source.dtype} of shape {tuple(source.shape)} "
            f"into {target.dtype} of shape {tuple(target.shape)}"
        )


@dataclass(frozen=True)
class Summary:
    """What a device's memory is used for, in bytes; as text, a few lines.

    Attributes
    ----------
    device
        ``"cpu"`` or ``"cuda"``.
    used, most_used
        By numbagrad's arrays, now and at most so far.
    reserved
        Taken from the system: for arrays, or kept for those to come.
    free, total
        Of the device, whoever uses it.
    held
        (bytes, how many, dtype and shape) of the arrays that take most.
    """

    device: str
    used: int
    most_used: int
    reserved: int
    free: int
    total: int
    held: tuple[tuple[int, int, str], ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{self.device}: arrays take {in_bytes(self.used)}, at most so far "
            f"{in_bytes(self.most_used)}; {in_bytes(self.reserved)} are reserved; "
            f"{in_bytes(self.free)} of {in_bytes(self.total)} are free."
        ]
        lines += [f"  {in_bytes(nbytes):>9}  {count} x {what}" for nbytes, count, what in self.held]
        return "\n".join(lines)

    __repr__ = __str__


def held_by(arrays: Iterable[Any]) -> tuple[tuple[int, int, str], ...]:
    """Return (bytes, how many, dtype and shape) of the kinds of arrays that take most memory.

    Of those that share memory the largest counts.
    """
    owners: dict[int, Any] = {}
    for array in arrays:
        known = owners.get(id(array.memory))
        if array.memory is not None and (known is None or known.nbytes < array.nbytes):
            owners[id(array.memory)] = array
    kinds = Counter(array.layout for array in owners.values())
    lines = [
        (layout.nbytes * count, count, f"{layout.dtype}[{','.join(map(str, layout.shape))}]")
        for layout, count in kinds.items()
    ]
    return tuple(sorted(lines, reverse=True)[:LISTED])


def in_bytes(count: int) -> str:
    """Write a number of bytes.

    Examples
    --------
    >>> in_bytes(512), in_bytes(3 * 2**20)
    ('512 bytes', '3.0 MiB')
    """
    if count < 1024:
        return f"{count} bytes"
    power = min((count.bit_length() - 1) // 10, 4)
    return f"{count / 1024**power:.1f} {'KMGT'[power - 1]}iB"


class Pinned:
    """Memory of the host that the GPU reads by itself, while the host goes on.

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


__all__ = ["DeviceArray", "Layout", "Memory", "Pinned", "Summary", "layout_of", "require_alike"]
