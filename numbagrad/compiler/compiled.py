"""Run a plan: load its source as a module, hold its memory, call its regions in order."""

from __future__ import annotations

import itertools
import operator
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numba
import numpy as np

from .. import device as devices
from .. import dispatch
from ..array import Array, State, size_of
from ..errors import OutOfMemoryError
from ..jit import (
    OURS,
    Kernel,
    address_of,
    entry_address,
    function_of,
    is_settled,
    words_of,
)
from ..ops.custom import reads
from .crew import Crew
from .emit_cpu import Source
from .graph import Buffer, Ref, Region
from .linkage import link
from .modules import load_module, safe_name
from .trace import Trace, map_leaves

REMEMBERED = 100  # calls
#: The types of a region's arguments: memory, scratch, shard, first, stop.
REGION = tuple(map(numba.typeof, (np.zeros(1, np.int64), np.zeros(1, np.uint8), 0, 0, 0)))


class Executable:
    """A planned step with its memory, ready to run: what is the same on all devices."""

    def __init__(self, source: Source, trace: Trace, folded: list[Array], device: str):
        self.source, self.plan, self.trace = source, source.plan, trace
        self._backend = devices.backend(device)
        self._folded = [(array, array._data) for array in folded]
        # Users' kernels are compiled anew when a global that they read is another.
        self._read_by_kernels = [
            reading
            for kernel in source.kernels.values()
            if not is_settled(kernel, OURS)
            for reading in reads(function_of(kernel), set())
        ]
        self._lock = threading.Lock()
        self._assigned = [
            target for equation in trace.equations for target in equation.targets or ()
        ]
        self._gradients_read = [buffer.leaf for buffer in source.plan.gradients_read]
        self._to_give = list(self.plan.gradients)

    @property
    def is_current(self) -> bool:
        """Whether all that was looked at while compiling is still the same."""
        return (
            self.trace.is_current
            and all([array._data is data for array, data in self._folded])
            and all([space.get(name) is found for space, name, found in self._read_by_kernels])
        )

    def __call__(self, args: list[Array]) -> Any:
        """Run the step on arrays of the planned shapes."""
        with self._lock:
            before = {id(leaf): leaf._grad for leaf in self._gradients_read}
            try:
                kept = self._run(args)
            except MemoryError as error:
                raise OutOfMemoryError(f"compiled {self.plan.name}: {error}") from None
            finally:
                for target in self._assigned:
                    target.version += 1
        for node in self.plan.checked:
            inputs = tuple(self._checkable(ref, args, kept, before) for ref in node.inputs)
            dispatch.check_flag(node.op, node.call, inputs, kept[node.outputs[-1]])

        def value(ref: Ref | Array) -> Array:
            if isinstance(ref, Array):
                return ref
            if ref.buffer.source == "gradient" and ref.spec == ref.buffer.spec:
                return before[id(ref.buffer.leaf)]
            return self._array(ref, args, kept, before)

        self._give_gradients(value)
        return map_leaves(self.plan.result, value)

    def _give_gradients(self, value: Callable[[Ref], Array]) -> None:
        for leaf, ref in self._to_give:
            leaf.grad = None if ref is None else value(ref)

    def _run(self, args: list[Array]) -> dict[Buffer, Any]:
        """Run the step; return the values that the caller gets, which nobody else will change."""
        raise NotImplementedError

    def _results_and_others(self) -> tuple[list[Buffer], list[Buffer]]:
        """Return what the caller gets as results, and otherwise: gradients, mostly."""
        found: list[Buffer] = []
        map_leaves(self.plan.result, lambda x: isinstance(x, Ref) and found.append(x.buffer))
        kept = self.plan.kept
        return [x for x in kept if x in found], [x for x in kept if x not in found]

    def _array(self, ref: Ref, args, kept, before: dict[int, Array]) -> Array:
        """Return what the caller gets for a value, which may be a part of a buffer."""
        buffer = ref.buffer
        if buffer.source == "argument":
            if ref.spec == buffer.spec and not ref.offset:
                return args[buffer.index]
            data = args[buffer.index]._data
        elif buffer.source == "value":
            data = kept[buffer]
        else:
            array = buffer.leaf if buffer.source == "leaf" else before[id(buffer.leaf)]
            data = self._backend.copy(array._data)
        return Array(self._part(data, ref.offset, ref.spec.shape), ref.spec)

    def _part(self, data: Any, offset: int, shape: tuple[int, ...]) -> Any:
        """Return an array that starts at an element of another, as a view."""
        if not offset and data.shape == shape:
            return data
        flat = self._backend.reshape(data, (data.size,))
        return self._backend.reshape(
            self._backend.rows(flat, offset, offset + size_of(shape)), shape
        )

    def _checkable(self, ref: Ref, args, kept, before) -> Array | None:
        """Return what an error's message may read: integers."""
        return self._array(ref, args, kept, before) if ref.spec.dtype.kind in "iu" else None


