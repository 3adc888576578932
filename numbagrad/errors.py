"""The exceptions that numbagrad raises, the help they carry, and the commonest check.

Every message names the op or layer, what was received, and what would fit.
"""

from __future__ import annotations

import difflib
import numbers
import os
import sys
from collections.abc import Iterable
from pathlib import Path

_PACKAGE = str(Path(__file__).parent) + os.sep

NO_ERROR = 2**63 - 1
"""What a kernel leaves in its int64 error output when all values were good."""


class ShapeError(ValueError):
    """Shapes that do not fit together, or an axis that is not there."""


class DTypeError(TypeError):
    """A dtype that an op does not serve."""


class ConfigError(ValueError):
    """A configuration that has an unknown key or a value that does not fit."""


class DeviceError(RuntimeError):
    """A device that is missing, or arrays that live on different ones."""


class OutOfMemoryError(MemoryError):
    """A device that has no room for an array."""


class DataError(ValueError):
    """A data or weight file that is missing, truncated or damaged."""


class GraphError(RuntimeError):
    """A gradient asked of a graph that cannot give it."""


class NonFiniteError(ArithmeticError):
    """The first NaN or infinity, found by ``detect_anomaly``."""


class TraceError(RuntimeError):
    """A traced function that needs a value which exists only when it runs."""


def users_line() -> str:
    """Return the file and line, outside this package, that is running."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else "unknown"


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known names come closest to a wrong one.

    Examples
    --------
    >>> nearest("lenett", ["lenet", "mlp"])
    "did you mean 'lenet'? Known: lenet, mlp"
    """
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=2)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    return f"{hint}Known: {', '.join(known)}"


def is_whole(value: object, least: int) -> bool:
    """Say whether a value is an integer, and no bool, of at least ``least``."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value >= least


def whole_number(where: str, name: str, value: int, least: int = 1) -> int:
    """Return an argument as an int.

    Raises
    ------
    ValueError
        Unless it is an integer of at least ``least``.
    """
    if not is_whole(value, least):
        raise ValueError(
            f"{where}: {name} must be a whole number of at least {least}, got {value!r}"
        )
    return int(value)
