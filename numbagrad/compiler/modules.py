"""Emitted source as modules: written into the cache, and imported from there."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import threading
from pathlib import Path

from ..jit import cache_dir, instead_of, write_atomically


def load_module(text: str, name: str):
    """Write source into the cache and import it; the same text is the same module."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    module_name = f"numbagrad.compiled_{digest}"
    with _loading:
        if module_name not in sys.modules:
            _load(text, module_name, f"{name}_{digest}.py")
        return sys.modules[module_name]


_loading = threading.Lock()


def _load(text: str, module_name: str, file_name: str) -> None:
    folder = cache_dir() / "compiled"
    try:
        path = _written(text, folder / file_name)
    except OSError as error:
        path = _written(text, instead_of(folder, error) / file_name)
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise


def _written(text: str, path: Path) -> Path:
    """Return the path of a file in the cache that holds a text, written now if it is not there."""
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, text.encode())
    return path


def safe_name(name: str) -> str:
    """Return a function's name as part of a file's."""
    return "".join(c if c.isalnum() else "_" for c in name)


__all__ = ["load_module", "safe_name"]
