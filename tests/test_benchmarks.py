"""The benchmarks' own functions; nothing here looks at a clock's figures."""

import dataclasses
import doctest
import json

import numpy as np
import pytest

from benchmarks import measure, reasons, report, results, scaling, worker
from benchmarks.measure import QUICK, Contender, Race, Timing, race
from benchmarks.results import Mode, Report, Result, Target
from numbagrad import dispatch
from numbagrad.roofline import Roof


@pytest.mark.parametrize("module", [measure, reasons, report, results, scaling])
def test_examples(module):
    assert doctest.testmod(module).failed == 0


def contender(factor=1.0, error=None):
    def run(k):
        if error is not None:
            raise error
        return factor * np.arange(3.0) + k

    return Contender(lambda: run, lambda out: [out])


def expected(k):
    return [np.arange(3.0) + k]


def test_race_measures_all_and_notes_who_fails():
    ways = {
        "numbagrad": contender(),
        "other": contender(),
        "wrong": contender(1.01),
        "broken": contender(error=ValueError("no\nsecond line")),
    }
    outcome = race(ways, expected, 1e-4, QUICK, pause=0.0)
    assert set(outcome.timings) == {"numbagrad", "other"}
    assert all(timing.median > 0 for timing in outcome.timings.values())
    assert outcome.failures["wrong"].startswith("WrongResult: output 0 is off by")
    assert outcome.failures["broken"].startswith("ValueError: no (test_benchmarks.py:")


def test_not_a_number_is_wrong():
    with pytest.raises(measure.WrongResult):
        measure.require_close([np.array([np.nan])], [np.array([1.0])], 0.1)


@pytest.mark.parametrize(("turns", "rounds"), [(3, 41), (41, 41), (7, 9), (1, 5)])
def test_turns_are_spread_over_the_race(turns, rounds):
    due = [measure._is_due(number, turns, rounds) for number in range(rounds)]
    assert sum(due) == turns
    assert due[0]


def result(family, name, ours, *peers, part="", per=1, failures=None):
    timings = {"numbagrad": ours} | {f"peer {k}": t for k, t in enumerate(peers)}
    timings = {n: Timing(t, 0.1, 5, 1.0) for n, t in timings.items() if t is not None}
    return Result(family, name, part, per, Race(timings, failures or {}))


def test_ratio_is_to_the_best_peer():
    one = result("gemm", "16", 2.0, 6.0, 4.0, per=10)
    assert one.best_peer == ("peer 1", 0.4)
    assert one.ours == 0.2
    assert one.ratio == 2.0
    assert result("gemm", "16", None, 1.0).ratio is None
    assert result("gemm", "16", 1.0).ratio is None


def test_geometric_mean_of_something_missing():
    assert results.geometric_mean([]) is None
    assert results.geometric_mean([1.0, None]) is None


def some_report():
    mode = Mode(
        1,
        Roof(1e11, {65536: 4e10, 268435456: 1e10}),
        [
            result("gemm", "16", 1.0, 1.2),
            result("conv", "a", 1.0, 2.0, part=results.GRADIENTS),
            result("conv", "b", 1.0, 0.5, part=results.GRADIENTS),
            result("conv", "a", 1.0, 9.0, part=results.FORWARD),
            result("softmax", "c", 1.0, 1.6),
            result("dispatch", "64 floats, an op without gradient", 1e-6, 2e-6),
            result("steps", "lenet, batch 128", 2.0, 3.0),
            result("inference", "lenet, batch 1", 2.0, 3.0),
        ],
    )
    kernel = {"op": "conv2d", "shapes": "1 -> 2", "flops": 2e9, "moved": 1e8}
    mode.results[1].kernels.append(kernel | {"seconds": 0.04, "calls": 1})
    inference = mode.of("inference")[0].race.timings
    inference[results.COMPILED] = Timing(1.0, 0.1, 5, 1.0)
    described = {
        "cpu": "Some CPU", "architecture": "some", "cores": 1, "python": "3.12",
        "versions": dict.fromkeys(["torch", "jax", "numpy", "numba"], "1.0"),
    }  # fmt: skip
    processes = {
        "memory": [
            {
                "name": "mlp, batch 128",
                "peaks": {
                    "numbagrad": 100,
                    "numbagrad compiled": 60,
                    "PyTorch": 300,
                    "PyTorch channels_last": 80,
                },
                "held": 40,
            }
        ],
        "startup": {"numbagrad, full cache": 1.0, "PyTorch": 2.0},
        "training": {"accuracy": 99.1, "seconds": 30.0, "threads": 2},
        "loading": [
            {"library": "numbagrad", "workers": 1, "images_per_second": 5.0, "waiting": 0.1}
        ],
    }
    return Report(described, "2026-11-22", 7, [mode], processes)


