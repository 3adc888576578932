"""The one place that touches the CUDA target: launches, memory, and compiling without a GPU.

Import it only once somebody asks for CUDA: it loads numba-cuda, or numba-cuda's simulator when
``NUMBA_ENABLE_CUDASIM=1``. Porting numbagrad to another CUDA compiler means changing this file.

Scalar math in kernels
----------------------
On a GPU plain ``math.exp(x)`` of a float32 stays float32 (``expf``), and so do the others named
below; only the library code of ``sin``, ``cos`` and ``tan`` reduces huge angles in float64. The
simulator is the reason for a shim: there ``math.exp`` gives a Python float, that is float64, and
``math.log(0)`` or ``math.exp(1000)`` *raise* where a GPU gives ``-inf`` or ``inf``. So kernels
import ``exp``, ``log``, ... from here: ``math``'s functions on a GPU, NumPy's in the simulator.
A constant takes its type from an array, ``x.dtype.type(0.1)``, or, in a device function, from a
number, ``type(a)(0.1)``.

The high and low word of a 32-bit product need no helper: ``np.uint64(a) * np.uint64(b)`` and a
shift are exact on both (a GPU compiles them to one ``mul.wide.u32``). Write sums that wrap as
``np.uint32(a + b)``: a GPU adds two uint32 in 64 bits, the simulator in 32.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import math
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from types import MethodType, SimpleNamespace
from typing import Any

import numpy as np

from . import jit
from .cuda_memory import DeviceArray, Memory, require_alike
from .errors import DeviceError
from .memory import MemorySummary

INSTALL = 'pip install "numbagrad[cuda]"'

if importlib.util.find_spec("numba_cuda") is None:
    # Without this check `from numba import cuda` finds the deprecated target that Numba ships.
    raise DeviceError(f"CUDA needs the package numba-cuda: {INSTALL}")

if not hasattr(np, "row_stack"):  # numba-cuda asks for it at its first compile; NumPy 2.5 lacks it
    np.row_stack = np.vstack

try:
    import numba_cuda
    from numba import config, cuda
    from numba.cuda import types
    from numba.cuda.np.numpy_support import from_dtype
    from numba.cuda.simulator import kernel as simulator
    from numba.cuda.typing.typeof import typeof
except ImportError as error:
    raise DeviceError(f"numba-cuda does not load ({error}). Repair it: {INSTALL}") from error

SIMULATOR: bool = bool(config.ENABLE_CUDASIM)

if not SIMULATOR:
    from llvmlite import ir
    from numba.cuda.extending import intrinsic

# Compile-time constants inside kernels; small in the simulator, which runs a GPU thread in Python.
BLOCK: int = 8 if SIMULATOR else 256  # threads per block of an elementwise launch
LANES: int = 4 if SIMULATOR else 32  # threads of a warp
TILE: int = 4 if SIMULATOR else 16  # edge of a tile in shared memory

Kernel = Any  # what @cuda.jit makes of a function
Stream = Any  # of cuda.core, or what builds a graph; 0 in the simulator
Grid = int | tuple[int, ...]  # blocks in a grid, or threads in a block

# ---------------------------------------------------------------------------------------------
# Scalar math for kernels
# ---------------------------------------------------------------------------------------------

if SIMULATOR:
    exp, exp2, expm1 = np.exp, np.exp2, np.expm1
    log, log2, log10, log1p = np.log, np.log2, np.log10, np.log1p
    sqrt, pow, hypot = np.sqrt, np.power, np.hypot
    sin, cos, tan = np.sin, np.cos, np.tan
    asin, acos, atan, atan2 = np.arcsin, np.arccos, np.arctan, np.arctan2
    sinh, cosh, tanh = np.sinh, np.cosh, np.tanh
    asinh, acosh, atanh = np.arcsinh, np.arccosh, np.arctanh
    floor, ceil, trunc, fabs = np.floor, np.ceil, np.trunc, np.abs
    copysign, fmod = np.copysign, np.fmod
    isnan, isinf, isfinite = np.isnan, np.isinf, np.isfinite

    def erf(x):
        return type(x)(math.erf(x))

    def erfc(x):
        return type(x)(math.erfc(x))
else:
    from math import (  # noqa: F401
        acos,
        acosh,
        asin,
        asinh,
        atan,
        atan2,
        atanh,
        ceil,
        copysign,
        cos,
        cosh,
        erf,
        erfc,
        exp,
        exp2,
        expm1,
        fabs,
        floor,
        fmod,
        hypot,
        isfinite,
        isinf,
        isnan,
        log,
        log1p,
        log2,
        log10,
        pow,
        sin,
        sinh,
        sqrt,
        tan,
        tanh,
        trunc,
    )

# ---------------------------------------------------------------------------------------------
# Vectors, asynchronous copies, exchange within a warp
# ---------------------------------------------------------------------------------------------
#
# Arrays are one-dimensional, and places in them are numbers of elements. What moves 16 bytes at a
# time needs addresses that are multiples of 16: a device array's own memory starts at one, and so
# does a shared array made with ``alignment=ALIGNMENT``.

ALIGNMENT: int | None = None if SIMULATOR else 16  # the simulator takes no other

# Options for a kernel of 256 threads in a block, of which two fit on a multiprocessor at a time.
TWO_BLOCKS: dict[str, int] = {} if SIMULATOR else {"max_registers": 128}


def is_aligned(array: DeviceArray) -> bool:
    """Say, to a launcher, whether an array starts at a multiple of 16 bytes: a slice may not."""
    address = array.address if isinstance(array, DeviceArray) else array.ctypes.data
    return address % 16 == 0


if SIMULATOR:

    def fma(a, b, c):
        return a * b + c

    def load4(array, at):
        _require_aligned(array, at)
        return tuple(array[at : at + 4])

    def store4(array, at, values):
        _require_aligned(array, at)
        if len(array) < at + 4:
            raise IndexError(f"elements {at} to {at + 3} of {len(array)}")
        array[at : at + 4] = values

    def shuffle_xor(value, mask):
        thread = threading.current_thread()
        return thread._manager.exchange(thread.thread_id, value, mask)

    # A copy is made as late as a GPU may make it, and until then its target holds NaN: a kernel
    # that does not wait, or that copies to what others still read, gives NaN.

    def copy4_async(target, to, source, at, count):
        _require_aligned(target, to)
        if count:
            _require_aligned(source, at)
        _copy_late(target, to, source, at, count, 4)

    def copy_async(target, to, source, at, count):
        _copy_late(target, to, source, at, count, 1)

    def commit_copies():
        threading.current_thread().copies.append([])

    def wait_for_copies(pending):
        groups = threading.current_thread().copies
        while len(groups) - 1 > pending:
            for target, to, values in groups.pop(0):
                target[to : to + len(values)] = values

    def _copy_late(target, to, source, at, count, width):
        if not 0 <= count <= width or len(target) < to + width or (count and at < 0):
            raise IndexError(f"{count} of {width} elements from {at} to {to} of {len(target)}")
        values = np.zeros(width, target.dtype)
        if count:
            values[:count] = source[at : at + count]
        target[to : to + width] = np.nan
        threading.current_thread().copies[-1].append((target, to, values))

    def _require_aligned(array, at):
        if at < 0 or at * array.dtype.itemsize % 16:
            raise IndexError(f"element {at} of {array.dtype} lies at no multiple of 16 bytes")
else:
    _PER_16_BYTES = {types.float32: 4, types.float64: 2}

    def _element(context, builder, array_type, array, at, at_type):
        """Return a pointer to an element."""
        data = context.make_array(array_type)(context, builder, array).data
        return builder.gep(data, [context.cast(builder, at, at_type, types.intp)])

    def _is_vector_of_floats(array):
        return isinstance(array, types.Array) and array.ndim == 1 and array.dtype in _PER_16_BYTES

    def _as_vector(builder, pointer, lanes):
        """Return a pointer to a vector, and its type."""
        vector = ir.VectorType(pointer.type.pointee, lanes)
        return builder.bitcast(pointer, ir.PointerType(vector)), vector

    @intrinsic
    def fma(typingctx, a, b, c):
        """a * b + c, rounded once."""

        def codegen(context, builder, signature, args):
            return builder.fma(*args)

        return a(a, a, a), codegen

    @cuda.jit(device=True)
    def shuffle_xor(value, mask):
        """Return the value of the thread whose number in the warp is this one's xor ``mask``.

        All threads of the warp must take part.
        """
        return cuda.shfl_xor_sync(0xFFFFFFFF, value, mask)

    @intrinsic
    def load4(typingctx, array, at):
        """Return elements ``at`` to ``at + 3``: one load of 16 bytes, two in float64."""
        if not _is_vector_of_floats(array):
            return None
        lanes = _PER_16_BYTES[array.dtype]

        def codegen(context, builder, signature, args):
            pointer = _element(context, builder, array, *args, at)
            values = []
            for k in range(0, 4, lanes):
                part = builder.gep(pointer, [ir.Constant(ir.IntType(64), k)])
                vector = builder.load(_as_vector(builder, part, lanes)[0], align=16)
                values += [
                    builder.extract_element(vector, ir.Constant(ir.IntType(32), lane))
                    for lane in range(lanes)
                ]
            return context.make_tuple(builder, signature.return_type, values)

        return types.UniTuple(array.dtype, 4)(array, at), codegen

    @intrinsic
    def store4(typingctx, array, at, values):
        """Write elements ``at`` to ``at + 3``: one store of 16 bytes, two in float64."""
        if not _is_vector_of_floats(array) or values != types.UniTuple(array.dtype, 4):
            return None
        lanes = _PER_16_BYTES[array.dtype]

        def codegen(context, builder, signature, args):
            pointer = _element(context, builder, array, *args[:2], at)
            for k in range(0, 4, lanes):
                part = builder.gep(pointer, [ir.Constant(ir.IntType(64), k)])
                target, vector_type = _as_vector(builder, part, lanes)
                vector = ir.Constant(vector_type, ir.Undefined)
                for lane in range(lanes):
                    value = builder.extract_value(args[2], k + lane)
                    index = ir.Constant(ir.IntType(32), lane)
                    vector = builder.insert_element(vector, value, index)
                builder.store(vector, target, align=16)

        return types.void(array, at, values), codegen

    def _copying(width):
        """Return a function that copies so many elements from global to shared memory.

        It has the code for ``copy(target, to, source, at, count)``; of the ``width`` elements only
        the first ``count`` are read, the others become 0.
        """

        def copy(typingctx, target, to, source, at, count):
            if not _is_vector_of_floats(target) or target.dtype != source.dtype:
                return None
            item = 16 // _PER_16_BYTES[target.dtype]
            step = min(16, width * item)  # bytes
            # .cg goes past the L1 cache, but can only be had for 16 bytes
            text = f"cp.async.{'cg' if step == 16 else 'ca'}.shared.global [$0], [$1], {step}, $2;"

            def codegen(context, builder, signature, args):
                target_value, to_value, source_value, at_value, count_value = args
                to_shared = _element(context, builder, target, target_value, to_value, to)
                from_global = _element(context, builder, source, source_value, at_value, at)
                i32, i64 = ir.IntType(32), ir.IntType(64)
                element = to_shared.type.pointee
                to_shared = builder.ptrtoint(
                    builder.addrspacecast(to_shared, ir.PointerType(element, 3)), i32
                )
                from_global = builder.ptrtoint(
                    builder.addrspacecast(from_global, ir.PointerType(element, 1)), i64
                )
                count_value = context.cast(builder, count_value, count, types.int32)
                valid = builder.mul(count_value, ir.Constant(i32, item))
                for start in range(0, width * item, step):
                    here = valid
                    if width * item > step:  # of float64, each half of the elements by itself
                        rest = builder.sub(valid, ir.Constant(i32, start))
                        zero, most = ir.Constant(i32, 0), ir.Constant(i32, step)
                        here = builder.select(builder.icmp_signed("<", rest, zero), zero, rest)
                        here = builder.select(builder.icmp_signed(">", here, most), most, here)
                    _assemble(
                        builder,
                        text,
                        "r,l,r,~{memory}",
                        builder.add(to_shared, ir.Constant(i32, start)),
                        builder.add(from_global, ir.Constant(i64, start)),
                        here,
                    )

            return types.void(target, to, source, at, count), codegen

        return copy

    def _assemble(builder, text, constraints, *values):
        """Emit an instruction that is neither left out nor moved past loads and stores."""
        function = ir.FunctionType(ir.VoidType(), [value.type for value in values])
        builder.asm(function, text, constraints, values, side_effect=True)

    copy4_async = intrinsic(_copying(4))
    copy_async = intrinsic(_copying(1))

    @intrinsic
    def commit_copies(typingctx):
        """Make a group of the copies that this thread has started since the last one."""

        def codegen(context, builder, signature, args):
            _assemble(builder, "cp.async.commit_group;", "~{memory}")

        return types.void(), codegen

    @intrinsic
    def wait_for_copies(typingctx, pending):
        """Wait until at most so many of this thread's groups, the latest, are under way."""
        if not isinstance(pending, types.IntegerLiteral):
            return None

        def codegen(context, builder, signature, args):
            _assemble(builder, f"cp.async.wait_group {pending.literal_value};", "~{memory}")

        return types.void(pending), codegen

