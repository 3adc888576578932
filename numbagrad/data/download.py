"""Get the files of public data sets: once, from one of several servers, checked.

A file is loaded into one that ends in ``.part``, and gets its name when its content is known to be
right. So what has a name is whole, and a download that stopped goes on where it was.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import os
import shutil
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import DataError

FOLDER, OFFLINE = "NUMBAGRAD_DATA", "NUMBAGRAD_OFFLINE"
TIMEOUT = 30  # seconds without a byte
TRIES = 3  # of each server, as long as something comes
_PIECE = 1 << 18  # bytes

_MNIST = (
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    "https://storage.googleapis.com/cvdf-datasets/mnist",
)
_FASHION = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
)
_CIFAR = (
    "https://www.cs.toronto.edu/~kriz",
    "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10",
)


@dataclass(frozen=True)
class Source:
    """A file, and where it can be had.

    Attributes
    ----------
    name
        Of the file.
    servers
        The addresses of the folders that hold it, the first one to ask first.
    size, sha256
        Of its content; of a ``.gz`` of what it unpacks to, since servers pack in their own ways.
    """

    name: str
    servers: tuple[str, ...]
    size: int
    sha256: str


# The sums of the IDX files are those of the published files, unpacked. CIFAR-10's archive has the
# MD5 sum that its page tells, c32a1d4ab5d03f1284b67883e8d87530.
SOURCES = {
    "mnist": (
        Source("train-images-idx3-ubyte.gz", _MNIST, 47_040_016,
               "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        Source("train-labels-idx1-ubyte.gz", _MNIST, 60_008,
               "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
        Source("t10k-images-idx3-ubyte.gz", _MNIST, 7_840_016,
               "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        Source("t10k-labels-idx1-ubyte.gz", _MNIST, 10_008,
               "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    ),
    "fashion-mnist": (
        Source("train-images-idx3-ubyte.gz", _FASHION, 47_040_016,
               "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
        Source("train-labels-idx1-ubyte.gz", _FASHION, 60_008,
               "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
        Source("t10k-images-idx3-ubyte.gz", _FASHION, 7_840_016,
               "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
        Source("t10k-labels-idx1-ubyte.gz", _FASHION, 10_008,
               "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
    ),
    "cifar10": (
        Source("cifar-10-binary.tar.gz", _CIFAR, 170_052_171,
               "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
    ),
}  # fmt: skip


# -------------------------------------------------------------------- where


def find(
    name: str,
    root: str | os.PathLike | None,
    missing: Callable[[Path], list[str]],
    help_text: str,
) -> Path:
    """Return the folder of a data set, which is downloaded if it is nowhere.

    Parameters
    ----------
    name
        Of the data set.
    root
        The folder, or one that holds it; then no other is looked at and nothing is downloaded.
    missing
        Names the files that a folder does not have.
    help_text
        What to do if there is no way to get them.
    """
    if root is not None:
        base = Path(root).expanduser()
        return base / name if (base / name).is_dir() else base
    places = [_user_folder() / name]
    if os.environ.get(FOLDER):
        places.insert(0, Path(os.environ[FOLDER]).expanduser() / name)
    for place in places:
        if not missing(place):
            return place
    folder = places[0]
    lacks = f"{name}: {folder} has no {', '.join(missing(folder))}"
    if os.environ.get(OFFLINE):
        raise DataError(f"{lacks}, and {OFFLINE} forbids to download them. {help_text}")
    try:
        _download(SOURCES[name], folder)
    except (DataError, OSError) as error:
        raise DataError(f"{lacks}, and they cannot be downloaded: {error}. {help_text}") from None
    return folder


def _user_folder() -> Path:
    """Return the folder for data in the user's cache folder."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "numbagrad/data"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/numbagrad/data"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "numbagrad/data"


# ----------------------------------------------------------------- download


def _download(sources: Iterable[Source], folder: Path) -> None:
    """Load what a folder lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in sources:
        path = folder / source.name
        if not path.is_file() and not path.with_suffix("").is_file():
            fetch(source, folder)
        if source.name.endswith(".tar.gz"):
            _unpack(path)


def fetch(source: Source, folder: Path) -> Path:
    """Load a file into a folder, from the first server that has it.

    Raises
    ------
    DataError
        If no server gives it, with the reason of each.
    OSError
        If the folder cannot be written.
    """
    path, reasons = folder / source.name, []
    with _alone_in(folder):
        if path.is_file():
            return path  # another process was quicker
        for server in source.servers:
            url = f"{server}/{source.name}"
            part = folder / f"{source.name}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part"
            reason = _load(url, part) or _what_is_wrong(source, part)
            if reason is None:
                os.replace(part, path)
                for other in folder.glob(f"{source.name}.*.part"):
                    other.unlink()
                return path
            reasons.append(f"{url}: {reason}")
    raise DataError("; ".join(reasons))


def _load(url: str, part: Path) -> str | None:
    """Load a file, or what is missing of it; return why that did not work."""
    for _ in range(TRIES):
        before = part.stat().st_size if part.exists() else 0
        reason = _load_once(url, part, before)
        if reason is None or not part.exists() or part.stat().st_size <= before:
            break
    return reason


def _load_once(url: str, part: Path, start: int) -> str | None:
    request = urllib.request.Request(url, headers={"User-Agent": "numbagrad"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            goes_on = response.status == http.client.PARTIAL_CONTENT
            start = start if goes_on else 0
            length = response.headers.get("Content-Length")
            total = start + int(length) if length else None
            with open(part, "ab" if goes_on else "wb") as file:
                received = start + _copy(response, file, part.stem, start, total)
    except urllib.error.HTTPError as error:
        if start and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return None  # all of it was there
        return f"HTTP status {error.code}"
    except (
        urllib.error.URLError,
        http.client.HTTPException,
        ConnectionError,
        TimeoutError,
    ) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
    if total is not None and received < total:
        return f"it stopped after {received:,} of {total:,} bytes"
    return None


def _copy(response: Any, file: BinaryIO, name: str, start: int, total: int | None) -> int:
    """Write what comes into a file, show how far it is, and return the number of bytes."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    received = 0
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"downloading {name}", total=total, completed=start)
        while piece := response.read(_PIECE):
            file.write(piece)
            received += len(piece)
            progress.advance(task, len(piece))
    return received


def _what_is_wrong(source: Source, part: Path) -> str | None:
    """Say what is wrong with a file's content, and remove it then; None if nothing is."""
    digest, size = hashlib.sha256(), 0
    is_packed = source.name.endswith(".gz") and not source.name.endswith(".tar.gz")
    try:
        with (gzip.open if is_packed else open)(part, "rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
                size += len(piece)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        reason = f"what it sent cannot be unpacked ({error})"
    else:
        if (size, digest.hexdigest()) == (source.size, source.sha256):
            return None
        reason = (
            f"what it sent has {size:,} bytes and SHA-256 {digest.hexdigest()}, "
            f"not {source.size:,} and {source.sha256}"
        )
    part.unlink()
    return reason


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Let one process at a time work in a folder, where folders can be locked."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _unpack(archive: Path) -> None:
    """Unpack an archive beside itself, its folders all at once; then remove it."""
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".unpacking-") as folder:
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")
        for each in _children(folder):
            target = archive.parent / each.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(each, target)
    archive.unlink()


def _children(folder: str) -> Iterable[Path]:
    return sorted(Path(folder).iterdir())


__all__ = ["SOURCES", "Source", "fetch", "find"]