def test_fraction_of_the_roof():
    (kernel,) = some_report().modes[0].kernels
    assert kernel["fraction"] == pytest.approx(0.5)  # 20 ms of arithmetic, 10 ms of memory


def test_targets():
    found = {target.name: target for target in results.targets(some_report().modes[0])}
    assert found["matrix products, mean"].passed
    assert found["convolutions with gradients, mean"].value == pytest.approx(1.0)
    assert found["convolutions with gradients, mean"].passed is False
    assert found["convolutions with gradients, worst shape"].value == 0.5
    assert found["training step, lenet, batch 128"].passed
    assert found["training step, mlp, batch 128"].passed is None
    assert found["compiled inference, lenet, batch 1"].value == 3.0
    assert found["an op without gradient, 64 floats, us"].passed
    assert Target("x", 1.0, 1.0, at_most=True).passed


def test_targets_of_processes():
    processes = some_report().processes
    found = {target.name: target for target in results.process_targets(processes)}
    assert found["peak memory, mlp, batch 128"].value == pytest.approx(1.25)
    assert not found["peak memory, mlp, batch 128"].passed
    assert found["activations of a compiled step, mlp, batch 128"].value == pytest.approx(0.5)
    assert not found["activations of a compiled step, mlp, batch 128"].passed
    assert found["first step, s: numbagrad, full cache"].passed
    assert found["LeNet on MNIST, accuracy in %"].passed
    assert not found["LeNet on MNIST, whole process, s"].passed
    without = results.process_targets(processes | {"training": None})
    assert without[-1].passed is None
    assert results.process_targets({}) == []


def test_slow_kernels_have_a_reason_or_are_named(capsys):
    found = some_report()
    (mode,) = found.modes
    step = mode.of("steps")[0]
    full = {"shapes": "8 -> 8", "flops": 0.0, "moved": 1e8, "calls": 1}  # 10 ms at the roof
    step.kernels += [
        full | {"op": "adam_update", "seconds": 0.05},
        full | {"op": "unheard_of", "seconds": 0.05},
        full | {"op": "fast", "seconds": 0.015},
        full | {"op": "rare", "seconds": 0.003, "moved": 1e6},
        full | {"op": "short", "seconds": 1.01e-6, "moved": 1e3, "calls": 100_000},
    ]
    why = {kernel["op"]: kernel["why"] for kernel in mode.slow_kernels}
    assert set(why) == {"adam_update", "unheard_of", "short"}
    assert why["adam_update"] == reasons.REASONS["adam_update"]
    assert why["short"].startswith("It is short: 1.0 us")
    assert why["unheard_of"] is None
    report.show(found, report.Console(width=200))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "no reason" in line]
    assert "unheard_of 8 -> 8: 20% of the roof" in line


def test_every_reason_is_for_an_op():
    assert set(reasons.REASONS) <= set(dispatch.registry)


def test_report_survives_its_file(tmp_path):
    path = tmp_path / "new" / "machine.json"
    before = some_report()
    before.save(path)
    assert Report.load(path) == before
    assert [each.name for each in path.parent.iterdir()] == ["machine.json"]


def test_wrong_or_missing_results_fail_the_run():
    mode = some_report().modes[0]
    assert not mode.is_wrong
    mode.results.append(result("gemm", "d", 1.0, 1.0, failures={"peer 1": "RuntimeError: no"}))
    assert not mode.is_wrong
    assert mode.failures == ["gemm: d: peer 1: RuntimeError: no"]
    mode.results[-1].race.failures["peer 1"] = "WrongResult: off"
    assert mode.is_wrong
    mode.results[-1] = result("gemm", "d", None, 1.0)
    assert mode.is_wrong
    mode.results[-1] = result("gemm", "d", 1.0, 1.0, failures={results.COMPILED: "TypeError: no"})
    assert mode.is_wrong