# ---------------------------------------------------------------------------------------------
# Launching
# ---------------------------------------------------------------------------------------------

_recorder: ContextVar[Launches | None] = ContextVar("recorder", default=None)
_one_at_a_time = threading.Lock()  # for what is global in numba-cuda or in `warnings`


def launch(kernel: Kernel, grid: Grid, block: Grid, stream: Stream, *args: Any) -> None:
    """Start a kernel; the only way in which launchers do.

    Nothing is launched for an empty grid, and inside `record_launches` the launch is only noted.

    Parameters
    ----------
    kernel : function decorated with ``@cuda.jit``
    grid, block : int or tuple of int
        Blocks in the grid, and threads in a block.
    stream : stream, or 0
    *args : device arrays, NumPy scalars, ints, bools, or tuples of these
        A Python float is an error, since it would bring float64 into a float32 kernel: pass
        ``x.dtype.type(value)``.
    """
    if 0 in (grid if isinstance(grid, tuple) else (grid,)):
        return
    recorded = _recorder.get()
    if recorded is not None:
        recorded.note(kernel, _signature(kernel, args), block)
    elif SIMULATOR:
        _signature(kernel, args)  # the simulator takes anything; a GPU does not
        _simulate(kernel, grid, block, args)
    else:
        _launch(kernel, grid, block, stream, args)


