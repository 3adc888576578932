"""The cases of every family of ops, for the tiers to share: `from cases import CASES`."""

import importlib
import pkgutil

#: (family, case) pairs, in a fixed order.
CASES = [
    (module.name, case)
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name)
    for case in importlib.import_module(f"{__name__}.{module.name}").CASES
]
