"""What numbagrad finds on a machine, and what would mend what it does not find."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import llvmlite
import numba
import numpy as np

from .. import __version__, jit, ops, simd
from ..array import asarray
from ..device import backend, memory_summary, synchronize
from ..dispatch import get_num_threads
from ..errors import DeviceError


def facts() -> dict[str, str]:
    """Return what there is, by name; some of it in several lines."""
    found = {
        **environment(),
        "kernel cache": _describe_cache(),
        "CUDA": describe_cuda(),
        "self-test": _self_test("cpu"),
    }
    return found | {"on the GPU": _self_test("cuda")} if _has_gpu() else found


def environment() -> dict[str, str]:
    """Return the versions, the processor and the threads in use, by name."""
    width = simd.VECTOR_BYTES * 8
    return {
        "numbagrad": f"{__version__} in {Path(__file__).parents[1]}",
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "NumPy": np.__version__,
        "Numba": f"{numba.__version__} with llvmlite {llvmlite.__version__}",
        "CPU": f"{_cpu_name()}, vectors of {width} bits ({width // 32} float32)",
        "features": ", ".join(sorted(_NOTABLE & jit.cpu_features())) or "none of note",
        "threads": f"{get_num_threads()} of {os.cpu_count()} logical cores",
    }


_NOTABLE = frozenset({"avx", "avx2", "fma", "avx512f", "avx512bw", "avx512vl", "neon", "sve"})


def _cpu_name() -> str:
    import llvmlite.binding

    return llvmlite.binding.get_host_cpu_name()


def _describe_cache() -> str:
    folder = jit.cache_dir()
    kernels = [path.stat().st_size for path in folder.glob("*.nbc")]
    return f"{folder}: {len(kernels)} kernels, {sum(kernels) / 1e6:.1f} MB"


def describe_cuda() -> str:
    """Say which GPU is used, or why none is and what would mend it."""
    try:
        support = backend("cuda").support
    except DeviceError as error:
        mend = next((mend for sign, mend in _MENDS.items() if sign in str(error)), _MEND)
        return f"{error}\nTo mend it:\n    {mend}\n{_TRY_CUDA}"
    facts = support.describe()
    if facts["simulator"]:
        return (
            f"the simulator of numba-cuda {facts['numba_cuda']}, which is slow; to use a GPU:\n"
            "    unset NUMBA_ENABLE_CUDASIM"
        )
    major, minor = facts["compute_capability"]
    return (
        f"{facts['device']}, compute capability {major}.{minor}, driver for CUDA "
        f"{facts['driver']}, toolkit {facts['toolkit']}, numba-cuda {facts['numba_cuda']}\n"
        f"{memory_summary('cuda')}"
    )


def _has_gpu() -> bool:
    try:
        return not backend("cuda").is_simulator
    except DeviceError:
        return False


_MENDS = {  # by what the reason says
    "numba-cuda": 'pip install "numbagrad[cuda]"',
    "driver library cannot be found": "install driver 580 or newer: https://www.nvidia.com/drivers",
    "NO_DEVICE": "nvidia-smi  # what the driver finds; CUDA_VISIBLE_DEVICES may hide GPUs from us",
    "NUMBA_DISABLE_CUDA": "unset NUMBA_DISABLE_CUDA",
}
_MEND = 'update the driver to 580 or newer, then: pip install --upgrade "numbagrad[cuda]"'
_TRY_CUDA = """\
To try CUDA kernels without a GPU, in a slow simulator:
    export NUMBA_ENABLE_CUDASIM=1"""


FAILED = "FAILED: "  # how a self-test begins that does


def _self_test(device: str) -> str:
    """Multiply two matrices, compare with NumPy, and say how it went."""
    try:
        seconds = _multiply(device)
    except Exception as error:  # whatever it is, it is what a doctor has to tell
        return f"{FAILED}{error}"
    speed = 2 * 512**3 / seconds / 1e9
    return f"passed: matmul 512x512x512 in {1e3 * seconds:.2f} ms, {speed:.0f} GFLOP/s"


def _multiply(device: str) -> float:
    """Return how long it takes, in seconds."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 512, 512)).astype(np.float32)
    x, y = asarray(a, device=device), asarray(b, device=device)
    out = ops.matmul(x, y).numpy()  # compiled, or read from the cache
    if not np.allclose(out, a @ b, rtol=1e-4, atol=1e-3):
        raise FloatingPointError("matmul differs from NumPy's")
    times = []
    for _ in range(5):
        started = time.perf_counter()
        ops.matmul(x, y)
        synchronize()
        times.append(time.perf_counter() - started)
    return min(times)
