"""What a compiled step says of its time and memory."""

import numpy as np
import pytest

import numbagrad as ng
from numbagrad.compiler.report import Line, StepReport
from numbagrad.dispatch import workspace_of
from numbagrad.roofline import Roof

L = ng.layers


def test_report():
    @ng.compile
    def run(x, weight):
        return ng.relu(x @ weight).sum()

    run(ng.asarray(np.ones((8, 3), np.float32)), ng.asarray(np.ones((3, 2), np.float32)))
    report = run.report()
    assert [line.does for line in report.lines] == ["matmul_relu, sum", "combine"]
    assert report.lines[0].flops == 2 * 8 * 3 * 2
    assert "region_0" in str(report)
    assert "of the roof" in str(report).splitlines()[-1]


def test_report_of_memory():
    run = ng.compile(lambda x, weight: ng.exp(x @ weight) - (x @ weight).mean(axis=0), chunk=2)
    x, weight = (ng.asarray(np.ones(shape, np.float32)) for shape in ((60, 48), (48, 32)))
    run(x, weight)
    report = run.report()
    # The product, its exponential, its mean and what its kernel works on, all of it; not the
    # result, which the caller gets.
    (product,) = [node for node in run._compiled().plan.nodes if node.name == "matmul"]
    room = [
        np.dtype(dtype).itemsize * int(np.prod(shape))
        for shape, dtype in workspace_of(product.op, product.call)
    ]
    assert report.unplanned == 4 * (2 * 60 * 32 + 32) + sum(room)
    scratch = max(line.scratch for line in report.lines)
    assert report.planned == report.between + report.threads * scratch
    assert report.threads == ng.get_num_threads()
    assert report.between == run._compiled().plan.arena_bytes


def test_report_fits_a_page():
    line = Line("region_0", ", ".join(["softmax_cross_entropy"] * 12), 2, 3, 1e-3, 1e9, 1e9, 0, 0.0)
    text = str(StepReport("step", (line, line), 0, 0, 0))
    assert max(map(len, text.splitlines())) <= 150
    assert text.count("softmax_cross_entropy") == 24


def test_report_counts_what_is_fused():
    x = ng.asarray(np.ones((8, 3), np.float32))
    run = ng.compile(lambda x: ng.tanh(x * 2.0) + x)
    run(x)
    (line,) = run.report().lines
    assert line.does == "fused_multiply_tanh_add"
    assert line.flops == 3 * x.size
    assert line.moved == 2 * 4 * x.size + 4  # x once, the factor, the result


def test_report_holds_regions_to_the_roof(monkeypatch):
    # Slow enough that the clock does not matter: 1,000 operations a second, or 100 bytes.
    asked = []

    def roof(threads):
        asked.append(threads)
        return Roof(1000.0 * threads, {1 << 10: 1e9, 1 << 30: 100.0})

    monkeypatch.setattr("numbagrad.roofline.roof", roof)
    run = ng.compile(lambda x, weight: ng.relu(x @ weight).sum(), chunk=2)
    x, weight = (ng.asarray(np.ones(shape, np.float32)) for shape in ((8, 30), (30, 20)))
    run(x, weight)
    products, combine = run.report().lines
    assert asked == [min(products.shards, ng.get_num_threads()), 1]
    passed = 4 * (8 * 30 + 30 * 20 + 1)  # the matrices, and the sum
    assert products.least == pytest.approx(max(products.flops / asked[0] / 1000, passed / 100))
    assert products.fraction == products.least / products.seconds
    assert combine.least < 1e-6