class CPUExecutable(Executable):
    """A step whose regions run on Numba's threads."""

    def __init__(self, source: Source, trace: Trace, folded: list[Array]):
        super().__init__(source, trace, folded, "cpu")
        plan = self.plan
        self._arena = devices.aligned(plan.arena_bytes)
        self._memory = np.zeros(max(len(self.source.slots), 1), np.int64)
        self._leaves: list[tuple[int, Array, Any]] = []  # and the data of the last call
        self._data: list[Any] = []
        self._arguments: list[tuple[int, int]] = []
        self._gradients: list[tuple[int, Array]] = []
        for slot, what in enumerate(self.source.slots):
            self._place(slot, what)
        self._plan_kept()
        emitted = source.text, safe_name(plan.name)
        with Crew(emitted) as crew:
            self._link(crew)
            module = load_module(*emitted)
            functions = [getattr(module, name) for name in source.functions]
            if not numba.config.DISABLE_JIT:
                crew.compile([(function, REGION) for function in functions])
        copies = numba.config.NUMBA_NUM_THREADS
        most = max((region.scratch_bytes for region in plan.regions), default=0)
        self._scratch = devices.aligned(most * copies + devices.LINE)
        #: How long each region took in the last calls.
        self.seconds = [deque(maxlen=REMEMBERED) for _ in plan.regions]
        self.threads = 1  # in the last call
        self._runs = [
            self._runner(function, region)
            for function, region in zip(functions, plan.regions, strict=True)
        ]
        self._settled = [region.is_settled for region in plan.regions].count(True)  # the first ones
        #: What these read, and its versions when they last ran.
        self._read_by_settled = self._states_read_by(plan.regions[: self._settled])
        self._versions: list[int] | None = None

    def _states_read_by(self, regions: list[Region]) -> list[State]:
        refs = (ref for region in regions for node in region.nodes for ref in node.inputs)
        read = {id(ref.buffer.leaf) for ref in refs}
        leaves = (leaf for _, leaf, _ in self._leaves)
        return [leaf for leaf in leaves if isinstance(leaf, State) and id(leaf) in read]

    def _place(self, slot: int, what: Buffer | np.ndarray | int) -> None:
        if isinstance(what, int):
            self._memory[slot] = what
        elif isinstance(what, np.ndarray):
            self._data.append(what)  # keeps it alive
            self._memory[slot] = address_of(what)
        elif what.source == "argument":
            self._arguments.append((slot, what.index))
        elif what.source == "leaf":
            self._leaves.append((slot, what.leaf, None))
        elif what.source == "gradient":
            self._gradients.append((slot, what.leaf))
        elif what in self.plan.places:
            self._memory[slot] = address_of(self._arena) + self.plan.places[what]

    def _plan_kept(self) -> None:
        """Decide on memory for what the caller gets: each result has its own, gradients share one.

        So each step asks for memory once, and who keeps a loss keeps no gradients alive.
        """
        slots = {
            what: slot for slot, what in enumerate(self.source.slots) if isinstance(what, Buffer)
        }
        results, others = self._results_and_others()
        self._results = [_Block([x], slots) for x in results]
        shared = [isinstance(ref, Ref) and ref.buffer in others for _, ref in self._to_give]
        given = list(itertools.compress(self._to_give, shared))
        self._to_give = list(itertools.compress(self._to_give, map(operator.not_, shared)))
        is_read = bool(self._gradients_read)  # a new gradient must not overwrite what it adds to
        self._shared = _Shared(others, slots, given, self._part, is_read)

    def _link(self, crew: Crew) -> None:
        """Have all kernels compiled, or loaded, that the emitted code calls by name."""
        if numba.config.DISABLE_JIT:
            return
        found = [(self.source.kernels[name], calls) for name, calls in self.source.calls.items()]
        jobs = [
            (kernel, kinds)
            for kernel, calls in found
            if isinstance(kernel, Kernel)  # another of Numba's is built into its caller
            for kinds in sorted(calls, key=str)
        ]
        crew.compile(jobs)
        for kernel, kinds in jobs:
            link(kernel, kinds)

    def _runner(self, function, region: Region):
        size = max(region.scratch_bytes, 1)
        scratch = self._scratch[:size]
        bounds = region.bounds.tolist()
        rows = [
            (self._memory, scratch, shard, bounds[shard], bounds[shard + 1])
            for shard in range(region.shards)
        ]
        if numba.config.DISABLE_JIT:
            return partial(_run_in_turn, function, rows)
        entry = entry_address(function, rows[0])
        words = np.array(
            [[word for argument in row for word in words_of(argument)] for row in rows], np.int64
        )
        words[:, 4] = (
            -(-size // devices.LINE) * devices.LINE
        )  # from one thread's scratch to the next
        return partial(_run_region, function.__name__, entry, words)

    def _run(self, args: list[Array]) -> dict[Buffer, np.ndarray]:
        memory = self._memory
        for slot, index in self._arguments:
            memory[slot] = address_of(args[index]._data)
        for k, (slot, leaf, data) in enumerate(self._leaves):
            if leaf._data is not data:  # at the first call, and after an assignment
                memory[slot] = address_of(leaf._data)
                self._leaves[k] = slot, leaf, leaf._data
                self._versions = None
        for slot, leaf in self._gradients:
            memory[slot] = address_of(leaf._grad._data)
        kept: dict[Buffer, np.ndarray] = {}
        for block in self._results:
            block.take(memory, kept)
        self._shared.take(memory, kept)
        self.threads = dispatch.get_num_threads()
        versions = list(map(_get_version, self._read_by_settled))
        first = self._settled if versions == self._versions else 0
        self._versions = None  # until they have run
        for run, seconds in zip(self._runs[first:], self.seconds[first:], strict=True):
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
        self._versions = versions
        return kept

    def _give_gradients(self, value: Callable[[Ref], Array]) -> None:
        super()._give_gradients(value)
        self._shared.give()


class _Block:
    """Values that the caller gets, in one piece of memory."""

    def __init__(self, buffers: list[Buffer], slots: dict[Buffer, int]):
        sizes = [-(-buffer.nbytes // devices.LINE) * devices.LINE for buffer in buffers]
        starts = np.cumsum([0, *sizes])[:-1]
        self._parts = [
            (buffer, buffer.spec.shape, buffer.spec.dtype, int(start))
            for buffer, start in zip(buffers, starts, strict=True)
        ]
        self._starts = [
            (slots[buffer], int(start))
            for buffer, start in zip(buffers, starts, strict=True)
            if buffer in slots
        ]
        self._new = devices.CPU.allocator((sum(sizes),), np.dtype(np.uint8))

    def take(self, memory: np.ndarray, kept: dict[Buffer, np.ndarray]) -> np.ndarray:
        """Take new memory: its addresses go into ``memory``, arrays there into ``kept``."""
        block = self._new()
        address = address_of(block)
        for slot, start in self._starts:
            memory[slot] = address + start
        for buffer, shape, dtype, start in self._parts:
            kept[buffer] = np.ndarray(shape, dtype, block, start)
        return block


class _Shared:
    """The block of all that the caller gets but for results: gradients, mostly.

    The next step writes into it again if nobody but the parameters has one, or a view of one: that
    saves time, memory, and room in the cache. References are counted to know.
    """

    def __init__(self, buffers, slots, given: list[tuple[Array, Ref]], part, is_read: bool):
        self._block = _Block(buffers, slots)
        self._leaves = [leaf for leaf, _ in given]
        self._refs = [ref for _, ref in given]
        self._part, self._is_read = part, is_read
        self._kept: dict[Buffer, np.ndarray] = {}
        self._gradients: list[Array] = []
        self._held: list[Any] = []  # these, their data, and all whose memory it is
        self._counts: list[int] = []  # of references to each, but for the parameters'

    def take(self, memory: np.ndarray, kept: dict[Buffer, np.ndarray]) -> None:
        """Add this step's arrays to ``kept``, in the memory of the last step's or in new memory."""
        if self._is_read or not self._are_the_parameters_alone():
            self._renew(memory)
        kept.update(self._kept)

    def _are_the_parameters_alone(self) -> bool:
        return bool(self._held) and list(self._count()) == self._counts

    def _count(self) -> Iterator[int]:
        """Return how often each array is referred to, but for a parameter that has it."""
        has = map(operator.is_, map(_get_gradient, self._leaves), self._gradients)
        every = map(sys.getrefcount, self._held)
        return map(operator.sub, every, itertools.chain(has, itertools.repeat(False)))

    def _renew(self, memory: np.ndarray) -> None:
        self._kept, self._gradients, self._held = {}, [], []
        block = self._block.take(memory, self._kept)
        for ref in self._refs:
            data = self._part(self._kept[ref.buffer], ref.offset, ref.spec.shape)
            self._gradients.append(Array(data, ref.spec))
        data = [x._data for x in self._gradients]
        self._held = [*self._gradients, *data, *self._kept.values(), block]
        del data, block
        self._counts = list(self._count())

    def give(self) -> None:
        """Give parameters their gradients."""
        for leaf, gradient in zip(self._leaves, self._gradients, strict=True):
            if leaf._grad is not gradient:
                leaf.grad = gradient


_get_gradient = operator.attrgetter("_grad")
_get_version = operator.attrgetter("version")


def _run_region(name: str, entry: int, words: np.ndarray) -> None:
    if dispatch.run_rows(entry, words, False) >= 0:
        raise RuntimeError(f"a kernel raised in {name}; run the function itself to see which")


def _run_in_turn(function, rows) -> None:
    with np.errstate(all="ignore"):  # lanes beyond an end may divide 0 by 0
        for row in rows:
            function(*row)
