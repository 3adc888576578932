"""The op table by family: each op's shape rule, gradient, split and documented function."""

import importlib

from . import operators
from .convolution import *
from .custom import *
from .elementwise import *
from .embedding import *
from .indexing import *
from .linalg import *
from .losses import *
from .normalization import *
from .optimisation import *
from .pooling import *
from .reduction import *
from .sampling import *
from .shaping import *

_FAMILIES = (
    "convolution",
    "custom",
    "elementwise",
    "embedding",
    "indexing",
    "linalg",
    "losses",
    "normalization",
    "optimisation",
    "pooling",
    "reduction",
    "sampling",
    "shaping",
)
__all__ = [
    name for family in _FAMILIES for name in importlib.import_module(f"{__name__}.{family}").__all__
]

operators.bind()
