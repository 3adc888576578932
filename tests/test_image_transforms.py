"""Random changes to batches of images: what they do, and that each image has its own randomness."""

import numpy as np
import pytest

from numbagrad import data, kernels_cpu
from numbagrad.data.transforms import (
    ColorJitter,
    Compose,
    Cutout,
    Key,
    Normalize,
    RandomCrop,
    RandomFlip,
    _uniform,
)
from numbagrad.errors import ShapeError

rng = np.random.default_rng(0)
IMAGES = rng.random((40, 6, 5, 3), dtype=np.float32)
KEY = Key(7, 3, np.arange(40))
ALL = Compose([
    RandomCrop(5, padding=1), RandomFlip(), Cutout(2), ColorJitter(0.4, 0.4, 0.4),
    Normalize([0.5, 0.4, 0.3], 0.25),
])  # fmt: skip


def test_random_numbers_are_those_of_the_generator():
    indices, found = np.array([0, 5, 2**33 + 1]), np.empty((3, 4), np.float32)
    seed, epoch, position = 2**40 + 17, 3, 2
    _uniform(seed, epoch, position, indices, found)
    for index, words in zip(indices, found, strict=True):
        expected = np.empty(4, np.float32)
        call = np.array([epoch + (position << 32)])
        kernels_cpu.random_uniform(np.array([seed]), call, 4 * int(index), expected)
        np.testing.assert_array_equal(words, expected)


def test_flip():
    out = RandomFlip()(IMAGES, KEY)
    mirrored = [np.array_equal(a, b[:, ::-1]) for a, b in zip(out, IMAGES, strict=True)]
    same = [np.array_equal(a, b) for a, b in zip(out, IMAGES, strict=True)]
    assert np.logical_xor(mirrored, same).all()
    assert 10 < sum(mirrored) < 30


@pytest.mark.parametrize(("size", "padding"), [(3, 0), (5, 0), (5, 1), (1, 2), (9, 3)])
def test_crop(size, padding):
    out = RandomCrop(size, padding)(IMAGES, KEY)
    assert out.shape == (40, size, size, 3)
    padded = np.pad(IMAGES, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    places = set()
    for image, source in zip(out, padded, strict=True):
        rows, columns = (extent - size + 1 for extent in source.shape[:2])
        found = [
            (top, left)
            for top in range(rows)
            for left in range(columns)
            if np.array_equal(image, source[top : top + size, left : left + size])
        ]
        assert found
        places.add(found[0])
    assert len(places) > min(4, rows * columns - 1)


def test_cutout():
    out = Cutout(3)(IMAGES, KEY)
    holes = (out == 0).all(-1)
    assert (out[~holes] == IMAGES[~holes]).all()
    for hole in holes:
        rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        assert hole.sum() == len(rows) * len(columns)  # a rectangle
        assert 2 <= len(rows) <= 3
        assert 2 <= len(columns) <= 3


def test_jitter():
    draws = np.empty((40, 3), np.float32)
    _uniform(KEY.seed, KEY.epoch, 0, KEY.indices, draws)
    b, k, s = ((1 + 0.3 * (2 * draws - 1)).T.astype(np.float64))[..., None, None, None]
    grey = np.array([0.299, 0.587, 0.114])
    x = IMAGES * b
    mean = (x @ grey).mean((1, 2))[:, None, None, None]
    x = mean + k * (x - mean)
    g = (x @ grey)[..., None]
    expected = np.clip(g + s * (x - g), 0, 1)
    out = ColorJitter(0.3, 0.3, 0.3)(IMAGES, KEY)
    np.testing.assert_allclose(out, expected, atol=2e-6)
    np.testing.assert_allclose(ColorJitter()(IMAGES, KEY), IMAGES, atol=1e-6)
    one = ColorJitter(0.3, 0.3, 0.3)(IMAGES[..., :1], KEY)
    assert one.shape == (40, 6, 5, 1)


def test_normalise():
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.1, 0.2, 0.3])
    out = Normalize(mean, std)(IMAGES, KEY)
    np.testing.assert_allclose(out, (IMAGES - mean) / std, rtol=1e-4, atol=1e-5)
    bytes_ = (IMAGES * 255).astype(np.uint8)
    out = Normalize(0, 1, white=255)(bytes_, KEY)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, bytes_ / 255, rtol=1e-6)


# ------------------------------------------------------------- with a loader


def epoch_of(batch_size, workers=1, epoch=2, transform=ALL, images=IMAGES):
    loader = data.DataLoader(
        (images, np.arange(len(images))), batch_size,
        shuffle=True, seed=5, transform=transform, workers=workers,
    )  # fmt: skip
    loader.epoch = epoch
    batches = [(x.numpy(), y.numpy()) for x, y in loader]
    images, labels = (np.concatenate(each) for each in zip(*batches, strict=True))
    return images[np.argsort(labels)]


def test_an_epoch_is_the_same_however_it_is_walked():
    expected = epoch_of(7)
    for batch_size, workers in [(7, 0), (40, 1), (1, 1), (13, 0)]:
        np.testing.assert_array_equal(epoch_of(batch_size, workers), expected)
    assert not np.array_equal(epoch_of(7, epoch=3), expected)


def test_each_transform_has_random_numbers_of_its_own():
    twice = Compose([RandomFlip(), RandomFlip()])(IMAGES, KEY)
    same = [np.array_equal(a, b) for a, b in zip(twice, IMAGES, strict=True)]
    assert 10 < sum(same) < 30


def test_functions_may_be_among_them():
    out = epoch_of(7, transform=Compose([lambda images: 2 * images, RandomFlip()]))
    np.testing.assert_allclose(np.sort(out, 2), np.sort(2 * IMAGES, 2))


def test_images_in_a_file_become_floats_a_batch_at_a_time(tmp_path):
    path = tmp_path / "images.npy"
    np.save(path, (IMAGES * 255).astype(np.uint8))
    mapped = np.load(path, mmap_mode="r")
    out = epoch_of(7, transform=Normalize(0, 1, white=255), images=mapped)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, mapped / 255, rtol=1e-6)


def test_images_are_left_as_they_are():
    before = IMAGES.copy()
    ALL(IMAGES, KEY)
    np.testing.assert_array_equal(IMAGES, before)


# -------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: RandomCrop(0),
            ValueError,
            "RandomCrop: size must be a whole number of at least 1",
        ),
        (lambda: RandomCrop(3, -1), ValueError, "padding must be a whole number of at least 0"),
        (
            lambda: RandomCrop(9, 1)(IMAGES, KEY),
            ShapeError,
            "6x5 with padding 1 have no square of 9",
        ),
        (lambda: RandomFlip()(IMAGES[0], KEY), ShapeError, r"RandomFlip: .*got shape \(6, 5, 3\)"),
        (lambda: ColorJitter(2.0), ValueError, "brightness must be 0 to 1, got 2.0"),
        (lambda: ColorJitter(0.1)(IMAGES[..., :2], KEY), ShapeError, "1 or 3 channels"),
        (lambda: Normalize(0, 0), ValueError, "std and white above 0"),
        (lambda: Normalize([0, 0], 1)(IMAGES, KEY), ShapeError, "2 means .* of 3 channels"),
        (lambda: Compose([3]), TypeError, "3 is no transform"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()
