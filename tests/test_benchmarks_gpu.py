"""What is made of a run on a GPU: figures, tables, files. Nothing here needs one."""

import doctest
import json

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import bench, report, results
from benchmarks.gpu.results import COPY, GpuReport, figures, fractions
from benchmarks.measure import Race, Timing
from benchmarks.results import COMPILED, FORWARD, OURS, Result


def result(family, name, part="", failures=None, **seconds):
    names = {
        "ours": OURS, "compiled": COMPILED, "tf32": results.TF32, "torch": results.TORCH,
        "last": results.CHANNELS_LAST, "torch_tf32": results.TORCH_TF32, "graph": results.GRAPH,
        "cupy": results.CUPY,
    }  # fmt: skip
    timings = {names[key]: Timing(value, 0.1, 5, 1.0) for key, value in seconds.items()}
    return Result(family, name, part, 1, Race(timings, failures or {}))


def some_report():
    machine = {
        "device": "NVIDIA H100", "driver": "580.1", "cuda": "13.0", "cudnn": 91000,
        "python": "3.12", "versions": {"torch": "2.11", "cupy-cuda13x": "14.2", "numba": "0.68"},
    }  # fmt: skip
    floats = "1,000,000 floats"
    found = [
        result("gemm", "4096 x 4096 x 4096", ours=4e-3, tf32=1e-3, torch=3e-3, cupy=2e-3,
               torch_tf32=5e-4),
        result("conv", "a", FORWARD, ours=1.0, torch=2.0, last=0.5),
        result("conv", "a", results.BY_INPUT, ours=1.0, torch=2.0, last=3.0),
        result("steps", "lenet, batch 128", compiled=1e-3, ours=9e-3, torch=4e-3, last=5e-3,
               graph=1e-3),
        result("steps", "convnet6, batch 512", compiled=2.0, torch=2.2),
        result("bandwidth", COPY, floats, ours=5e-6, torch=4e-6),
        result("bandwidth", "relu", floats, ours=8e-6, torch=1e-6),
        result("bandwidth", "chain tanh(x y + x) exp(-y y)", floats, compiled=6e-6),
        result("launch", "64 floats, an op without gradient", ours=12e-6, torch=5e-6),
    ]  # fmt: skip
    trained = {
        "seconds_to_target": 30.0, "accuracy": 94.1, "seconds": 32.0, "data": "some images",
        "settings": {"precision": "high"},
    }  # fmt: skip
    return GpuReport(machine, "2026-11-24", 7, found, speedrun=trained)


def test_figures():
    values = [figure.value for figure in figures(some_report())]
    assert values == pytest.approx([0.5, 0.5, 1.0, (0.5 * 1.0) ** 0.5, 4, 1, 1.1, 30, 12])
    passed = [figure.passed for figure in figures(some_report())]
    assert passed == [False, True, True, False, True, True, True, True, True]


def test_bandwidth_is_a_share_of_the_fastest_copy():
    found = some_report()
    assert found.copy_bandwidth == pytest.approx(8e6 / 4e-6)
    assert dict(fractions(found)) == pytest.approx(
        {"relu": 0.5, "chain tanh(x y + x) exp(-y y)": 1.0}
    )


def test_nothing_measured():
    for found in (GpuReport(), GpuReport({"device": results.SIMULATOR}, results=[])):
        assert {figure.value for figure in figures(found)} == {None}
        assert {figure.passed for figure in figures(found)} == {None}
    block = report.readme_block(GpuReport())
    assert block.count("not measured") == len(figures(GpuReport()))
    assert "No GPU was at hand" in block


def test_a_case_that_failed_leaves_its_figure_out():
    found = some_report()
    del found.results[1].race.timings[OURS]
    assert figures(found)[2].value is None
    assert not found.is_wrong
    found.results[1].race.failures[OURS] = "DeviceError: no"
    assert found.is_wrong
    assert found.failures == ["conv: a: forward: numbagrad: DeviceError: no"]


