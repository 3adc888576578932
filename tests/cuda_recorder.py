"""A GPU that only notes what it is told to launch, for compiling that where there is none."""

import re
from contextlib import contextmanager

import numpy as np

from numbagrad import device, kernels_cuda
from numbagrad.array import asarray
from numbagrad.cuda_support import entry_of, record_launches, types
from numbagrad.testing import cast_inputs, value_and_gradients

MAX_REGISTERS = 128  # of the 65536 of a multiprocessor: two blocks of 256 threads fit
MAX_SHARED_BYTES = 48 * 1024  # what a block gets without asking for more


class Recorder(device.CPU):
    """Stands in for the GPU: buffers are NumPy arrays, kernels do not run, results are zeros."""

    name = "cuda"
    kernels = kernels_cuda
    launch_arguments = (0,)  # the stream

    @staticmethod
    def empty(shape, dtype):
        return np.zeros(shape, dtype)

    @staticmethod
    def capture(run):
        """Return None: there are no graphs."""

    @staticmethod
    def check(raise_bad_value):
        """Error flags hold nothing."""


@contextmanager
def recording():
    """Let "cuda" be the recorder; yield the (kernel, signature) pairs that are launched on it."""
    backend = device.backend
    device.backend = lambda name: Recorder() if name == "cuda" else backend(name)
    try:
        with record_launches() as launches:
            yield launches
    finally:
        device.backend = backend


def launches_of(cases):
    """Return what cases launch, with their gradients, in float32 and in float64."""
    with recording() as launches:
        for case in cases:
            for dtype in ("float32", "float64"):
                arrays = [asarray(x, device="cuda") for x in cast_inputs(case.inputs, dtype)]
                value_and_gradients(case.function, arrays, case.grad)
    return launches


def parameter_bytes(kind):
    """Return the sizes of the numbers that a launch passes for an argument."""
    if isinstance(kind, types.Array):
        return [8] * (5 + 2 * kind.ndim)
    if isinstance(kind, types.BaseTuple):
        return [size for element in kind for size in parameter_bytes(element)]
    return [1 if kind == types.boolean else kind.bitwidth // 8]


def require_clean(report, signature):
    """Check what `compile_offline` says of a kernel: no spills, no stray float64, a small one."""
    name, parameters = re.search(r"\.entry ([\w$.]+)\((.*?)\)", report.ptx, re.S).groups()
    assert entry_of(report.cubin) == name
    sizes = [int(bits) // 8 for bits in re.findall(r"\.param \.\w(\d+)", parameters)]
    assert sizes == [size for kind in signature for size in parameter_bytes(kind)], signature
    assert report.spill_stores == report.spill_loads == 0, signature
    assert report.registers <= MAX_REGISTERS, signature
    assert report.shared_bytes <= MAX_SHARED_BYTES, signature
    arrays = [t for t in signature if isinstance(t, types.Array)]
    if types.float64 not in [array.dtype for array in arrays]:
        assert report.float64_instructions == 0, signature
