"""The plan for a device whose kernels run one after the other: its memory, without a device."""

from itertools import combinations

import numpy as np
import pytest

import numbagrad as ng
from numbagrad.array import size_of
from numbagrad.compiler import trace
from numbagrad.compiler.fuse import Fused
from numbagrad.compiler.plan import make_device_plan
from numbagrad.compiler.simplify import simplify

L = ng.layers


@pytest.fixture(scope="module")
def plan():
    """Return the plan of a training step."""
    model = L.Sequential(
        L.Conv2d(1, 4, 3, padding=1), L.BatchNorm2d(4), L.GELU(), L.ReLU(), L.MaxPool2d(2),
        L.Flatten(), L.Dropout(0.3), L.Linear(16, 3),
    )  # fmt: skip
    optimizer = ng.optim.Adam(model.parameters())

    def step(images, labels):
        optimizer.zero_grad()
        logits = model(images)
        loss = ng.softmax_cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        return loss, logits

    images = ng.asarray(np.zeros((6, 4, 4, 1), np.float32))
    traced = trace(step, images, ng.asarray(np.zeros(6, np.int64)))
    return make_device_plan(traced, simplify(traced)[0])


def test_what_is_in_use_does_not_overlap(plan):
    (region,) = plan.regions
    stretches = []  # (first byte, end, the node that makes it, the last that reads it)
    for at, node in enumerate(region.nodes):
        for output in node.outputs:
            if output in plan.places:
                readers = [k for k, other in enumerate(region.nodes)
                           if output in [ref.buffer for ref in other.inputs]]  # fmt: skip
                start = plan.places[output]
                stretches.append((start, start + output.nbytes, at, max([at, *readers])))
        for start, (shape, dtype) in zip(
            region.workspace.get(node, ()), node.workspace, strict=True
        ):
            stretches.append((start, start + size_of(shape) * dtype.itemsize, at, at))
    assert len(stretches) > len(plan.places) > 10
    for (low, end, made, read), (other_low, other_end, other_made, other_read) in combinations(
        stretches, 2
    ):
        together = made <= other_read and other_made <= read
        # An elementwise loop may write in the place of what it reads last.
        in_place = low == other_low and (made == other_read or other_made == read)
        assert not together or in_place or end <= other_low or other_end <= low
    assert max(end for _, end, _, _ in stretches) <= plan.arena_bytes


def test_each_value_has_a_place(plan):
    made = [output for node in plan.nodes for output in node.outputs if output.source == "value"]
    assert set(made) == {*plan.places, *plan.kept}
    assert not set(plan.places).intersection(plan.kept)


def test_neighbours_are_fused(plan):
    fused = [[m.name for m in node.members] for node in plan.nodes if isinstance(node, Fused)]
    assert ["add", "gelu"] in [names[-2:] for names in fused]  # of the batch norm, and after it
