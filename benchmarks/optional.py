"""Libraries that not every benchmark needs: imported when they are first used."""

from __future__ import annotations

import importlib
from typing import Any


class Lazy:
    """Stands for a module until something of it is asked for."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        """Import the module now."""
        return getattr(importlib.import_module(self._name), attribute)


jax: Any = Lazy("jax")
cupy: Any = Lazy("cupy")
