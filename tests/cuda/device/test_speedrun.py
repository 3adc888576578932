"""The CIFAR-10 speed run, all augmentation in the compiled step."""

from speedrun import check


def test_rehearsal(tmp_path):
    check("cuda", tmp_path)
