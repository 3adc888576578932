"""Ops that move elements."""

from __future__ import annotations

import numpy as np

import numbagrad as ng
from numbagrad.testing import Case

rng = np.random.default_rng(3)

EMPTY = np.zeros((2, 0, 3))


def array(*shape: int) -> np.ndarray:
    return rng.normal(size=shape)


CASES = [
    Case("reshape", lambda x: x.reshape(3, -1), (array(2, 3),), lambda x: x.reshape(3, -1)),
    Case("flatten", lambda x: x.flatten(1), (array(2, 1, 3),), lambda x: x.reshape(2, 3)),
    Case("flatten 0-d", lambda x: x.flatten(), (array(),), lambda x: x.reshape(1)),
    Case("squeeze", lambda x: x.squeeze(-1), (array(1, 3, 1),), lambda x: x.squeeze(-1)),
    Case("squeeze all", lambda x: x.squeeze(), (array(1, 3, 1),), np.squeeze),
    Case("expand_dims", lambda x: ng.expand_dims(x, -1), (array(3),), lambda x: x[:, None]),
    Case(
        "permute_dims",
        lambda x: ng.permute_dims(x, (2, 0, 1)),
        (array(2, 3, 4),),
        lambda x: x.transpose(2, 0, 1),
        ops=("permute_dims",),
    ),
    Case("permute_dims 0-d", lambda x: ng.permute_dims(x, ()), (array(),), np.transpose),
    Case(
        "permute_dims zero-size",
        lambda x: ng.permute_dims(x, (1, 0, 2)),
        (EMPTY,),
        lambda x: x.transpose(1, 0, 2),
    ),
    Case(
        "flip",
        lambda x: ng.flip(x, (0, -1)),
        (array(2, 3, 2),),
        lambda x: np.flip(x, (0, -1)),
        ops=("slice", "set_slice"),
    ),
    Case("flip bool", ng.flip, (np.array([True, False, False]),), np.flip, grad=False),
    Case("flip zero-size", ng.flip, (EMPTY,), np.flip),
    Case(
        "pad",
        lambda x: ng.pad(x, ((1, 0), (0, 2)), value=3.0),
        (array(2, 3),),
        lambda x: np.pad(x, ((1, 0), (0, 2)), constant_values=3.0),
        ops=("set_slice",),
    ),
    Case("pad zero-size", lambda x: ng.pad(x, 1), (EMPTY,), lambda x: np.pad(x, 1)),
    Case(
        "split",
        lambda x: ng.split(x, [2, 3])[0] * ng.split(x, 2)[1],
        (array(4, 3),),
        lambda x: x[:2] * x[2:],
        ops=("rows",),
    ),
    Case(
        "concat",
        lambda x, y, z: ng.concat([x, y, z, x], axis=1),
        (array(2, 1, 3), array(2, 2, 3), array(2, 0, 3)),
        lambda x, y, z: np.concatenate([x, y, z, x], axis=1),
        ops=("concat",),
    ),
    Case(
        "concat flattened",
        lambda x, y: ng.concat([x, y], axis=None),
        (array(2, 2), array(3)),
        lambda x, y: np.concatenate([x, y], axis=None),
    ),
    Case("concat of one", lambda x: ng.concat([x]), (array(2),), lambda x: x),
    Case(
        "stack",
        lambda x, y: ng.stack([x, y], axis=-1),
        (array(2, 3), array(2, 3)),
        lambda x, y: np.stack([x, y], axis=-1),
    ),
    Case(
        "stack 0-d",
        lambda x, y: ng.stack([x, y]),
        (array(), array()),
        lambda x, y: np.stack([x, y]),
    ),
]