def test_readme_block():
    found = some_report()
    block = report.readme_block(found)
    assert "| | NVIDIA H100 | target on an H100 | stretch |" in block
    assert "true float32, against cuBLAS | 0.5 | 0.8 | 0.95 |" in block
    assert "| CIFAR-10 speed run to 94 % | 30 s | at most 60 s | 20 s |" in block
    assert "PyTorch 2.11, CuPy 14.2, Numba 0.68" in block
    assert "trained on some images, in tf32, and ended at 94.10 % after 32.0 s." in block
    found.speedrun["peer"] = {"accuracy": 93.9, "seconds": 40.0}
    assert "after 32.0 s; PyTorch at 93.90 % after 40.0 s." in report.readme_block(found)


def test_readme_shows_what_is_stored():
    text = command.README.read_text()
    assert report.publish(command.stored(), text) == text


def test_report_survives_its_file(tmp_path):
    path = tmp_path / results.file_name(some_report().machine)
    some_report().save(path)
    assert GpuReport.load(path) == some_report()
    assert command.load(path) == command.load(tmp_path) == some_report()


def test_a_file_tells_what_took_its_process_down(tmp_path):
    path = tmp_path / "bench.jsonl"
    one = {"family": "gemm", "name": "a", "part": "", "per": 1,
           "race": {"timings": {}, "failures": {}}}  # fmt: skip
    lines = [{"machine": {"device": "x"}, "date": "2026-11-24", "seed": 1}, {"started": "gemm: a"},
             {"key": "gemm: a", "result": one}, {"started": "gemm: b"}]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"key')
    found, started = bench.read(path)
    assert started == {"gemm: a", "gemm: b"}
    assert found.fatal == ["gemm: b"]
    assert found.is_wrong
    assert [each.name for each in found.results] == ["a"]
    assert command.load(path) == found
    assert bench.read(tmp_path / "none") == (GpuReport(), set())


def test_parts_fit_ten_minutes():
    assert sum(part.least for part in command.PARTS.values()) <= command.TEN_MINUTES
    # However long the parts before took, each gets what it needs at least.
    end = command.TEN_MINUTES
    for number, part in enumerate(command.PARTS.values()):
        later = sum(each.least for each in list(command.PARTS.values())[number + 1 :])
        end -= command.limit(part, command.TEN_MINUTES, end, later)
    assert end >= 0
    soak = command.PARTS["soak"]
    assert command.limit(soak, 5700, 5000, 0) == 10 * soak.most


def test_examples():
    assert doctest.testmod(results).failed == 0


def test_unknown_part(tmp_path):
    with pytest.raises(command.typer.BadParameter, match="known are smoke"):
        command.main(only=["nothing"], out=tmp_path)


def a_run(tmp_path):
    return command.Run(tmp_path, rehearse=False, workers=1, soak_seconds=1, peer=False)


def test_output_goes_to_the_log_too(tmp_path, capsys):
    run = a_run(tmp_path)
    assert run.command("-c", "import sys; print('said'); sys.exit(5)", seconds=60) == 5
    assert capsys.readouterr().out == "said\n"
    assert (tmp_path / "log.txt").read_text() == "said\n"


def test_what_takes_too_long_may_say_how_far_it_came(tmp_path):
    program = "\n".join([
        "import time, subprocess, sys",
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])",
        "print('begun')",
        "try:",
        "    time.sleep(100)",
        "except KeyboardInterrupt:",
        "    print('so far')",
    ])  # fmt: skip
    assert a_run(tmp_path).command("-c", program, seconds=3) is None
    assert (tmp_path / "log.txt").read_text().split("\n")[0] == "begun"
    assert "so far" in (tmp_path / "log.txt").read_text()


def test_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(command.typer.Exit) as caught:
        command.main(out=tmp_path)
    assert caught.value.exit_code == 2
    assert "no GPU: device 'cuda' cannot be used" in (tmp_path / "log.txt").read_text()
