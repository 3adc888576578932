"""The page about a run: what is in it, and how a browser shows it."""

import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from typer.testing import CliRunner

from numbagrad import charts, cli
from numbagrad.roofline import Roof

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def run(*arguments):
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "a & b"
    run("train", "lenet", "--epochs", 2, "--batch-size", 128, "--lr", 0.01, "--out", folder)
    before = {path.name for path in folder.iterdir()}
    run("report", folder)
    assert {path.name for path in folder.iterdir()} == before | {"report.html"}
    return folder / "report.html"


class Reader(HTMLParser):
    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.addresses += [v for name, v in attributes if name in ("src", "href", "xlink:href")]
        assert tag not in ("script", "link", "iframe")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass  # as SVG has them

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_is_whole_and_asks_for_nothing(page):
    text = page.read_text()
    reader = Reader(text)
    assert reader.open == []
    assert len(reader.addresses) > 30
    assert all(address.startswith("data:image/png;base64,") for address in reader.addresses)
    assert not re.search(r"url\(|@import", text)
    words = " ".join(reader.words)
    for part in ("lenet on digits", "a & b", "The worst mistakes", "Filters of the first",
                 "Which pixels matter", "region_1", "of roof", "CPU",
                 "batch_size = 128"):  # fmt: skip
        assert part in words, part


def test_a_network_without_convolutions_has_a_page(tmp_path):
    run("train", "mlp", "--epochs", 1, "--batch-size", 256, "--out", tmp_path / "run")
    run("report", tmp_path / "run", "--out", tmp_path / "page.html", "--best")
    assert "no convolution" in (tmp_path / "page.html").read_text()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_page(page, tmp_path, scheme):
    from PIL import Image

    picture = tmp_path / "page.png"
    process = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1120,2000",
            f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
            "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr",
            f"--screenshot={picture}", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    assert picture.exists(), process.stderr
    assert "CONSOLE" not in process.stderr  # what a page's errors are logged as
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    paper = {"light": (255, 255, 255), "dark": (13, 17, 23)}[scheme]
    assert tuple(pixels[5, 5]) == paper
    drawn = (pixels != paper).any(2)
    assert 0.05 < drawn.mean() < 0.5
    assert drawn[:, -10:].sum() == 0  # nothing runs over the edge
    curve = {"light": (9, 105, 218), "dark": (88, 166, 255)}[scheme]
    assert (pixels == curve).all(2).sum() > 300


def test_curves_of_little():
    nothing = {"train": [(1, float("nan"))], "test": []}
    assert charts.curves("loss", nothing) == ""
    for values in ([0.5], [0.0, 0.0], [1.0, float("nan"), 3.0]):
        drawn = charts.curves("loss", {"train": list(enumerate(values, 1))}, is_log=True)
        assert drawn.startswith("<svg")
        assert "nan" not in drawn


def test_roofline_of_little():
    roof = Roof(1e11, {1 << 16: 5e10, 1 << 27: 1e10})
    assert charts.roofline([charts.Work("copy", 0.0, 10.0, 1.0)], roof) == ""
    drawn = charts.roofline([charts.Work("a<b", 1e9, 1e8, 0.1)], roof)
    assert "a&lt;b: 10.0 GFLOP/s, 100% of the time" in drawn