# A kernel that reads `scalar.relu_backward` seems to refer to the launcher of that name, and so to
# what launchers call; but no kernel's code depends on these.
launch.runs_on_the_host = True


class Launches(set):
    """Kernels that would have been launched: (kernel, Numba types of its arguments).

    Attributes
    ----------
    threads
        How many threads the blocks of each of them had: the numbers seen.
    """

    def __init__(self):
        super().__init__()
        self.threads: dict[tuple[Kernel, tuple[types.Type, ...]], set[int]] = {}

    def note(self, kernel: Kernel, signature: tuple[types.Type, ...], block: Grid) -> None:
        """Add a launch."""
        self.add((kernel, signature))
        threads = math.prod(block) if isinstance(block, tuple) else block
        self.threads.setdefault((kernel, signature), set()).add(threads)


@contextmanager
def record_launches() -> Iterator[Launches]:
    """Collect the kernels that would be launched, with the Numba types of their arguments.

    Launchers are called as always, but with NumPy arrays in place of device arrays; what was
    collected is what `compile_offline` takes.

    Examples
    --------
    >>> with record_launches() as launches:            # doctest: +SKIP
    ...     kernels_cuda.relu_forward(x, out, stream=0)
    >>> [compile_offline(kernel, signature) for kernel, signature in launches]  # doctest: +SKIP
    """
    launches = Launches()
    token = _recorder.set(launches)
    try:
        yield launches
    finally:
        _recorder.reset(token)


