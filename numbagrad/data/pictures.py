"""Image files as arrays."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ..errors import DataError


def read_picture(
    path: str | os.PathLike, shape: tuple[int, int, int], *, invert: bool = False
) -> np.ndarray:
    """Read a picture of any size, colour or grey, as a float32 image of a shape (h, w, c).

    The middle of it is scaled so that it fills the shape; what is transparent becomes white; a
    photo's orientation is followed.

    Parameters
    ----------
    path
        A PNG, a JPEG, or another kind that Pillow reads.
    shape
        With one channel (grey) or three (red, green, blue).
    invert
        Swap black and white.

    Raises
    ------
    DataError
        If it is missing or cannot be read as a picture.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ModuleNotFoundError:
        raise DataError(f'{path}: pictures need Pillow: pip install "numbagrad[plot]"') from None

    height, width, channels = shape
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            picture = _without_alpha(_of_eight_bits(picture)).convert(
                "L" if channels == 1 else "RGB"
            )
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        reason = "not a picture of a kind that is known"
        if not isinstance(error, UnidentifiedImageError):
            reason = str(error)
        raise DataError(f"{path}: cannot be read as a picture ({reason})") from None
    if invert:
        picture = ImageOps.invert(picture)
    picture = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(picture, np.float32).reshape(shape) / np.float32(255)


def _of_eight_bits(picture: Any) -> Any:
    """Scale numbers of 16 bits, which Pillow would cut off at 255."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    from PIL import Image

    values = np.asarray(picture, np.float64)
    top = 65535 if values.max(initial=0) > 255 else 255
    return Image.fromarray((values.clip(0, top) * (255 / top)).round().astype(np.uint8))


def _without_alpha(picture: Any) -> Any:
    """Lay a picture with transparent parts on white."""
    if not picture.has_transparency_data:
        return picture
    from PIL import Image

    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)


__all__ = ["read_picture"]
