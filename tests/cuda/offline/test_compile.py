"""Every kernel, as the cases launch it, compiled to machine code for two GPUs, and looked at."""

from collections import defaultdict

import numpy as np
import pytest
from cases import CASES

from numbagrad import device, kernels_cuda
from numbagrad.array import asarray
from numbagrad.cuda_support import compile_offline, record_launches, types
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
    def check(raise_bad_value):
        """Error flags hold nothing."""


def record(cases):
    """Return the (kernel, signature) pairs that cases launch, in float32 and in float64."""
    backend = device.backend
    device.backend = lambda name: Recorder() if name == "cuda" else backend(name)
    try:
        with record_launches() as launches:
            for case in cases:
                for dtype in ("float32", "float64"):
                    arrays = [asarray(x, device="cuda") for x in cast_inputs(case.inputs, dtype)]
                    value_and_gradients(case.function, arrays, case.grad)
    finally:
        device.backend = backend
    return launches


SIGNATURES = defaultdict(list)
for kernel, signature in sorted(record(case for _, case in CASES), key=str):
    SIGNATURES[kernel.__name__].append((kernel, signature))


def holds_float64(signature):
    return any(isinstance(t, types.Array) and t.dtype == types.float64 for t in signature)


@pytest.mark.parametrize("cc", [(8, 0), (9, 0)], ids=["sm_80", "sm_90"])
@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_kernel(name, cc):
    for kernel, signature in SIGNATURES[name]:
        report = compile_offline(kernel, signature, cc)
        assert report.spill_stores == report.spill_loads == 0, signature
        assert report.registers <= MAX_REGISTERS, signature
        assert report.shared_bytes <= MAX_SHARED_BYTES, signature
        if not holds_float64(signature):
            assert report.float64_instructions == 0, signature


def test_no_kernel_escapes():
    kernels = {
        name
        for name, value in vars(kernels_cuda).items()
        if isinstance(value, type(kernels_cuda._add_forward))
        and value.__module__ == kernels_cuda.__name__
        and not value.targetoptions["device"]
    }
    assert sorted(kernels - set(SIGNATURES)) == []