def _signature(kernel: Kernel, args: tuple) -> tuple[types.Type, ...]:
    """Return the Numba types that a launch with these arguments compiles for."""
    signature = []
    for position, value in enumerate(args):
        try:
            signature.append(_type_of(value))
        except TypeError as error:
            raise TypeError(f"{kernel.__name__}: argument {position} is {error}") from None
    return tuple(signature)


def _type_of(value: Any) -> types.Type:
    if isinstance(value, np.ndarray):
        return types.Array(from_dtype(value.dtype), value.ndim, "C", aligned=True)
    if isinstance(value, tuple):
        return types.BaseTuple.from_types([_type_of(element) for element in value])
    if isinstance(value, (bool, int, np.generic)):
        return typeof(value)
    if isinstance(value, DeviceArray):
        return types.Array(from_dtype(value.dtype), value.ndim, "C")
    if hasattr(value, "_numba_type_"):  # the simulator's
        return value._numba_type_
    if isinstance(value, float):
        raise TypeError("a Python float, so float64: pass x.dtype.type(value)")
    raise TypeError(f"of type {type(value).__name__}: pass arrays, numbers, or tuples of numbers")


def _launch(kernel: Kernel, grid: Grid, block: Grid, stream: Stream, args: tuple) -> None:
    """Start a kernel on the GPU, compiled at the first launch with arguments of these kinds.

    numba-cuda's own way takes ten times as long: it works out the types of arguments anew at
    each launch, and asks the driver what it knows.
    """
    kinds: list[Any] = [kernel]
    words: list[Any] = []
    for value in args:
        if type(value) is DeviceArray:
            layout = value.layout
            kinds.append(layout.kind)
            words += layout.head
            words.append(value.address)
            words += layout.tail
        elif type(value) is tuple:
            kinds += [len(value), *map(type, value)]
            words += value
        else:
            kinds.append(type(value))
            words.append(value)
    memory().stream  # noqa: B018 - this thread can use the GPU from now on
    code = _loaded.get(tuple(kinds)) or _load(kernel, args, tuple(kinds))
    _start()(stream, _config(grid, block), code, *words)


_loaded: dict[tuple, Any] = {}  # code on the GPU, by kernel and kinds of arguments


@cache
def _start() -> Callable:
    from cuda.core import launch

    return launch


@lru_cache(maxsize=4096)
def _config(grid: Grid, block: Grid) -> Any:
    from cuda.core import LaunchConfig

    return LaunchConfig(grid=grid, block=block)


def _load(kernel: Kernel, args: tuple, kinds: tuple) -> Any:
    """Put a kernel's code on the GPU: from the disk, or compiled now."""
    from cuda.core import ObjectCode

    signature = _signature(kernel, args)
    with _one_at_a_time:
        if kinds not in _loaded:
            cubin = _cubin(kernel, signature, tuple(memory().device.compute_capability))
            _loaded[kinds] = ObjectCode.from_cubin(cubin).get_kernel(entry_of(cubin))
    return _loaded[kinds]


