"""Run a plan on a GPU: hold its memory where it is, launch its kernels in order."""

from __future__ import annotations

import itertools
import time
from collections import deque
from types import ModuleType
from typing import Any

import numpy as np

from ..array import Array
from .compiled import REMEMBERED, Executable
from .emit_cuda import Source, View
from .graph import Buffer
from .modules import load_module, safe_name
from .trace import Trace


class CUDAExecutable(Executable):
    """A step as launches on one stream, which are the same at each call.

    Its arena, and what it keeps for the caller, stay where they are from call to call; the caller
    gets copies. So do states, as long as nobody gives them other arrays. The addresses of
    arguments are the caller's affair.
    """

    def __init__(self, source: Source, trace: Trace, folded: list[Array]):
        super().__init__(source, trace, folded, "cuda")
        plan, new = self.plan, self._backend.allocator
        self._arena = new((max(plan.arena_bytes, 1),), np.dtype(np.uint8))()
        self._kept = {buffer: new(buffer.spec.shape, buffer.spec.dtype)() for buffer in plan.kept}
        self._views = list(source.views)
        self._memory = [self._own(view) for view in self._views]
        outside = [place for place, x in enumerate(self._memory) if x is None]
        is_leaf = [self._views[place].buffer.source == "leaf" for place in outside]
        #: Places of states and other arrays from outside, with the data of the last call.
        self._leaves = dict.fromkeys(itertools.compress(outside, is_leaf))
        #: Places of arguments and gradients, which come and go.
        self._passing = [place for place in outside if place not in self._leaves]
        self._step = _load(source).step
        #: How long the host took to launch each of the last calls.
        self.seconds: deque[float] = deque(maxlen=REMEMBERED)

    def _own(self, view: View) -> Any:
        """Return the array of a view of the step's own memory; None if it is of another."""
        if view.buffer is None:
            return self._backend.carve(self._arena, view.offset, view.shape, view.dtype)
        if view.buffer in self._kept:
            return self._part(self._kept[view.buffer], view.offset, view.shape)
        if view.buffer in self.plan.places:
            start = self.plan.places[view.buffer] + view.offset * view.dtype.itemsize
            return self._backend.carve(self._arena, start, view.shape, view.dtype)
        return None

    def _run(self, args: list[Array]) -> dict[Buffer, Any]:
        for place, known in self._leaves.items():
            data = self._views[place].buffer.leaf._data
            if data is not known:  # at the first call, and after an assignment
                self._leaves[place] = data
                self._look_at(place, data)
        for place in self._passing:
            self._look_at(place, self._data_of(self._views[place].buffer, args))
        started = time.perf_counter()
        self._step(self._memory, *self._backend.launch_arguments)
        self.seconds.append(time.perf_counter() - started)
        for place in self._passing:
            self._memory[place] = None  # nobody needs them on our behalf
        return {buffer: self._backend.copy(data) for buffer, data in self._kept.items()}

    def _look_at(self, place: int, data: Any) -> None:
        view = self._views[place]
        self._memory[place] = self._part(data, view.offset, view.shape)

    @staticmethod
    def _data_of(buffer: Buffer, args: list[Array]) -> Any:
        """Return an argument's or a gradient's data."""
        if buffer.source == "argument":
            return args[buffer.index]._data
        return buffer.leaf._grad._data


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
