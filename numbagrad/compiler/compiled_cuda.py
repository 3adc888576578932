"""Run a plan on a GPU: hold its memory where it is, launch its kernels in order."""

from __future__ import annotations

import itertools
import time
import warnings
from collections import deque
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from ..array import Array
from ..device import LINE
from .compiled import REMEMBERED, Executable
from .emit_cuda import Source, View
from .graph import Buffer
from .modules import load_module, safe_name
from .trace import Trace


class CUDAExecutable(Executable):
    """A step as launches on one stream, which are the same at each call.

    All its memory stays where it is from call to call: the arena, copies of the caller's
    arguments, what it keeps for the caller, who gets copies, and states, as long as nobody gives
    them other arrays. So from the second call on one CUDA graph stands for all launches.
    """

    def __init__(self, source: Source, trace: Trace, folded: list[Array]):
        super().__init__(source, trace, folded, "cuda")
        plan, new = self.plan, self._backend.allocator
        self._arena = new((max(plan.arena_bytes, 1),), np.dtype(np.uint8))()
        results, others = self._results_and_others()
        # Who keeps a loss, or has yet to look at an error's flag, keeps no gradients alive.
        flags = [node.outputs[-1] for node in plan.checked]
        rest = [buffer for buffer in others if buffer not in flags]
        groups = [*([buffer] for buffer in [*results, *flags]), rest]
        self._kept = [_Block(self._backend, group) for group in groups if group]
        self._views = list(source.views)
        #: Copies of arguments and gradients, which come and go.
        self._staged = {
            view.buffer: new(view.buffer.spec.shape, view.buffer.spec.dtype)()
            for view in self._views
            if view.buffer is not None and view.buffer.source in ("argument", "gradient")
        }
        self._memory = [self._own(view) for view in self._views]
        #: Places of states and other arrays from outside, with the data of the last call.
        self._leaves = dict.fromkeys(k for k, data in enumerate(self._memory) if data is None)
        self._step = _load(source).step
        self._graph: Any = None
        self._is_loaded = False  # whether all kernels are on the GPU
        self._can_be_captured = True
        #: How long the host took to launch each of the last calls.
        self.seconds: deque[float] = deque(maxlen=REMEMBERED)

    def _own(self, view: View) -> Any:
        """Return the array of a view of the step's own memory; None if it is of another."""
        if view.buffer is None:
            return self._backend.carve(self._arena, view.offset, view.shape, view.dtype)
        for own in (self._staged, *(block.data for block in self._kept)):
            if view.buffer in own:
                return self._part(own[view.buffer], view.offset, view.shape)
        if view.buffer in self.plan.places:
            start = self.plan.places[view.buffer] + view.offset * view.dtype.itemsize
            return self._backend.carve(self._arena, start, view.shape, view.dtype)
        return None

    def _run(self, args: list[Array]) -> dict[Buffer, Any]:
        for place, known in self._leaves.items():
            data = self._views[place].buffer.leaf._data
            if data is not known:  # at the first call, and after an assignment
                view = self._views[place]
                self._memory[place] = self._part(data, view.offset, view.shape)
                self._leaves[place] = data
                self._graph = None
        for buffer, data in self._staged.items():
            self._backend.copy_into(data, self._data_of(buffer, args))
        started = time.perf_counter()
        self._launch()
        self.seconds.append(time.perf_counter() - started)
        return {buffer: data for block in self._kept for buffer, data in block.copy().items()}

    def _launch(self) -> None:
        backend = self._backend
        if self._graph is None and self._is_loaded and self._can_be_captured:
            self._graph = self._captured()
        if self._graph is not None:
            backend.replay(self._graph)
        else:
            self._step(self._memory, *backend.launch_arguments)
            self._is_loaded = True

    def _captured(self) -> Any:
        """Return the launches as a graph; None where there are no graphs."""
        try:
            return self._backend.capture(partial(self._step, self._memory))
        except Exception as error:  # a user's launcher may do anything
            self._can_be_captured = False
            warnings.warn(
                f"compiled {self.plan.name}: its kernels are launched one by one, since they "
                f"cannot be captured as a CUDA graph: {error}",
                stacklevel=2,
            )
            return None

    @staticmethod
    def _data_of(buffer: Buffer, args: list[Array]) -> Any:
        """Return an argument's or a gradient's data."""
        if buffer.source == "argument":
            return args[buffer.index]._data
        return buffer.leaf._grad._data


class _Block:
    """Values that the caller gets, in one piece of memory: so one copy does for all of them.

    Attributes
    ----------
    data
        Where the step leaves each.
    """

    def __init__(self, backend: Any, buffers: list[Buffer]):
        self._backend, self._buffers = backend, buffers
        sizes = (-(-buffer.nbytes // LINE) * LINE for buffer in buffers)
        *self._starts, size = itertools.accumulate(sizes, initial=0)
        self._memory = backend.allocator((size,), np.dtype(np.uint8))()
        self.data = self._carved(self._memory)

    def copy(self) -> dict[Buffer, Any]:
        """Return copies of all values."""
        return self._carved(self._backend.copy(self._memory))

    def _carved(self, memory: Any) -> dict[Buffer, Any]:
        return {
            buffer: self._backend.carve(memory, start, buffer.spec.shape, buffer.spec.dtype)
            for buffer, start in zip(self._buffers, self._starts, strict=True)
        }


def _load(source: Source) -> ModuleType:
    """Load a step's module; kernels that another step has, too, are compiled but once.

    Another batch size is another step, with the same kernels.
    """
    module = load_module(source.text, safe_name(source.plan.name))
    for body, name in source.fused.items():
        kernel = getattr(module, f"_{name}")
        setattr(module, f"_{name}", _fused_kernels.setdefault(body, kernel))
    return module


_fused_kernels: dict[str, Any] = {}  # by their parameters and body


__all__ = ["CUDAExecutable"]