def _cubin(kernel: Kernel, signature: tuple[types.Type, ...], cc: tuple[int, int]) -> bytes:
    """Return a kernel's machine code, which the disk keeps under all that it depends on."""
    content = jit.content_key(kernel)
    name = kernel.__name__
    path = None
    if content is not None:  # else it refers to what cannot be told from another
        versions = numba_cuda.__version__, *cuda.runtime.get_version()
        text = f"{content}|{signature}|{cc}|{versions}"
        digest = hashlib.sha256(text.encode()).hexdigest()[:24]
        path = jit.cache_dir() / f"{name}-{digest}.cubin"
        with suppress(OSError):
            return path.read_bytes()
    with jit.announced(name):
        cubin = compile_offline(kernel, signature, cc).cubin
    if path is not None:
        with suppress(OSError):  # a full disk costs the next process a compile
            jit.write_atomically(path, cubin)
    return cubin


def entry_of(cubin: bytes) -> str:
    """Return the name of the kernel in machine code: the one whose parameters have a bank."""
    (name,) = set(_PARAMETERS.findall(cubin))
    return name.decode()


_PARAMETERS = re.compile(rb"\.nv\.constant0\.([\w$.]+)\0")


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


# ---------------------------------------------------------------------------------------------
# The simulator, sped up
# ---------------------------------------------------------------------------------------------


def _simulate(kernel: Kernel, grid: Grid, block: Grid, args: tuple) -> None:
    with (
        _one_at_a_time,
        _replaced(simulator, "BlockManager", _SimulatedBlock),
        warnings.catch_warnings(),
    ):
        # NumPy's scalars warn of what a GPU does silently: 1 / 0, exp(1000), sums that wrap.
        warnings.simplefilter("ignore", RuntimeWarning)
        kernel[grid, block](*args)


