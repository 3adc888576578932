"""The CIFAR-10 speed run on a few tiny images of noise, for the tests of each device."""

import json

from benchmarks import cifar10_speedrun


def check(device, tmp_path):
    out = tmp_path / "speedrun.json"
    cifar10_speedrun.main(device=device, out=out, rehearse=True)
    found = json.loads(out.read_text())
    assert found["device"] == device
    assert len(found["epochs"]) == found["settings"]["epochs"] == 2
    assert found["epochs"][1]["loss"] < 2.5  # ln 10 is 2.3
    assert found["seconds_to_target"] is None
    assert not found["cut_off"]
    return found
