"""numbagrad: a JIT-compiled array library whose every operation is a Numba kernel you can read."""

__version__ = "0.1.0"

import importlib

from . import errors, simd
from .array import Array, Spec, asarray
from .autodiff import backward, enable_grad, grad, no_grad, value_and_grad, vjp
from .dispatch import Op, apply, get_num_threads, set_num_threads
from .ops import *  # noqa: F403
from . import data, layers, models, optim, random, train, weights


def __getattr__(name: str):
    if name == "testing":  # only tests need it
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
