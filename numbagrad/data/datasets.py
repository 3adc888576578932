"""The data sets: each function gives `(train, test)`, two `Dataset`s of NHWC images and labels."""

import functools
import operator
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np

from ..errors import DataError
from .download import FOLDER, find
from .idx import read_idx

DIGIT_CLASSES = tuple("0123456789")
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


class Dataset:
    """Labelled images in memory.

    Parameters
    ----------
    images : array of float, shape (n, h, w, c)
        Pixels in 0..1. float32 is taken as it is (not copied), other floats are rounded to it.
    labels : array of int, shape (n,)
        Class numbers, `0 <= label < len(classes)`.
    classes : sequence of str
        The name of each class.
    name : str
        What to call the set in messages.

    Attributes
    ----------
    images : ndarray of float32, shape (n, h, w, c), read-only
    labels : ndarray of int64, shape (n,), read-only
    classes : tuple of str
    name : str

    Raises
    ------
    DataError
        Shapes, dtypes or lengths that don't fit, or a label without a class.

    Notes
    -----
    `dataset[i]` is a pair `(image, label)`; `dataset[a:b]`, `take` and `subset` give a `Dataset`.
    For plain arrays slice the attributes: `dataset.images[a:b]`.

    Examples
    --------
    >>> train, test = digits()
    >>> train
    Dataset('digits/train', 1,437 images of 8x8x1, 10 classes)
    >>> image, label = train[1]
    >>> image.shape, label, train.classes[label]
    ((8, 8, 1), 3, '3')
    >>> train.subset(train.labels < 2)
    Dataset('digits/train', 288 images of 8x8x1, 10 classes)
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, classes: Sequence[str], name: str
    ) -> None:
        images, labels = np.asarray(images), np.asarray(labels)
        if images.ndim != 4 or images.dtype.kind != "f":
            raise DataError(
                f"{name}: images are {images.dtype} of shape {images.shape}; "
                "floats in 0..1 of shape (n, h, w, c) would fit"
            )
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            raise DataError(
                f"{name}: labels are {labels.dtype} of shape {labels.shape}; "
                f"{len(images):,} images need integers of shape ({len(images)},)"
            )
        self.images = _read_only(images.astype(np.float32, copy=False))
        self.labels = _read_only(labels.astype(np.int64, copy=False))
        self.classes = tuple(classes)
        self.name = name
        outside = (self.labels < 0) | (self.labels >= len(self.classes))
        if outside.any():
            first = int(outside.argmax())
            raise DataError(
                f"{name}: label {self.labels[first]} at position {first:,}; "
                f"{len(self.classes)} classes allow 0 to {len(self.classes) - 1}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int | slice) -> "tuple[np.ndarray, int] | Dataset":
        if isinstance(index, slice):
            return Dataset(self.images[index], self.labels[index], self.classes, self.name)
        try:
            index = operator.index(index)
        except TypeError:
            raise TypeError(
                f"{self.name}: index is a {type(index).__name__}; an int or a slice would fit, "
                "and subset(indices) takes a list, an array or a mask"
            ) from None
        return self.images[index], int(self.labels[index])

    def take(self, n: int) -> "Dataset":
        """The first `n` images and labels (views, nothing is copied).

        Raises `DataError` unless `0 <= n <= len(self)`.
        """
        if not 0 <= n <= len(self):
            raise DataError(f"{self.name}: take(n={n}); n may be 0 to {len(self)}, its length")
        return self[:n]

    def subset(self, indices: "Sequence[int] | np.ndarray") -> "Dataset":
        """The images and labels at `indices`, in that order (copied).

        Parameters
        ----------
        indices : array of int, shape (m,), or of bool, shape (n,)
            Positions, or a mask such as `dataset.labels == 3`.

        Raises
        ------
        DataError
            Another dtype or shape, or a position outside the data set.
        """
        indices = np.asarray(indices)
        if indices.size == 0:
            indices = indices.astype(np.int64)  # np.asarray([]) is float64
        n = len(self)
        if indices.dtype.kind == "b" and indices.shape == (n,):
            indices = indices.nonzero()[0]
        if indices.ndim != 1 or indices.dtype.kind not in "iu":
            raise DataError(
                f"{self.name}: indices are {indices.dtype} of shape {indices.shape}; "
                f"integers of shape (m,) or a bool mask of shape ({n},) would fit"
            )
        outside = (indices < -n) | (indices >= n)
        if outside.any():
            raise DataError(
                f"{self.name}: index {indices[outside][0]} is outside its {n:,} images; "
                f"{-n} to {n - 1} would fit"
            )
        return Dataset(self.images[indices], self.labels[indices], self.classes, self.name)

    def __repr__(self) -> str:
        size = "x".join(str(n) for n in self.images.shape[1:])
        return (
            f"Dataset({self.name!r}, {len(self):,} images of {size}, {len(self.classes)} classes)"
        )


def _read_only(array: np.ndarray) -> np.ndarray:
    """A view of `array` that can't be written through."""
    view = array.view()
    view.flags.writeable = False
    return view


