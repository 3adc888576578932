"""What an op refuses, it refuses alike on both devices: the same error class and message."""

import numpy as np
import pytest

import numbagrad as ng


def assign_out_of_range(make):
    x = make(2, 3) * 1  # no leaf
    x[make(2, dtype="int64") * 2] = 0
    return x


# Each takes `make(*shape, dtype=...)`, which makes an array of ones on the device under test.
MISTAKES = {
    "broadcasting": lambda make: make(2, 3) + make(2, 4),
    "mixed dtypes": lambda make: ng.conv2d(make(1, 5, 5, 1), make(3, 3, 1, 1, dtype="float64")),
    "integers multiplied": lambda make: make(2, 3, dtype="int64") @ make(3, 2, dtype="int64"),
    "integers where floats are needed": lambda make: ng.exp(make(3, dtype="int32")),
    "unknown dtype": lambda make: make(3).astype("complex64"),
    "a number that does not fit": lambda make: make(3, dtype="int8") + 1000,
    "a condition that is no boolean": lambda make: ng.where(make(3), make(3), make(3)),
    "an axis out of range": lambda make: make(2, 3).sum(axis=2),
    "an axis named twice": lambda make: make(2, 3).sum(axis=(0, -2)),
    "a maximum of nothing": lambda make: make(0, 3).max(axis=0),
    "a mean of nothing": lambda make: make(0, 3).mean(),
    "reshape": lambda make: make(2, 3).reshape(4, 2),
    "permute_dims": lambda make: ng.permute_dims(make(2, 3), (0, 0)),
    "broadcast_to": lambda make: ng.broadcast_to(make(2, 3), (2, 4)),
    "matmul": lambda make: make(2, 3) @ make(2, 3),
    "linear": lambda make: ng.linear(make(2, 3), make(4, 5)),
    "conv2d's channels": lambda make: ng.conv2d(make(1, 5, 5, 2), make(3, 3, 3, 4)),
    "conv2d's extents": lambda make: ng.conv2d(make(1, 2, 2, 1), make(3, 3, 1, 1)),
    "max_pool2d": lambda make: ng.max_pool2d(make(1, 2, 2, 1), 3),
    "logits and labels": lambda make: ng.softmax_cross_entropy(make(2, 3), make(3, dtype="int64")),
    "a label out of range": lambda make: ng.softmax_cross_entropy(
        make(2, 3), make(2, dtype="int64") * 3
    ),
    "a negative label": lambda make: ng.softmax_cross_entropy(
        make(2, 3), make(2, dtype="int64") * -1
    ),
    "an index out of range": lambda make: ng.embedding(make(3, 2), make(2, dtype="int64") * 5),
    "a negative index": lambda make: ng.embedding(make(3, 2), make(2, 2, dtype="int8") * -1),
    "take": lambda make: ng.take(make(2, 3), make(2, dtype="int64") * 3, axis=1),
    "take from the end": lambda make: ng.take(make(2, 3), make(2, dtype="int32") * -4, axis=1),
    "take of nothing": lambda make: ng.take(make(0, 3), make(2, dtype="int64"), axis=0),
    "x[indices]": lambda make: make(2, 3)[make(2, dtype="int64") * 2],
    "x[indices, indices]": lambda make: make(2, 3)[
        make(2, dtype="int64"), make(2, dtype="int64") * 3
    ],
    "x[indices] = value": assign_out_of_range,
    "backward of many": lambda make: (make(3) * 2).backward(),
}


def refusal(mistake, device):
    def make(*shape, dtype="float32"):
        return ng.asarray(np.ones(shape, dtype), device=device, requires_grad=dtype == "float32")

    with pytest.raises(Exception) as caught:  # noqa: PT011  (which one is what is compared)
        mistake(make).numpy()  # an error that a kernel finds shows at the next read
    make(1).numpy()  # and no other follows from it
    return type(caught.value), str(caught.value)


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_same_error(mistake):
    error, message = refusal(mistake, "cuda")
    assert (error, message) == refusal(mistake, "cpu")
    assert error not in (AttributeError, AssertionError)
    assert message


def test_devices_do_not_mix():
    with pytest.raises(ng.errors.DeviceError, match=r"add: .*'cpu' and 'cuda'"):
        ng.asarray([1.0]) + ng.asarray([1.0], device="cuda")
