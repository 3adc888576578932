"""The data sets by name."""

import os
from collections.abc import Callable

from ..errors import DataError, nearest
from .cifar import cifar10
from .datasets import Dataset, digits, fashion_mnist, mnist

_LOADERS: dict[str, Callable] = {
    "digits": digits,
    "mnist": mnist,
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
}


def load(name: str, root: str | os.PathLike | None = None) -> tuple[Dataset, Dataset]:
    """The data set called `name`, as `(train, test)`.

    Parameters
    ----------
    name : str
        "digits", "mnist", "fashion-mnist" or "cifar10"; case, and `_` for `-`, don't matter.
    root : str or path-like, optional
        Where its files are: see `mnist`. "digits" reads none and takes no root.

    Raises
    ------
    DataError
        An unknown name, a root for "digits", or what the data set's own function raises.

    Examples
    --------
    >>> train, test = load("digits")
    >>> test
    Dataset('digits/test', 360 images of 8x8x1, 10 classes)
    """
    key = str(name).lower().replace("_", "-")
    if key not in _LOADERS:
        raise DataError(f"no data set is called {name!r}; {nearest(key, _LOADERS)}")
    if key == "digits":
        if root is not None:
            raise DataError(f"'digits' ships with numbagrad: leave out root={str(root)!r}")
        return digits()
    return _LOADERS[key](root)