class _SimulatedBlock:
    """One block of simulated threads.

    Takes the place of numba-cuda's `BlockManager`, which starts a Python thread for each GPU
    thread and polls them. Here threads run one after the other when no barrier is in sight
    (about 100 times as fast, and a debugger can step through them), else on a pool of threads.
    """

    def __init__(self, function: Callable, grid_dim: tuple, block_dim: tuple, debug: bool):
        self.function = function
        self.block_dim = block_dim
        self.block_state = np.zeros(block_dim, np.bool_)  # for syncthreads_count, _and, _or
        count = math.prod(block_dim)
        self.barrier = _Barrier(count)
        self.warps = [_Barrier(min(LANES, count - i)) for i in range(0, count, LANES)]
        self.exchanged: dict[int, Any] = {}  # what threads of a warp show each other
        self.together = _has_barrier(function)

    def run(self, block_index: tuple, *args: Any) -> None:
        """Run all threads of the block, and raise the first error in the order of threads."""
        threads = np.ndindex(*self.block_dim)
        if self.together:
            jobs = [_pool().submit(self.run_thread, block_index, i, args) for i in threads]
            wait(jobs)  # none may still run when an error ends the launch
            for job in jobs:
                job.result()
        else:
            for thread_index in threads:
                self.run_thread(block_index, thread_index, args)

    def run_thread(self, block_index: tuple, thread_index: tuple, args: tuple) -> None:
        """Run one GPU thread on the current Python thread, where the simulator looks it up."""
        x, y, z = thread_index
        thread = threading.current_thread()
        thread.blockIdx = simulator.Dim3(*block_index)
        thread.threadIdx = simulator.Dim3(x, y, z)
        thread.thread_id = x + self.block_dim[0] * (y + self.block_dim[1] * z)
        thread._manager = self
        thread.copies = [[]]  # groups of asynchronous copies, the last one open
        thread.syncthreads = self.wait_for_block
        for name in ("syncthreads_count", "syncthreads_and", "syncthreads_or"):
            setattr(thread, name, MethodType(getattr(simulator.BlockThread, name), thread))
        try:
            self.function(*args)
        except Exception as error:
            error.add_note(f"in thread {thread_index} of block {block_index}")
            raise
        finally:
            self.exchanged.pop(thread.thread_id, None)
            self.warps[thread.thread_id // LANES].leave()
            self.barrier.leave()

    def wait_for_block(self) -> None:
        """Wait at a barrier for all threads that have not returned."""
        self.require_together()
        self.barrier.wait()

    def exchange(self, thread: int, value: Any, mask: int) -> Any:
        """Show the warp's threads a value, and return that of thread number ``thread ^ mask``."""
        self.require_together()
        warp = self.warps[thread // LANES]
        self.exchanged[thread] = value
        warp.wait()
        received = self.exchanged.get(thread ^ mask)
        warp.wait()
        if received is None or not 0 < mask < LANES:
            raise RuntimeError(f"thread {thread} has no partner {thread ^ mask} in its warp")
        return received

    def require_together(self) -> None:
        if not self.together:
            raise RuntimeError("call a device function that has a barrier by its bare name")


class _Barrier:
    """Where a number of threads wait for each other, but for those that have left for good."""

    def __init__(self, count: int):
        self.condition = threading.Condition()
        self.running = count
        self.waiting = 0
        self.times_passed = 0

    def wait(self) -> None:
        with self.condition:
            passed = self.times_passed
            self.waiting += 1
            self.open_if_all_wait()
            self.condition.wait_for(lambda: self.times_passed > passed)

    def leave(self) -> None:
        with self.condition:
            self.running -= 1
            self.open_if_all_wait()

    def open_if_all_wait(self) -> None:
        if self.waiting == self.running:
            self.waiting = 0
            self.times_passed += 1
            self.condition.notify_all()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1024)  # the largest block; threads start when needed


@cache
def _has_barrier(function: Callable) -> bool:
    """Say whether a kernel, or a device function that it calls by name, waits for other threads."""
    if any("sync" in name or "shuffle" in name for name in function.__code__.co_names):
        return True
    named = inspect.getclosurevars(function)
    callees = [*named.globals.values(), *named.nonlocals.values()]
    return any(_has_barrier(f.fn) for f in callees if isinstance(f, simulator.FakeCUDAKernel))


# ---------------------------------------------------------------------------------------------
# Compiling without a GPU
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CompileReport:
    """What the compiler says about one kernel.

    Attributes
    ----------
    name : str
    arch : str
        Such as ``"sm_90"``.
    registers : int
        Per thread. A block of n threads starts only if ``n * registers <= 65536``.
    spill_stores, spill_loads : int
        Bytes per thread moved because registers ran out; a good kernel has none.
    shared_bytes : int
        Shared memory per block.
    float64_instructions : int
        float64 arithmetic, comparisons and conversions in the PTX; loads, stores and moves of
        float64 are not counted. A float32 kernel should have none.
    local_bytes : int
        Stack of a thread: spills, and local arrays that did not fit in registers.
    ptx : str
    cubin : bytes
    """

    name: str
    arch: str
    registers: int
    spill_stores: int
    spill_loads: int
    shared_bytes: int
    float64_instructions: int
    local_bytes: int
    ptx: str = field(repr=False)
    cubin: bytes = field(repr=False)

    def occupancy(self, threads: int) -> Occupancy:
        """Return what a multiprocessor holds of the kernel, with so many threads in a block."""
        return occupancy(threads, self.registers, self.shared_bytes, self.arch)


WARP = 32  # threads
REGISTERS, REGISTERS_AT_A_TIME = 64 * 1024, 256  # a warp gets a multiple of these
SHARED_AT_A_TIME, SHARED_OF_SYSTEM = 128, 1024  # bytes that a block gets besides
MOST_BLOCKS = 32
MOST_WARPS = 64
SHARED_BYTES = {"sm_80": 164 * 1024, "sm_90": 228 * 1024}


@dataclass(frozen=True)
class Occupancy:
    """What a multiprocessor holds of a kernel at a time.

    Attributes
    ----------
    blocks, warps
        How many.
    limit
        What there is no more of: ``"registers"``, ``"shared memory"``, ``"warps"`` or ``"blocks"``.
    """

    blocks: int
    warps: int
    limit: str

    @property
    def fraction(self) -> float:
        """The warps, of all that there could be."""
        return self.warps / MOST_WARPS


def occupancy(threads: int, registers: int, shared_bytes: int, arch: str = "sm_90") -> Occupancy:
    """Return how many blocks of a kernel share a multiprocessor.

    Parameters
    ----------
    threads
        In a block.
    registers
        Of a thread.
    shared_bytes
        Of a block.
    arch
        ``"sm_80"`` (A100) or ``"sm_90"`` (H100).

    Notes
    -----
    NVIDIA, "CUDA C++ Programming Guide", technical specifications per compute capability: 65,536
    registers, 64 warps and 32 blocks on a multiprocessor; of shared memory 164 KB and 228 KB, and a
    block takes 1 KB more than it asks for.

    Examples
    --------
    >>> occupancy(threads=256, registers=128, shared_bytes=17 * 1024)
    Occupancy(blocks=2, warps=16, limit='registers')
    """
    warps = -(-threads // WARP)
    each = -(-registers * WARP // REGISTERS_AT_A_TIME) * REGISTERS_AT_A_TIME
    shared = -(-(shared_bytes + SHARED_OF_SYSTEM) // SHARED_AT_A_TIME) * SHARED_AT_A_TIME
    room = {
        "registers": REGISTERS // max(each, 1) // warps,
        "shared memory": SHARED_BYTES[arch] // shared,
        "warps": MOST_WARPS // warps,
        "blocks": MOST_BLOCKS,
    }
    limit = min(room, key=room.__getitem__)
    return Occupancy(room[limit], room[limit] * warps, limit)


_FLOAT64_INSTRUCTION = re.compile(
    r"^\s*(?:@!?%p\d+\s+)?(?!ld\b|st\b|mov\b)[a-z][\w.]*\.f64\b", re.M
)
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


def compile_offline(
    kernel: Kernel, signature: tuple[types.Type, ...], cc: tuple[int, int] = (9, 0)
) -> CompileReport:
    """Compile a kernel to machine code without a GPU, as a launch would (with link-time inlining).

    Parameters
    ----------
    kernel : function decorated with ``@cuda.jit``
    signature : tuple of Numba types
        As `record_launches` collects them.
    cc : (int, int)
        Compute capability: ``(8, 0)`` is an A100, ``(9, 0)`` an H100.
    """
    if SIMULATOR:
        raise DeviceError("the simulator cannot compile: unset NUMBA_ENABLE_CUDASIM")
    arch = f"sm_{cc[0]}{cc[1]}"
    try:
        ptx, cubin, log = _compile_and_link(kernel, signature, cc, arch)
    except Exception as error:
        received = ", ".join(map(str, signature))
        raise DeviceError(
            f"kernel {kernel.__name__} does not compile for {arch} with ({received}): {error}"
        ) from error
    # One line for each function that is left after inlining.
    frames = [map(int, frame) for frame in _STACK.findall(log)]
    stack, spill_stores, spill_loads = map(sum, zip(*frames))
    shared = re.search(r"(\d+) bytes smem", log)
    return CompileReport(
        name=kernel.__name__,
        arch=arch,
        registers=int(re.search(r"Used (\d+) registers", log)[1]),
        spill_stores=spill_stores,
        spill_loads=spill_loads,
        shared_bytes=int(shared[1]) if shared else 0,
        float64_instructions=len(_FLOAT64_INSTRUCTION.findall(ptx)),
        local_bytes=stack,
        ptx=ptx,
        cubin=cubin,
    )


def _compile_and_link(
    kernel: Kernel, signature: tuple, cc: tuple[int, int], arch: str
) -> tuple[str, bytes, str]:
    """Return PTX, cubin and ptxas's log."""
    from cuda.core import Linker, LinkerOptions, ObjectCode
    from numba.cuda import dispatcher
    from numba.cuda.core.compiler_lock import global_compiler_lock

    options = kernel.targetoptions
    pretended = SimpleNamespace(compute_capability=cc)
    # Device functions ask for the current device when they are compiled.
    with global_compiler_lock, _replaced(dispatcher, "get_current_device", lambda: pretended):
        parts, _ = cuda.compile_all(
            kernel.py_func,
            types.void(*signature),
            device=False,
            abi="numba",
            output="ltoir",
            cc=cc,
            opt=options["opt"],
            fastmath=options["fastmath"],
            launch_bounds=options["launch_bounds"],
        )
    parts = [ObjectCode.from_ltoir(part) for part in parts]
    link_options = {"arch": arch, "link_time_optimization": True}
    link_options["max_register_count"] = options.get("max_registers")
    linker = Linker(*parts, options=LinkerOptions(**link_options, ptxas_options=["-v"]))
    cubin = linker.link("cubin").code
    ptx = Linker(*parts, options=LinkerOptions(**link_options, ptx=True)).link("ptx").code
    return ptx.decode().rstrip("\0"), cubin, linker.get_info_log()


# ---------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Graph:
    """Launches to be replayed, and constants that they read: these must live as long."""

    launches: Any
    constants: list[DeviceArray]


def capture(run: Callable[[Stream], None]) -> Graph | None:
    """Return what ``run(stream)`` launches, as one CUDA graph; None in the simulator.

    Nothing of it runs now. All code and constants must be on the GPU already, and ``run`` may not
    allocate memory.
    """
    if SIMULATOR:
        return None
    constants: list[DeviceArray] = []
    token = _captured.set(constants)
    try:
        return Graph(memory().capture(run), constants)
    finally:
        _captured.reset(token)


def replay(graph: Graph) -> None:
    """Start what was captured."""
    memory().replay(graph.launches)


_captured: ContextVar[list | None] = ContextVar("captured", default=None)


@cache
def memory() -> Memory | SimulatedMemory:
    """Return the memory of the GPU, or of the simulated one."""
    return SimulatedMemory() if SIMULATOR else Memory()


class SimulatedMemory:
    """The simulator's memory, which is the host's: the same as `Memory`, in NumPy."""

    stream = 0  # the only one

    @staticmethod
    def empty(shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        return cuda.device_array(shape, np.dtype(dtype))

    @classmethod
    def allocator(cls, shape: tuple[int, ...], dtype: np.dtype) -> Callable[[], DeviceArray]:
        return partial(cls.empty, shape, dtype)

    @classmethod
    def from_host(cls, value: np.ndarray) -> DeviceArray:
        out = cls.empty(value.shape, value.dtype)
        out[...] = value
        return out

    @staticmethod
    def rows(array: DeviceArray, start: int, stop: int) -> DeviceArray:
        if not 0 <= start <= stop <= len(array):
            raise IndexError(f"rows {start}:{stop} of an array of {len(array)} rows")
        return array[start:stop]

    @staticmethod
    def carve(
        array: DeviceArray, start: int, shape: tuple[int, ...], dtype: np.dtype
    ) -> DeviceArray:
        stop = start + math.prod(shape) * dtype.itemsize
        if not 0 <= start <= stop <= array.size:
            raise IndexError(f"bytes {start}:{stop} of {array.size} bytes")
        return array[start:stop].view(dtype).reshape(shape)

    @staticmethod
    def to_host(array: DeviceArray) -> np.ndarray:
        return array.copy_to_host()

    @classmethod
    def copy(cls, array: DeviceArray) -> DeviceArray:
        return cls.from_host(array.copy_to_host())

    @staticmethod
    def copy_into(target: DeviceArray, source: DeviceArray) -> None:
        require_alike(target, source)
        target[...] = source.copy_to_host()

    @classmethod
    def staging(cls, places: int) -> SimpleNamespace:
        """Return a way to hand arrays over: nothing is under way in the simulator."""
        return SimpleNamespace(put=lambda value: (value.copy(),), send=cls.from_host)

    @staticmethod
    def summary() -> MemorySummary:
        """Say nothing of what is used: it is the host's memory."""
        return MemorySummary("cuda", 0, 0, 0, 0)

    @staticmethod
    def dlpack_device(array: DeviceArray) -> tuple[int, int]:
        raise BufferError("a simulated GPU's memory cannot be shared: use x.numpy()")

    @classmethod
    def dlpack(cls, array: DeviceArray, **options: Any) -> Any:
        return cls.dlpack_device(array)

    @staticmethod
    def adopt(x: Any, copy: bool | None = None) -> DeviceArray:
        raise DeviceError("a simulated GPU cannot read another's memory: copy it to NumPy first")

    @staticmethod
    def synchronize() -> None:
        """Do nothing: a simulated kernel has finished when its launch returns."""


def constant(array: np.ndarray) -> np.ndarray | DeviceArray:
    """Return the device's copy of a small array, made when its content is first seen.

    For what many launches share, such as the strides of operands that broadcast.
    """
    if _recorder.get() is not None:
        return array
    found = _constant(array.tobytes(), array.shape, array.dtype)
    captured = _captured.get()
    if captured is not None:
        captured.append(found)
    return found


constant.runs_on_the_host = True


@lru_cache(maxsize=4096)
def _constant(content: bytes, shape: tuple[int, ...], dtype: np.dtype) -> DeviceArray:
    return memory().from_host(np.frombuffer(content, dtype).reshape(shape))


# ---------------------------------------------------------------------------------------------
# What is here
# ---------------------------------------------------------------------------------------------


@cache
def why_unavailable() -> str | None:
    """Say why no CUDA device can be used; None if one, or the simulator, can. Never raises."""
    if SIMULATOR:
        return None
    try:
        if cuda.is_available() and len(cuda.gpus):
            return _why_too_old()
        reason = cuda.cuda_error() or "the driver finds no device, or the toolkit lacks NVVM"
    except Exception as error:
        reason = str(error)
    return " ".join(reason.split())


def _why_too_old() -> str | None:
    """Say whether the driver cannot load what the toolkit compiles."""
    driver, toolkit = cuda.cudadrv.driver.driver.get_version(), cuda.runtime.get_version()
    if driver[0] >= toolkit[0]:
        memory()  # raises what the driver has against it
        return None
    serves, compiles = ("{}.{}".format(*version) for version in (driver, toolkit))
    return f"the driver serves CUDA {serves}, which is too old for the toolkit's {compiles}"


def describe() -> dict[str, Any]:
    """Describe the CUDA installation, for ``numbagrad doctor``. Never raises.

    Returns
    -------
    dict
        ``numba_cuda``, ``simulator``, ``unavailable`` (why, or None), ``toolkit``, ``driver``,
        ``device`` and ``compute_capability``; None stands for what cannot be found out.
    """
    facts: dict[str, Any] = {
        "numba_cuda": numba_cuda.__version__,
        "simulator": SIMULATOR,
        "unavailable": why_unavailable(),
    }
    questions: dict[str, Callable[[], Any]] = {
        "toolkit": lambda: "{}.{}".format(*cuda.runtime.get_version()),
        "driver": lambda: "{}.{}".format(*cuda.cudadrv.driver.driver.get_version()),
        "device": lambda: cuda.get_current_device().name,
        "compute_capability": lambda: tuple(cuda.get_current_device().compute_capability),
    }
    for name, answer in questions.items():
        try:
            facts[name] = None if SIMULATOR else answer()
        except Exception:
            facts[name] = None
    return facts
