"""Data sets and the loader that cuts them into batches.

>>> import numbagrad as ng
>>> train, test = ng.data.digits()
>>> len(train), len(test)
(1437, 360)

`digits` ships with the library; `mnist` and `fashion_mnist` read files that you put in a folder
(see `mnist`). Nothing is read, decoded or downloaded on import.
"""

from .datasets import Dataset, digits, fashion_mnist, load, mnist
from .idx import parse_idx, read_idx
from .loader import DataLoader

__all__ = [
    "DataLoader",
    "Dataset",
    "digits",
    "fashion_mnist",
    "load",
    "mnist",
    "parse_idx",
    "read_idx",
]
