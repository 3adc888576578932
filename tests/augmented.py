"""Images whose pixels say where they come from, for the tests of `numbagrad.data.augment`."""

import numpy as np

import numbagrad as ng

N, H, W = 60, 5, 4


def pixels():
    """Return images whose three channels hold the number of image, row and column."""
    where = np.meshgrid(np.arange(N), np.arange(H), np.arange(W), indexing="ij")
    return np.stack(where, -1).astype(np.float32)


def check_flips(device, wrap=lambda f: f):
    images = ng.asarray(pixels(), device=device)
    ng.random.seed(0)
    flip = wrap(ng.data.random_flip)
    for _ in range(2):
        flipped = flip(images).numpy()
        mirrored = (flipped == pixels()[:, :, ::-1]).all((1, 2, 3))
        same = (flipped == pixels()).all((1, 2, 3))
        assert (mirrored ^ same).all()
        assert 10 < mirrored.sum() < 50
    return flipped


def check_crops(device, size, wrap=lambda f: f):
    images = ng.asarray(pixels(), device=device)
    ng.random.seed(0)
    cropped = wrap(lambda x: ng.data.random_crop(x, size))(images).numpy()
    assert cropped.shape == (N, size, size, 3)
    rows, columns = cropped[:, 0, 0, 1].astype(int), cropped[:, 0, 0, 2].astype(int)
    for image, (row, column) in enumerate(zip(rows, columns, strict=True)):
        expected = pixels()[image, row : row + size, column : column + size]
        np.testing.assert_array_equal(cropped[image], expected)
    assert set(rows) == set(range(H - size + 1))
    assert set(columns) == set(range(W - size + 1))
    return cropped
