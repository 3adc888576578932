"""The cases of every family of ops, for the tiers to share: `from cases import CASES`."""

import importlib
import pkgutil

_FAMILIES = [
    importlib.import_module(f"{__name__}.{module.name}")
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name)
]


def _collect(name):
    """Return (family, case) pairs, in a fixed order."""
    return [
        (family.__name__.rpartition(".")[2], case)
        for family in _FAMILIES
        for case in getattr(family, name, ())
    ]


CASES = _collect("CASES")
#: Those for the CPU alone: too large for the simulator, or ways that only the CPU has.
CPU_CASES = _collect("CPU_CASES")
