"""`ImageFolder`: pictures of one's own, in a folder for each class."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..errors import DataError, whole_number
from .datasets import Dataset
from .pictures import read_picture

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


class ImageFolder(Dataset):
    """Labelled images from files: each folder in ``root`` is a class and holds its pictures.

    Classes are in the order of their names, pictures in that of their paths; those in folders
    further down count too. Files and folders whose names begin with a dot are passed over.

    Parameters
    ----------
    root
        The folder that holds a folder for each class.
    image_size
        Height and width of all images, in pixels: the middle of each picture is scaled to it.
    channels
        3 for colours, 1 for grey.

    Raises
    ------
    DataError
        If there are no classes, a class has no picture, or a file is no picture.
    """

    def __init__(self, root: str | os.PathLike, image_size: int, channels: int = 3):
        folder = Path(root).expanduser()
        size = whole_number("ImageFolder", "image_size", image_size)
        if channels not in (1, 3):
            raise DataError(
                f"ImageFolder: channels must be 3 (colours) or 1 (grey), got {channels}"
            )
        paths, labels, classes = _listed(folder)
        images = np.empty((len(paths), size, size, channels), np.float32)

        def read(k: int) -> None:
            images[k] = read_picture(paths[k], images.shape[1:])

        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without the GIL
            list(pool.map(read, range(len(paths))))
        super().__init__(images, np.array(labels), classes, folder.name)
        #: Where each image came from.
        self.paths = tuple(paths)


def _listed(folder: Path) -> tuple[list[Path], list[int], list[str]]:
    """Return the pictures' paths, their labels, and the classes."""
    if not folder.is_dir():
        raise DataError(f"ImageFolder: {folder} is no folder")
    classes = sorted(each.name for each in folder.iterdir() if each.is_dir() and _is_seen(each))
    if not classes:
        raise DataError(
            f"ImageFolder: {folder} holds no folders: each class needs one, with its pictures"
        )
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(
            path
            for path in (folder / name).rglob("*")
            if path.suffix.lower() in SUFFIXES and path.is_file() and _is_seen(path)
        )
        if not found:
            raise DataError(
                f"ImageFolder: {folder / name} has no picture; its files should end in "
                f"{', '.join(SUFFIXES)}"
            )
        paths += found
        labels += [label] * len(found)
    return paths, labels, classes


def _is_seen(path: Path) -> bool:
    return not path.name.startswith(".")


__all__ = ["ImageFolder"]