def test_readme_block():
    text = report.readme_block(some_report(), "docs/roofline.png")
    assert "Some CPU (some), 1 core, 2026-11-22" in text
    assert "| convolutions with both gradients (2) | 1.00 (0.50) |" in text
    assert "| lenet, batch 128 | 1.50, **-**: 2.00 s, -; peer 0 3.00 s |" in text
    assert "mlp, batch 128 1.25" in text
    assert "mlp, batch 128 0.50" in text
    assert "| lenet, batch 1 | 1.50, **3.00**: 2.00 s, 1.00 s; peer 0 3.00 s |" in text
    assert "99.10 % of the test images right after 30.0 s on 2 threads" in text
    without = some_report()
    without.processes["training"] = None
    assert "not measured: no MNIST" in report.readme_block(without, "docs/roofline.png")
    new = report.replace_marked("a <!-- benchmark -->x<!-- /benchmark --> b", text)
    assert report.replace_marked(new, text) == new
    with pytest.raises(ValueError, match="once each"):
        report.replace_marked("<!-- /benchmark --><!-- benchmark -->", text)


def test_readme_has_the_markers():
    text = (report.Path(__file__).parent.parent / "README.md").read_text()
    assert report.replace_marked(text, "new") != text


def test_picture_is_drawn(tmp_path):
    report.draw_roofline(some_report(), tmp_path / "docs" / "roofline.png")
    assert (tmp_path / "docs" / "roofline.png").read_bytes().startswith(b"\x89PNG")


def test_a_workers_file_tells_what_killed_it(tmp_path):
    path = tmp_path / "results.jsonl"
    assert worker.read(path).roofs == []
    first, second = ({"peak": p, "bandwidth": {"1": b}} for p, b in ((3.0, 4.0), (2.0, 5.0)))
    lines = [{"roof": first}, {"started": "a"}, {"key": "a", "result": {}}, {"started": "b"}]
    lines += [{"roof": second}, {"started": "c"}, {"key": "c", "result": {}}]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"star')
    progress = worker.read(path)
    assert progress.started == ["a", "b", "c"]
    assert len(progress.results) == 2
    assert progress.fatal == ["b"]
    assert progress.roof == Roof(3.0, {1: 5.0})


def scaling_report():
    """Return a run in which ours gains more from threads, and a peer failed at one size."""
    modes = []
    for threads in (1, 2):
        found = []
        points = [(scaling.over_batch(name), scaling.BATCHES) for name in scaling.NETWORKS]
        points += [(part, scaling.DEPTHS) for part in scaling.DEEP]
        points.append((scaling.INFERENCE, (1,)))
        for part, sizes in points:
            for size in sizes:
                one = result(scaling.FAMILY, str(size), None, 3e-3 * size, part=part)
                one.race.timings[results.COMPILED] = Timing(1e-3 * size / threads, 0.1, 5, 1.0)
                found.append(one)
        modes.append(Mode(threads, Roof(1e11, {65536: 4e10}), found))
    del modes[0].results[0].race.timings["peer 0"]
    return dataclasses.replace(some_report(), modes=modes)


def test_scaling_ratios():
    one, two = scaling_report().modes
    sizes, found = scaling.ratios(one, scaling.over_batch("lenet"))
    assert sizes == list(scaling.BATCHES[1:])  # no peer to compare with at the first
    np.testing.assert_allclose(found, 3)
    np.testing.assert_allclose(scaling.ratios(two, "ConvNet over depth")[1], 6)


@pytest.mark.parametrize("modes", [1, 2])
def test_scaling_is_drawn(tmp_path, modes):
    found = scaling_report()
    del found.modes[modes:]
    scaling.draw(found, tmp_path / "new" / "scaling.png")
    assert (tmp_path / "new" / "scaling.png").read_bytes().startswith(b"\x89PNG")
    scaling.show(found)
