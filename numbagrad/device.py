"""Where memory lives: one backend for each kind of device.

A backend allocates, copies and views raw buffers; arrays, ops and gradients are built on top and
do not know one from the other. ``"cpu"`` holds NumPy arrays. ``"cuda"`` holds device arrays, those
of the CUDA simulator when ``NUMBA_ENABLE_CUDASIM=1`` is set.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

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
    defers_checks = False  # whether `check` looks at a flag later, at the next read

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

    @staticmethod
    def cuda_array_interface(data: np.ndarray) -> dict[str, Any]:
        """Describe the buffer to other CUDA libraries, which then share it.

        Raises
        ------
        AttributeError
            If it is not in a GPU's memory; so ``hasattr`` tells.
        """
        raise AttributeError("an array on 'cpu' is not in a GPU's memory: call x.to('cuda') first")


class CUDA:
    """Buffers are device arrays of the CUDA target, or of its simulator."""

    name = "cuda"
    defers_checks = True

    def __init__(self):
        from . import cuda_support

        reason = cuda_support.why_unavailable()
        if reason:
            raise DeviceError(
                f"device 'cuda' cannot be used: {reason.rstrip('.')}. It needs an NVIDIA GPU, its "
                f"driver, and {cuda_support.INSTALL}"
            )
        from . import kernels_cuda

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
        """Put the look at an error flag off to the next read: it makes the host wait."""
        self._checks.append(raise_bad_value)
        if len(self._checks) >= MAX_CHECKS:
            self._check_all()

    def _check_all(self) -> None:
        # An error's message reads arrays too: that must not start the next check.
        checks, self._checks = self._checks, []
        try:
            while checks:
                checks.pop(0)(read=self._read)
        finally:
            self._checks = checks  # after an error: those that the next read looks at

    def synchronize(self) -> None:
        self.support.synchronize()
        self._check_all()

    def cuda_array_interface(self, data) -> dict[str, Any]:
        if self.is_simulator:
            raise AttributeError("a simulated GPU's memory cannot be shared: use x.numpy()")
        self.synchronize()  # then others need not wait for our stream
        return self.support.cuda_array_interface(data)


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
    if importlib.util.find_spec("numba_cuda") is None:
        return "cpu"
    try:
        cuda = backend("cuda")
    except DeviceError as error:
        warnings.warn(f"device 'auto' is the CPU here: {error}", stacklevel=4)
        return "cpu"
    return "cpu" if cuda.is_simulator else "cuda"


def resolve(name: str | None) -> str:
    """Turn a device argument (``None``, ``"auto"``, ``"cpu"``, ``"cuda"``) into a device's name."""
    if name is None:
        return "cpu"
    if name == "auto":
        return _auto()
    backend(name)
    return name
