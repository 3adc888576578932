"""Save and load weights in the safetensors format, which holds numbers and no code."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from .errors import DataError
from .jit import write_atomically
from .layers import Module, as_numpy
from .optim import Optimizer

NOTES = "numbagrad"  # the entry of a file's metadata that holds ours, as JSON


def save(
    path: str | os.PathLike,
    source: Module | Optimizer | Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a model's weights to a file.

    The file is complete or not there: it is written under another name and, when all of it is on
    the disk, renamed.

    Parameters
    ----------
    path
        Where to; ``.safetensors`` is the usual ending.
    source
        A module, an optimiser, or arrays by name.
    metadata
        Notes to keep with them, strings by name; `read_metadata` gives them back.

    Examples
    --------
    >>> import tempfile
    >>> import numbagrad as ng
    >>> model = ng.layers.Linear(2, 3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/model.safetensors", model)
    ...     state = load(f"{folder}/model.safetensors")
    >>> model.load_state_dict(state)
    >>> state["weight"].shape
    (2, 3)
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"save takes the path first, then what to save; got {type(path).__name__}")
    path = Path(path)
    state = source if isinstance(source, Mapping) else source.state_dict()
    # safetensors writes an array's memory as it lies there, in whatever order.
    arrays = {name: np.array(as_numpy(value), order="C") for name, value in state.items()}
    # One entry: safetensors would write several in an order that changes from run to run.
    notes = {NOTES: json.dumps(dict(metadata), sort_keys=True)} if metadata else None
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, safetensors.numpy.save(arrays, notes), durable=True)


def load(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read arrays by name: what ``load_state_dict`` takes.

    Raises
    ------
    DataError
        If the file is missing, truncated, damaged or of another kind; it is named.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """Read the notes that were saved with the weights. Raises as `load` does."""
    with _opened(path) as file:
        return json.loads((file.metadata() or {}).get(NOTES, "{}"))


def _opened(path: str | os.PathLike) -> Any:
    try:
        return safetensors.safe_open(path, "numpy")
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(f"{os.fspath(path)}: no weights could be read ({error})") from None


__all__ = ["load", "read_metadata", "save"]