@functools.cache
def digits() -> tuple[Dataset, Dataset]:
    """1,797 real handwritten digits of 8x8 pixels, shipped with the library.

    Returns
    -------
    train, test : Dataset
        1,437 and 360 images, float32 of shape (n, 8, 8, 1), with labels 0 to 9. Read once per
        process: later calls give the same two objects.

    Notes
    -----
    The split is fixed and uses no random numbers: the images, sorted by label (stably), go to
    `test` at positions 0, 5, 10, …, so each class sends one in five. A writer may appear in both.

    The data are the test part of *Optical Recognition of Handwritten Digits* by E. Alpaydin and
    C. Kaynak (1998), UCI Machine Learning Repository, https://doi.org/10.24432/C50P49, licensed
    CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/); the copy is the one that
    scikit-learn ships as `load_digits`. Changed here: repacked as uint8, divided by 16 on reading,
    and split.

    Examples
    --------
    >>> train, test = digits()
    >>> train.images.shape, train.images.dtype, train.labels.dtype
    ((1437, 8, 8, 1), dtype('float32'), dtype('int64'))
    """
    with resources.files(__package__).joinpath("digits.npz").open("rb") as file:
        arrays = np.load(file)
        images, labels = arrays["images"], arrays["labels"]  # uint8 in 0..16 and uint8
    in_test = np.zeros(len(labels), dtype=bool)
    in_test[np.argsort(labels, kind="stable")[::5]] = True
    train, test = (
        Dataset(_scaled(images[part], 16), labels[part], DIGIT_CLASSES, f"digits/{name}")
        for name, part in [("train", ~in_test), ("test", in_test)]
    )
    return train, test


def mnist(root: str | os.PathLike | None = None) -> tuple[Dataset, Dataset]:
    """MNIST: 70,000 handwritten digits of 28x28 pixels.

    Parameters
    ----------
    root : str or path-like, optional
        The folder that holds the four files, or a folder `mnist` with them. Without it,
        `$NUMBAGRAD_DATA/mnist` is read, or `numbagrad/data/mnist` in the user's cache folder. What
        is in neither is downloaded to the first that there is (11 MB), unless `NUMBAGRAD_OFFLINE`
        is set.

    Returns
    -------
    train, test : Dataset
        60,000 and 10,000 images, float32 of shape (n, 28, 28, 1), with labels 0 to 9.

    Raises
    ------
    DataError
        A file is missing and cannot be downloaded, is damaged, truncated or too long, or the files
        don't fit each other.

    Notes
    -----
    The files are `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte`
    and `t10k-labels-idx1-ubyte`, each plain or with `.gz`. The data set is by Y. LeCun, C. Cortes
    and C. J. C. Burges, http://yann.lecun.com/exdb/mnist/.
    """
    return _idx_pair("mnist", DIGIT_CLASSES, root)


