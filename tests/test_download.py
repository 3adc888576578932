"""Downloads, from servers of the tests' own that misbehave in every way."""

import gzip
import hashlib
import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from numbagrad import data
from numbagrad.data import download
from numbagrad.data.download import Source, fetch
from numbagrad.errors import DataError

CONTENT = bytes(np.random.default_rng(0).integers(0, 256, 200_000, np.uint8))


class Server(ThreadingHTTPServer):
    """Serves `files` by path; `manners` says how it misbehaves at some."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.manners, self.asked = {}, {}, []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, begin = self.server, self.headers.get("Range")
        server.asked.append((self.path, begin))
        content, manners = server.files.get(self.path), server.manners.get(self.path, {})
        if content is None:
            self.send_error(404)
            return
        start = int(begin.removeprefix("bytes=").removesuffix("-")) if begin else 0
        if manners.get("ignores ranges"):
            start = 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : start + manners.get("stops after", len(content))])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def source(server, *folders, content=CONTENT, name="file.bin"):
    digest = hashlib.sha256(content).hexdigest()
    return Source(name, tuple(f"{server.url}/{folder}" for folder in folders), len(content), digest)


def parts(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_next_server_is_asked(server, tmp_path):
    server.files = {"/wrong/file.bin": CONTENT[:-1] + b"?", "/good/file.bin": CONTENT}
    path = fetch(source(server, "none", "wrong", "good", "never"), tmp_path)
    assert path.read_bytes() == CONTENT
    assert parts(tmp_path) == ["file.bin"]
    assert [each for each, _ in server.asked] == [
        "/none/file.bin", "/wrong/file.bin", "/good/file.bin",
    ]  # fmt: skip
    fetch(source(server, "good"), tmp_path)
    assert len(server.asked) == 3  # it is there


def test_all_reasons_are_told(server, tmp_path):
    server.files = {"/wrong/file.bin": b"not that", "/short/file.bin": CONTENT}
    server.manners["/short/file.bin"] = {"stops after": 0}
    closed = Source("file.bin", ("http://127.0.0.1:9",), 1, "")
    with pytest.raises(DataError) as caught:
        fetch(source(server, "none", "wrong", "short"), tmp_path)
    text = str(caught.value)
    assert f"{server.url}/none/file.bin: HTTP status 404" in text
    assert "/wrong/file.bin: what it sent has 8 bytes and SHA-256 " in text
    assert "/short/file.bin: it stopped after 0 of 200,000 bytes" in text
    with pytest.raises(DataError, match="refused"):
        fetch(closed, tmp_path)
    assert not (tmp_path / "file.bin").exists()


def test_a_download_that_stops_goes_on(server, tmp_path):
    server.files["/a/file.bin"] = CONTENT
    server.manners["/a/file.bin"] = {"stops after": 90_000}
    path = fetch(source(server, "a"), tmp_path)
    assert path.read_bytes() == CONTENT
    assert [begin for _, begin in server.asked] == [None, "bytes=90000-", "bytes=180000-"]


def test_a_download_goes_on_in_another_process(server, tmp_path):
    server.files["/a/file.bin"] = CONTENT
    server.manners["/a/file.bin"] = {"stops after": 10_000}
    with pytest.raises(DataError, match="stopped after 30,000 of 200,000 bytes"):
        fetch(source(server, "a"), tmp_path)
    assert len(parts(tmp_path)) == 1
    server.manners.clear()
    assert fetch(source(server, "a"), tmp_path).read_bytes() == CONTENT
    assert server.asked[-1] == ("/a/file.bin", "bytes=30000-")


def test_a_server_that_knows_no_ranges(server, tmp_path):
    server.files["/a/file.bin"] = CONTENT
    server.manners["/a/file.bin"] = {"stops after": 10_000}
    with pytest.raises(DataError):
        fetch(source(server, "a"), tmp_path)
    server.manners["/a/file.bin"] = {"ignores ranges": True}
    assert fetch(source(server, "a"), tmp_path).read_bytes() == CONTENT


def test_a_part_that_is_whole_is_only_checked(server, tmp_path):
    server.files["/a/file.bin"] = CONTENT
    server.manners["/a/file.bin"] = {"stops after": 10_000}
    with pytest.raises(DataError):
        fetch(source(server, "a"), tmp_path)
    (tmp_path / parts(tmp_path)[0]).write_bytes(CONTENT)
    assert fetch(source(server, "a"), tmp_path).read_bytes() == CONTENT


def test_a_spoilt_part_is_loaded_anew(server, tmp_path):
    server.files["/a/file.bin"] = CONTENT
    server.manners["/a/file.bin"] = {"stops after": 10_000}
    with pytest.raises(DataError):
        fetch(source(server, "a"), tmp_path)
    (tmp_path / parts(tmp_path)[0]).write_bytes(bytes(30_000))
    server.manners.clear()
    with pytest.raises(DataError, match="SHA-256"):
        fetch(source(server, "a"), tmp_path)
    assert parts(tmp_path) == []
    assert fetch(source(server, "a"), tmp_path).read_bytes() == CONTENT


def test_packed_files_are_checked_by_what_is_in_them(server, tmp_path):
    wanted = source(server, "short", "wrong", "b", name="file.gz")
    packed = gzip.compress(CONTENT, 1)
    server.files = {
        "/short/file.gz": packed[:-100],
        "/wrong/file.gz": gzip.compress(CONTENT[:-1]),
        "/b/file.gz": packed,
    }
    assert fetch(wanted, tmp_path).read_bytes() == packed
    assert parts(tmp_path) == ["file.gz"]


def test_two_at_once_load_it_once(server, tmp_path):
    server.files["/a/file.bin"] = CONTENT
    wanted, found = source(server, "a"), []
    threads = [
        threading.Thread(target=lambda: found.append(fetch(wanted, tmp_path).read_bytes()))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENT] * 4
    assert len(server.asked) == 1


# ---------------------------------------------------------------- data sets


@pytest.fixture
def online(server, tmp_path, monkeypatch):
    """Let there be a network, and a cache folder of the test's own."""
    monkeypatch.delenv("NUMBAGRAD_OFFLINE")
    monkeypatch.delenv("NUMBAGRAD_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(download, "_user_folder", lambda: tmp_path / "data")
    return server


def idx(values):
    head = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    return head + values.astype(np.uint8).tobytes()


def serve_mnist(server, monkeypatch):
    rng = np.random.default_rng(1)
    contents = [
        idx(rng.integers(0, 256, (3, 28, 28))), idx(np.array([1, 2, 3])),
        idx(rng.integers(0, 256, (2, 28, 28))), idx(np.array([4, 5])),
    ]  # fmt: skip
    names = [each.name for each in download.SOURCES["mnist"]]
    files = dict(zip(names, contents, strict=True))
    server.files |= {f"/m/{name}": gzip.compress(content) for name, content in files.items()}
    sources = tuple(source(server, "m", content=c, name=name) for name, c in files.items())
    monkeypatch.setitem(download.SOURCES, "mnist", sources)


def test_mnist_is_downloaded_once(online, tmp_path, monkeypatch):
    serve_mnist(online, monkeypatch)
    for _ in range(2):
        train, test = data.mnist()
        assert train.labels.tolist() == [1, 2, 3]
        assert test.labels.tolist() == [4, 5]
    assert len(online.asked) == 4
    assert len(parts(tmp_path / "data/mnist")) == 4
    monkeypatch.setenv("NUMBAGRAD_OFFLINE", "1")
    data.mnist()


def test_only_what_is_missing_is_downloaded_to_the_folder_of_choice(online, tmp_path, monkeypatch):
    serve_mnist(online, monkeypatch)
    folder = tmp_path / "mine/mnist"
    folder.mkdir(parents=True)
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(np.array([7, 8])))
    monkeypatch.setenv("NUMBAGRAD_DATA", str(tmp_path / "mine"))
    assert data.mnist()[1].labels.tolist() == [7, 8]
    assert len(online.asked) == 3


