"""`CompiledFunction.graph`: what the plan decided, as text and as a picture."""

from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

import numbagrad as ng
from numbagrad.compiler.draw import (
    LOCAL,
    PARTIAL,
    STATE,
    WHOLE,
    GraphNode,
    GraphRegion,
    GraphValue,
    StepGraph,
)
from numbagrad.errors import GraphError

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def graph():
    """Return the graph of a small training step."""
    ng.random.seed(0)
    model = ng.layers.Sequential(ng.layers.Linear(4, 3), ng.layers.ReLU(), ng.layers.Linear(3, 2))
    optimizer = ng.optim.SGD(list(model.parameters()), 0.1)

    @ng.compile
    def step(x, labels):
        optimizer.zero_grad()
        loss = ng.softmax_cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss

    with pytest.raises(GraphError, match="not been called"):
        step.graph  # noqa: B018
    rng = np.random.default_rng(0)
    step(ng.asarray(rng.normal(size=(8, 4)).astype(np.float32)), ng.asarray(np.arange(8) % 2))
    return step.graph


def test_values_live_where_the_plan_put_them(graph):
    made = {value.name: value.lives for node in graph.nodes for value in node.outputs}
    assert {LOCAL, PARTIAL, WHOLE, STATE} == set(made.values())
    for region in graph.regions:
        inside = {value.name for node in region.nodes for value in node.outputs}
        for node in region.nodes:
            for value in node.inputs:
                assert value.lives != LOCAL or value.name in inside
    partial = {name for name, lives in made.items() if lives == PARTIAL}
    combined = {
        value.name for node in graph.nodes if "combine" in node.does for value in node.inputs
    }
    assert partial == combined


def test_text_names_regions_nodes_and_what_becomes_of_them(graph):
    text = str(graph)
    assert text.startswith("step(x: float32[8,4], labels: int64[8]): ")
    for region in graph.regions:
        assert f"{region.function}: {region.walk}" in text
    assert "float32[8,3]" in text
    assert "-> returned" in text
    assert "-> model_0_weight.grad" in text
    assert repr(graph) == f"StepGraph(step: {text.splitlines()[0].partition('): ')[2]})"


def test_picture_is_xml_with_a_box_for_each_node(graph):
    root = ElementTree.fromstring(graph._repr_svg_())
    assert root.tag == f"{SVG}svg"
    boxes = [group for group in root.iter(f"{SVG}g") if group.find(f"{SVG}rect") is not None]
    assert len(boxes) == len(graph.nodes) + len(graph.arguments)
    words = {text.text for text in root.iter(f"{SVG}text")}
    assert {region.function for region in graph.regions} <= words
    height = float(root.get("height"))
    assert all(float(text.get("y")) < height for text in root.iter(f"{SVG}text"))


def test_rails_of_one_lane_do_not_overlap(graph):
    root = ElementTree.fromstring(graph._repr_svg_())
    ways: dict[str, list[tuple[float, float]]] = {}
    for group in root.iter(f"{SVG}g"):
        dots = group.findall(f"{SVG}circle")
        if dots:
            start = float(group.find(f"{SVG}path").get("d").split("H")[0].split(" ")[1])
            ways.setdefault(dots[0].get("cx"), []).append((start, float(dots[-1].get("cy"))))
    assert ways
    for stretches in ways.values():
        stretches.sort()
        for (_, end), (start, _) in pairwise(stretches):
            assert end < start


def test_names_are_escaped():
    value = GraphValue('<&"\x00', "float32[2]", WHOLE)
    node = GraphNode("a<b & c", (), (value,), (value,), "<returned>")
    graph = StepGraph("<lambda>", (value,), (GraphRegion("region_0", "in one piece", (node,)),))
    words = [text.text for text in ElementTree.fromstring(graph._repr_svg_()).iter(f"{SVG}text")]
    assert "a<b & c" in words
    assert "<lambda>: 1 region, 1 node" in words


def test_a_step_without_nodes():
    same = ng.compile(lambda x: x)
    same(ng.asarray([1.0]))
    assert str(same.graph) == "<lambda>(x: float32[1]): 0 regions, 0 nodes"
    ElementTree.fromstring(same.graph._repr_svg_())


def test_hundreds_of_nodes_are_drawn_in_little_space():
    values = [GraphValue(f"v{k}", "float32[2]", LOCAL) for k in range(501)]
    nodes = tuple(GraphNode("exp", (), (x,), (out,), "") for x, out in pairwise(values))
    graph = StepGraph("long", (values[0],), (GraphRegion("region_0", "in one piece", nodes),))
    text = graph._repr_svg_()
    assert len(text) < 2000 * len(nodes)
    assert float(ElementTree.fromstring(text).get("width")) < 1000  # a chain needs two lanes
