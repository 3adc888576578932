"""Random flips and crops on the GPU are the CPU's: the random numbers are the same."""

import numpy as np
from augmented import check_crops, check_flips


def test_flips():
    np.testing.assert_array_equal(check_flips("cuda"), check_flips("cpu"))


def test_crops():
    np.testing.assert_array_equal(check_crops("cuda", 3), check_crops("cpu", 3))
