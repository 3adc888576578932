"""Arrays as image files."""

from __future__ import annotations

import base64
import io

import numpy as np


def data_url(image: np.ndarray) -> str:
    """Return an image of floats in 0..1, (h, w) or (h, w, 1 or 3), as a PNG inside an address."""
    from PIL import Image

    pixels = (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