def test_no_server_and_no_file(online, monkeypatch):
    wanted = source(online, "none", name="train-images-idx3-ubyte.gz")
    monkeypatch.setitem(download.SOURCES, "mnist", (wanted,))
    with pytest.raises(DataError) as caught:
        data.mnist()
    text = str(caught.value)
    assert "data/mnist has no train-images-idx3-ubyte, " in text
    assert "they cannot be downloaded: http://127.0.0.1" in text
    assert "HTTP status 404. Put the four files" in text


def test_a_file_where_the_folder_should_be(online, tmp_path, monkeypatch):
    serve_mnist(online, monkeypatch)
    (tmp_path / "data").write_text("mine")
    with pytest.raises(DataError, match=r"has no train-.*cannot be downloaded: .*Not a directory"):
        data.mnist()
    assert (tmp_path / "data").read_text() == "mine"


def test_cifar10_is_unpacked(online, tmp_path, monkeypatch):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for k, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
            record = bytes([k]) + bytes(3072)
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            info.size = len(record)
            archive.addfile(info, io.BytesIO(record))
    content = packed.getvalue()
    wanted = source(online, "c", content=content, name="cifar-10-binary.tar.gz")
    online.files["/c/cifar-10-binary.tar.gz"] = content
    monkeypatch.setitem(download.SOURCES, "cifar10", (wanted,))
    for _ in range(2):
        train, test = data.cifar10()
        assert train.labels.tolist() == [0, 1, 2, 3, 4]
        assert test.labels.tolist() == [5]
    assert len(online.asked) == 1
    assert parts(tmp_path / "data/cifar10") == ["cifar-10-batches-bin"]


def test_the_table_of_sources():
    for sources in download.SOURCES.values():
        for each in sources:
            assert len(each.servers) >= 2
            assert len(each.sha256) == 64
            assert int(each.sha256, 16)
