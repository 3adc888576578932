"""What a trained model takes pictures for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.bar import Bar
from rich.console import Console
from rich.table import Table

from ..data.pictures import read_picture
from . import runs

LIGHT_ON_DARK = ("digits", "fashion-mnist", "mnist")
BAR = 40  # letters


def show(trained: runs.Trained, paths: Sequence[Path], top: int, invert: bool) -> None:
    """Print the likeliest classes of each picture, with a bar for how likely they are.

    Raises
    ------
    DataError
        If a picture cannot be read: then nothing is printed.
    """
    images = np.stack([read_picture(path, trained.shape, invert=invert) for path in paths])
    chances = runs.softmax(runs.outputs(trained.model, images))
    console = Console(highlight=False)
    for path, image, row in zip(paths, images, chances, strict=True):
        console.print(str(path), style="bold", markup=False, soft_wrap=True)
        console.print(_table(row, trained.classes, top))
        if trained.config.data["name"] in LIGHT_ON_DARK and np.median(image) > 0.5:
            name, other = trained.config.data["name"], "without" if invert else "with"
            console.print(f"  mostly bright, but {name} is light on dark: try {other} --invert")


def _table(chances: np.ndarray, classes: Sequence[str], top: int) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", min_width=14)
    table.add_column(width=BAR)
    table.add_column(justify="right")
    for index in np.argsort(-chances, kind="stable")[:top]:
        share = float(chances[index])
        table.add_row(classes[index], Bar(1, 0, share, width=BAR), f"{100 * share:.1f} %")
    return table
