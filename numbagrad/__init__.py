"""numbagrad: a JIT-compiled array library whose every operation is a Numba kernel you can read."""

__version__ = "0.1.0"

import importlib

from . import data, errors, layers, models, ops, optim, random, simd, train, weights
from .anomaly import detect_anomaly
from .array import Array, Spec, asarray, from_dlpack
from .autodiff import enable_grad, grad, jvp, no_grad, value_and_grad, vjp
from .compiler import compile
from .device import memory_summary, synchronize
from .dispatch import Op, apply, get_num_threads, set_num_threads
from .ops import *
from .transforms import checkpoint, hessian, jacobian

__all__ = [
    "Array",
    "Op",
    "Spec",
    "apply",
    "asarray",
    "checkpoint",
    "compile",
    "data",
    "detect_anomaly",
    "enable_grad",
    "errors",
    "from_dlpack",
    "get_num_threads",
    "grad",
    "hessian",
    "jacobian",
    "jvp",
    "layers",
    "memory_summary",
    "models",
    "no_grad",
    "optim",
    "random",
    "set_num_threads",
    "simd",
    "synchronize",
    "testing",
    "train",
    "value_and_grad",
    "vjp",
    "weights",
    *ops.__all__,
]


def __getattr__(name: str):
    if name in ("inspect", "testing"):  # for people and tests, not for programs
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
