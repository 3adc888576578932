"""Where memory lives: one backend for each kind of device.

A backend allocates, copies and views raw buffers; arrays, ops and gradients are built on top and
do not know one from the other. ``"cpu"`` holds NumPy arrays. ``"cuda"`` holds device arrays, those
of the CUDA simulator when ``NUMBA_ENABLE_CUDASIM=1`` is set.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from collections.abc import Callable
from types import ModuleType

import numpy as np

from . import kernels_cpu
from .errors import DeviceError, nearest

DEVICES = ("cpu", "cuda")
MAX_CHECKS = 256  # error flags that may wait for the next read


class CPU:
    """Buffers are C-contiguous NumPy arrays."""

    name = "cpu"
    kernels: ModuleType = kernels_cpu
    launch_arguments = ()  # what every kernel or launcher is given last

    @staticmethod
    def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        return np.empty(shape, dtype)

    @staticmethod
    def from_host(value: np.ndarray) -> np.ndarray:
        """Copy a NumPy array into a new buffer."""
        return np.array(value, order="C", copy=True, subok=False)

    @staticmethod
    def to_host(data: np.ndarray) -> np.ndarray:
        """Return the buffer as a NumPy array, without a copy where that is possible."""
        return data

    @staticmethod
    def reshape(data: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return data.reshape(shape)

    @staticmethod
    def rows(data: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Return rows of the leading axis as a view."""
        return data[start:stop]

    @staticmethod
    def copy(data: np.ndarray) -> np.ndarray:
        return data.copy()

    @staticmethod
    def copy_into(target: np.ndarray, source: np.ndarray) -> None:
        np.copyto(target, source)

    @staticmethod
    def check(raise_bad_value: Callable) -> None:
        """Look at a kernel's error flag: ``raise_bad_value(read=...)`` raises if it is set."""
        raise_bad_value(read=CPU.to_host)

    @staticmethod
    def synchronize() -> None:
        """Do nothing: CPU kernels have finished when they return."""


class CUDA:
    """Buffers are device arrays of the CUDA target, or of its simulator."""

    name = "cuda"

    def __init__(self):
        from . import cuda_support, kernels_cuda

        reason = cuda_support.why_unavailable()
        if reason:
            raise DeviceError(f"device 'cuda' cannot be used: {reason}")
        self.support = cuda_support
        self.kernels = kernels_cuda
        self.is_simulator = cuda_support.SIMULATOR
        self.stream = cuda_support.default_stream()
        self.launch_arguments = (self.stream,)
        self._checks: list[Callable] = []

    def empty(self, shape, dtype):
        return self.support.empty(shape, dtype, self.stream)

    def from_host(self, value: np.ndarray):
        return self.support.to_device(value, self.stream)

    def to_host(self, data) -> np.ndarray:
        self._check_all()
        return self._read(data)

    def _read(self, data) -> np.ndarray:
        return self.support.to_host(data, self.stream)

    def reshape(self, data, shape):
        return self.support.reshape(data, shape)

    def rows(self, data, start: int, stop: int):
        return self.support.slice_rows(data, start, stop)

    def copy(self, data):
        return self.support.copy(data, self.stream)

    def copy_into(self, target, source) -> None:
        self.support.copy_into(target, source, self.stream)

    def check(self, raise_bad_value: Callable) -> None:
        """Put a look at an error flag off to the next read: it would make the host wait."""
        self._checks.append(raise_bad_value)
        if len(self._checks) >= MAX_CHECKS:
            self._check_all()

    def _check_all(self) -> None:
        checks, self._checks = self._checks, []
        for raise_bad_value in checks:
            raise_bad_value(read=self._read)

    def synchronize(self) -> None:
        self.support.synchronize()
        self._check_all()


@functools.cache
def backend(name: str) -> CPU | CUDA:
    """Return the backend of a device.

    Raises
    ------
    DeviceError
        If the device is unknown or cannot be used here, with the reason.
    """
    if name == "cpu":
        return CPU()
    if name == "cuda":
        return CUDA()
    raise DeviceError(f"unknown device {name!r}: {nearest(str(name), (*DEVICES, 'auto'))}")


@functools.cache
def _auto() -> str:
    if importlib.util.find_spec("numba_cuda") is None or os.environ.get("NUMBA_ENABLE_CUDASIM"):
        return "cpu"  # "auto" never picks the simulator
    from . import cuda_support

    reason = cuda_support.why_unavailable()
    if reason:
        warnings.warn(f"device='auto' uses the CPU: {reason}", stacklevel=4)
        return "cpu"
    return "cuda"


def resolve(name: str | None) -> str:
    """Turn a device argument (``None``, ``"auto"``, ``"cpu"``, ``"cuda"``) into a device's name."""
    if name is None:
        return "cpu"
    if name == "auto":
        return _auto()
    backend(name)
    return name