def fashion_mnist(root: str | os.PathLike | None = None) -> tuple[Dataset, Dataset]:
    """Fashion-MNIST: 70,000 pictures of clothes of 28x28 pixels.

    Parameters
    ----------
    root : str or path-like, optional
        The folder that holds the four files (named as `mnist`'s), or a folder `fashion-mnist`
        with them. Without it they are found, or downloaded (30 MB), as those of `mnist` are.

    Returns
    -------
    train, test : Dataset
        60,000 and 10,000 images, float32 of shape (n, 28, 28, 1), with labels 0 to 9.

    Raises
    ------
    DataError
        A file is missing and cannot be downloaded, is damaged, truncated or too long, or the files
        don't fit each other.

    Notes
    -----
    By H. Xiao, K. Rasul and R. Vollgraf (2017), arXiv:1708.07747, MIT licence,
    https://github.com/zalandoresearch/fashion-mnist.
    """
    return _idx_pair("fashion-mnist", FASHION_CLASSES, root)


def _scaled(pixels: np.ndarray, white: int) -> np.ndarray:
    """(n, h, w) pixels in 0..white as float32 (n, h, w, 1) in 0..1."""
    return np.divide(pixels, np.float32(white), dtype=np.float32)[..., None]


def _idx_pair(
    name: str, classes: tuple[str, ...], root: str | os.PathLike | None
) -> tuple[Dataset, Dataset]:
    """`(train, test)` of an MNIST-like set: four IDX files in one folder."""
    names = [
        f"{part}-{kind}"
        for part in ("train", "t10k")
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    ]
    paths = _find_files(name, names, root)
    train = _idx_dataset(f"{name}/train", classes, *paths[:2])
    test = _idx_dataset(f"{name}/test", classes, *paths[2:])
    return train, test


def _find_files(name: str, names: list[str], root: str | os.PathLike | None) -> list[Path]:
    """The path of each file, plain or with `.gz`; a `DataError` says which are missing."""
    files = f"the four files {', '.join(names)} (each plain or with .gz)"
    help_text = (
        f"Put {files} in one folder {name}/, and set {FOLDER} to the folder that holds it "
        f"(export {FOLDER}=/path/to/data), or pass root="
    )

    def found(folder: Path) -> list[Path | None]:
        options = [(folder / f"{file}.gz", folder / file) for file in names]
        return [next((path for path in pair if path.is_file()), None) for pair in options]

    def missing(folder: Path) -> list[str]:
        return [file for file, path in zip(names, found(folder), strict=True) if path is None]

    folder = find(name, root, missing, help_text)
    if missing(folder):
        raise DataError(f"{name}: {folder} has no {', '.join(missing(folder))}. {help_text}")
    return found(folder)


def _idx_dataset(
    name: str, classes: tuple[str, ...], images_path: Path, labels_path: Path
) -> Dataset:
    """One part of an MNIST-like set; errors name the file."""
    pixels, labels = read_idx(images_path), read_idx(labels_path)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[1:] != (28, 28):
        raise DataError(
            f"{images_path}: holds {pixels.dtype} of shape {pixels.shape}; "
            f"uint8 images of shape (n, 28, 28) would fit {name}"
        )
    if labels.dtype != np.uint8 or labels.ndim != 1:
        raise DataError(
            f"{labels_path}: holds {labels.dtype} of shape {labels.shape}; "
            f"uint8 labels of shape (n,) would fit {name}"
        )
    if len(labels) != len(pixels):
        raise DataError(
            f"{labels_path}: holds {len(labels):,} labels, but {images_path} holds "
            f"{len(pixels):,} images; they must agree"
        )
    try:
        return Dataset(_scaled(pixels, 255), labels, classes, name)
    except DataError as error:  # a label out of range
        raise DataError(f"{labels_path}: {error}") from error
