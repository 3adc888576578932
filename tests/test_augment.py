"""Random flips and crops: each image its own, drawn anew in compiled steps."""

import numpy as np
import pytest
from augmented import check_crops, check_flips

import numbagrad as ng
from numbagrad.errors import ShapeError


def test_flips():
    check_flips("cpu")


@pytest.mark.parametrize("size", [2, 4])
def test_crops(size):
    check_crops("cpu", size)


def test_compiled():
    check_flips("cpu", ng.compile)
    check_crops("cpu", 3, ng.compile)


def test_a_replay_draws_anew():
    images = ng.asarray(np.random.default_rng(0).normal(size=(9, 6, 6, 2)))
    step = ng.compile(lambda x: ng.data.random_flip(ng.data.random_crop(x, 4)))
    assert (step(images).numpy() != step(images).numpy()).any()


def test_a_generator_of_its_own():
    images = ng.asarray(np.random.default_rng(0).normal(size=(9, 6, 6, 2)))
    one, other = (
        ng.data.random_crop(images, 3, generator=ng.random.Generator(5)) for _ in range(2)
    )
    np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_errors():
    images = ng.asarray(np.zeros((2, 4, 5, 1)))
    with pytest.raises(ShapeError, match=r"random_crop: images \(2, 4, 5, 1\) have no square of 5"):
        ng.data.random_crop(images, 5)
    with pytest.raises(ShapeError, match=r"random_flip: .* got shape \(2, 4\)"):
        ng.data.random_flip(images[..., 0, 0])
