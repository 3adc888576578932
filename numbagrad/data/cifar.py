"""`cifar10`: from the files of the published set, or from its images packed as JPEG."""

from __future__ import annotations

import io
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .datasets import Dataset
from .download import FOLDER, find

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

SIDE, CHANNELS = 32, 3
_IMAGE = SIDE * SIDE * CHANNELS  # bytes: all of red, then green, then blue
_PARTS = {"train": [f"data_batch_{k}" for k in range(1, 6)], "test": ["test_batch"]}
_JPEG = {part: f"cifar10_jpeg_{part}.npz" for part in _PARTS}


def cifar10(root: str | os.PathLike | None = None) -> tuple[Dataset, Dataset]:
    """CIFAR-10: 60,000 photographs of 32x32 pixels in ten classes.

    Parameters
    ----------
    root : str or path-like, optional
        The folder that holds the files, or a folder `cifar10` with them. Without it they are found,
        or downloaded (170 MB), as those of `mnist` are.

    Returns
    -------
    train, test : Dataset
        50,000 and 10,000 images, float32 of shape (n, 32, 32, 3), with labels 0 to 9. Their name
        begins with `cifar10-jpeg` if they were read from JPEGs, which lose a little.

    Raises
    ------
    DataError
        No files are there and they cannot be downloaded, or one is missing, damaged or truncated.

    Notes
    -----
    Read is what is found first of: the published binary version (`data_batch_1.bin` to
    `data_batch_5.bin`, `test_batch.bin`), the published Python version (the same names without
    `.bin`), each in the folder itself or in the one that its archive unpacks to; and
    `cifar10_jpeg_train.npz` with `cifar10_jpeg_test.npz`: arrays `jpeg` (uint8, all files one
    after the other), `offsets` (where each begins, and the end) and `labels`; for these Pillow is
    needed.

    The data set is by A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images"
    (2009), https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    folder = find("cifar10", root, _missing, _help())
    for suffix, inner, read in (
        (".bin", "cifar-10-batches-bin", _binary),
        ("", "cifar-10-batches-py", _pickled),
    ):
        for place in (folder, folder / inner):
            paths = {
                part: [place / f"{name}{suffix}" for name in names]
                for part, names in _PARTS.items()
            }
            files = [path for part in paths.values() for path in part]
            if any(path.is_file() for path in files):
                _require(files)
                train, test = (
                    _dataset(f"cifar10/{part}", [read(path) for path in each])
                    for part, each in paths.items()
                )
                return train, test
    files = [folder / name for name in _JPEG.values()]
    if not any(path.is_file() for path in files):
        raise DataError(f"cifar10: {folder} has none of its files. {_help()}")
    _require(files)
    train, test = (
        _dataset(f"cifar10-jpeg/{part}", [_packed(path)])
        for part, path in zip(_JPEG, files, strict=True)
    )
    return train, test


def _missing(folder: Path) -> list[str]:
    """Name what a folder lacks that has none of the files at all."""
    places = folder, folder / "cifar-10-batches-bin", folder / "cifar-10-batches-py"
    names = [f"{name}{end}" for part in _PARTS.values() for name in part for end in (".bin", "")]
    known = [place / name for place in places for name in [*names, *_JPEG.values()]]
    return [] if any(path.is_file() for path in known) else ["files of CIFAR-10"]


def _help() -> str:
    return (
        "Put the files of the binary or of the Python version of CIFAR-10 "
        "(https://www.cs.toronto.edu/~kriz/cifar.html), unpacked, in a folder cifar10/, and set "
        f"{FOLDER} to the folder that holds it (export {FOLDER}=/path/to/data), or pass root="
    )


def _require(files: list[Path]) -> None:
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise DataError(f"cifar10: {files[0].parent} has no {', '.join(missing)}. {_help()}")


def _dataset(name: str, pieces: list[tuple[np.ndarray, np.ndarray]]) -> Dataset:
    images = np.concatenate([images for images, _ in pieces])
    labels = np.concatenate([labels for _, labels in pieces])
    scaled = np.divide(images, np.float32(255), dtype=np.float32)
    return Dataset(scaled, labels, CIFAR10_CLASSES, name)


def _planes(path: Path, values: np.ndarray) -> np.ndarray:
    """(n, 3072) planes of red, green and blue as (n, 32, 32, 3) pixels."""
    if values.ndim != 2 or values.shape[1] != _IMAGE or values.dtype != np.uint8:
        raise DataError(
            f"{path}: holds {values.dtype} of shape {values.shape}; uint8 of shape (n, {_IMAGE}) "
            "would fit"
        )
    return values.reshape(-1, CHANNELS, SIDE, SIDE).transpose(0, 2, 3, 1)


def _binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Records of a label and an image."""
    raw = np.fromfile(path, np.uint8)
    if raw.size == 0 or raw.size % (1 + _IMAGE):
        raise DataError(
            f"{path}: holds {raw.size:,} bytes; records of {1 + _IMAGE:,} bytes would fit"
        )
    records = raw.reshape(-1, 1 + _IMAGE)
    return _planes(path, records[:, 1:]), records[:, 0]


class _Unpickler(pickle.Unpickler):
    """Reads arrays of NumPy and nothing else: a pickle could run any code."""

    _ALLOWED = (
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    )

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle names."""
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, which no such file needs")
        # Where NumPy keeps it, whatever its version.
        module = module.replace("numpy.core", "numpy._core") if hasattr(np, "_core") else module
        return super().find_class(module, name)


def _pickled(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A dict with `data` and `labels`."""
    try:
        with path.open("rb") as file:
            held = _Unpickler(file, encoding="bytes").load()
        values, labels = np.asarray(held[b"data"]), np.asarray(held[b"labels"])
    except Exception as error:  # whatever a damaged pickle brings about
        raise DataError(f"{path}: not a batch of CIFAR-10: {error}") from error
    return _planes(path, values), labels


def _packed(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """JPEG files one after the other."""
    try:
        from PIL import Image
    except ImportError:
        raise DataError(
            f'{path}: decoding JPEGs needs Pillow: pip install "numbagrad[plot]"'
        ) from None
    try:
        with np.load(path) as arrays:
            files, offsets, labels = arrays["jpeg"], arrays["offsets"], arrays["labels"]
    except Exception as error:  # no zip, no such array, bytes that do not decompress
        raise DataError(f"{path}: not a file of packed JPEGs: {error}") from error
    if len(offsets) != len(labels) + 1 or offsets[0] != 0 or offsets[-1] != files.size:
        raise DataError(
            f"{path}: {len(labels):,} labels and {files.size:,} bytes need {len(labels) + 1:,} "
            f"offsets, the first 0 and the last {files.size:,}"
        )
    images = np.empty((len(labels), SIDE, SIDE, CHANNELS), np.uint8)

    def decode(first: int) -> None:
        for k in range(first, min(first + 500, len(labels))):
            raw = io.BytesIO(files[offsets[k] : offsets[k + 1]].tobytes())
            try:
                images[k] = np.asarray(Image.open(raw).convert("RGB"))
            except (OSError, ValueError) as error:
                raise DataError(f"{path}: image {k:,} cannot be decoded: {error}") from error

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without the GIL
        list(pool.map(decode, range(0, len(labels), 500)))
    return images, labels
