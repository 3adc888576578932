"""What is seen inside a network."""

import re
import xml.etree.ElementTree

import numpy as np
import pytest

import numbagrad as ng
from numbagrad.errors import DataError, ShapeError


@pytest.fixture(scope="module")
def model():
    ng.random.seed(0)
    return ng.models.resnet8(in_channels=1, image_size=8)


@pytest.fixture(scope="module")
def images():
    return ng.data.digits()[1].images[:3]


def test_filters_are_those_of_every_convolution(model):
    filters = ng.inspect.filters(model)
    assert list(filters)[:3] == ["0", "3.conv1", "3.conv2"]
    weight = model[0].weight.numpy()
    np.testing.assert_array_equal(filters["0"][5], weight[..., 5])


def test_feature_maps_are_what_the_layers_give(model, images):
    model.train()
    maps = ng.inspect.feature_maps(model, images)
    assert model.training
    assert list(maps)[:4] == ["0", "1", "2", "3.conv1"]
    with model.evaluating():
        outputs = model(ng.asarray(images)).numpy()
        first = model[0](ng.asarray(images)).numpy()
    np.testing.assert_array_equal(maps["7"], outputs)
    np.testing.assert_array_equal(maps["0"], first)


def test_saliency_is_the_slope_of_the_class(model, images):
    model.train()
    classes = np.array([3, 0, 9])
    heat = ng.inspect.saliency(model, images, classes)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    with model.evaluating():
        for i, (row, column) in enumerate([(2, 3), (4, 4), (0, 7)]):
            step = np.zeros_like(images[:1])
            step[0, row, column] = 1e-2
            above, below = (
                model(ng.asarray(images[i : i + 1] + sign * step)).numpy()[0, classes[i]]
                for sign in (1, -1)
            )
            slope = abs(above - below) / 2e-2
            assert heat[i, row, column] == pytest.approx(slope, rel=0.1, abs=2e-3)


def test_saliency_chooses_the_model_s_class(model, images):
    chosen = ng.train.predict(model, images)
    np.testing.assert_array_equal(
        ng.inspect.saliency(model, images), ng.inspect.saliency(model, images, chosen)
    )


def test_saliency_says_what_would_fit(model, images):
    with pytest.raises(ShapeError, match=r"images must be \(n, h, w, c\)"):
        ng.inspect.saliency(model, images[0])
    with pytest.raises(DataError, match="3 whole numbers, one for each image, from 0 to 9"):
        ng.inspect.saliency(model, images, [1, 2, 10])
    with pytest.raises(DataError, match="whole numbers"):
        ng.inspect.saliency(model, images, [1, 2])


# -------------------------------------------------------------------- graph


def links(graph, place):
    """Return the edges between the things inside a module, by name."""
    outer = graph.root
    for position in place:
        outer = outer.inside[position]

    def lifted(node):
        while node is not None and node._outer is not outer:
            node = node._outer
        return "input" if node is None else node.name or node.does

    inner = {(lifted(a), lifted(b)) for a, b in graph.edges}
    return {(a, b) for a, b in inner if a != b and b != "input"}


def test_graph_knows_what_passes_from_where_to_where(model):
    graph = ng.inspect.graph(model, (8, 8, 1))
    names = [str(number) for number in range(8)]
    assert links(graph, []) == set(zip(["input", *names], names, strict=False))
    assert links(graph, [4]) == {
        ("input", "4.conv1"), ("4.conv1", "4.norm1"), ("4.norm1", "4.relu"), ("4.relu", "4.conv2"),
        ("4.conv2", "4.norm2"), ("4.norm2", "add"), ("input", "4.shortcut"), ("4.shortcut", "add"),
        ("add", "4.relu"),
    }  # fmt: skip
    block = graph.root.inside[3]
    assert [node.name or node.does for node in block.inside][-2:] == ["add", "3.relu"]
    assert block.opens
    assert block.parameters == 2 * (9 * 16 * 16 + 32)
    assert block.inside[0].ops[-1] in ("conv2d", "winograd", "planar")


def test_graph_shows_layers_that_do_nothing():
    model = ng.layers.Sequential(
        ng.layers.Dropout(), ng.layers.Flatten(), ng.layers.Linear(4, 2), ng.layers.Dropout()
    )
    graph = ng.inspect.graph(model, (2, 2))
    assert links(graph, []) == {("input", "0"), ("0", "1"), ("1", "2"), ("2", "3")}
    assert graph.root.inside[3].shape == (1, 2)


def test_graph_opens_module_by_module(model):
    page = ng.inspect.graph(model, (8, 8, 1))._repr_html_()
    assert page.count("<details") == page.count("</details>") == 1 + 3 + 2
    assert page.count(" open>") == 1
    for svg in re.findall("<svg.*?</svg>", page):
        xml.etree.ElementTree.fromstring(svg)
