"""Run every case's CPU kernels on arrays between pages that nobody may touch.

A kernel that reads or writes past either end of an array ends the process: so `test_fences.py` runs
this file in one of its own. The last line printed names the kernel.
"""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
from cases import CASES, CPU_CASES

from numbagrad import asarray
from numbagrad.dispatch import interpreter, plan_for, run_eagerly
from numbagrad.testing import cast_inputs, value_and_gradients

PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)


def forbid(address):
    if libc.mprotect(ctypes.c_void_p(address), PAGE, 0):  # no reading, no writing
        raise OSError(ctypes.get_errno(), "mprotect failed")


def fenced(array, at_end):
    """Return a copy that begins, or ends, at a page that nobody may touch."""
    room = -(-array.nbytes // PAGE) * PAGE
    memory = mmap.mmap(-1, room + 2 * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    forbid(start)
    forbid(start + PAGE + room)
    offset = PAGE + (room - array.nbytes if at_end else 0)
    copy = np.frombuffer(memory, array.dtype, array.size, offset).reshape(array.shape)
    copy[...] = array
    return copy


tried = set()


def run_fenced(op, inputs, params, targets):
    """Run an op, and then its kernel again on fenced arrays, unless it was on others like them."""
    plan = plan_for(op, inputs, params)
    before = [x._data.copy() for x in inputs]
    outputs = run_eagerly(op, inputs, params, targets)
    if plan.kernel is not None and id(plan) not in tried:
        tried.add(id(plan))
        print(op.name, *(x.spec for x in inputs), params, flush=True)
        views = plan.views
        ins = [x.reshape(shape) for x, shape in zip(before, views.inputs, strict=True)]
        outs = [
            np.empty(shape, spec.dtype)
            for shape, spec in zip(views.outputs, plan.call.outputs, strict=True)
        ]
        room = [np.empty(shape, dtype) for shape, dtype in plan.workspace]
        for at_end in (False, True):
            given, taken = ([fenced(x, at_end) for x in side] for side in (ins, outs + room))
            plan.kernel(*given, *views.scalars, *taken)
    return outputs


def main():
    for _, case in CASES + CPU_CASES:
        for dtype in ("float32", "float64"):
            arrays = [asarray(x) for x in cast_inputs(case.inputs, dtype)]
            with interpreter(run_fenced), np.errstate(all="ignore"):
                value_and_gradients(case.function, arrays, case.grad)


if __name__ == "__main__":
    main()
