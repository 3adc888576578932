"""Data sets and the loader that cuts them into batches.

>>> import numbagrad as ng
>>> train, test = ng.data.digits()
>>> len(train), len(test)
(1437, 360)

`digits` ships with the library; `mnist`, `fashion_mnist` and `cifar10` are read from a folder, and
downloaded if they are in none (see `mnist`). Nothing is read, decoded or downloaded on import.
"""

from . import transforms
from .augment import random_crop, random_flip
from .catalogue import load
from .cifar import cifar10
from .datasets import Dataset, digits, fashion_mnist, mnist
from .folder import ImageFolder
from .idx import parse_idx, read_idx
from .loader import DataLoader

__all__ = [
    "DataLoader",
    "Dataset",
    "ImageFolder",
    "cifar10",
    "digits",
    "fashion_mnist",
    "load",
    "mnist",
    "parse_idx",
    "random_crop",
    "random_flip",
    "read_idx",
    "transforms",
]
