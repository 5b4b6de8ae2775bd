"""Downloads from a server on this host."""

import contextlib
import http.server
import io
import socket
import threading
import time

import h5py
import pytest

from tgcvg_jax.data import download
from tgcvg_jax.types import UserError


def hdf5_bytes():
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["observations"] = list(range(5000))
    return buffer.getvalue()


CONTENT = hdf5_bytes()
RELEASE = threading.Event()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1]
        if name == "absent.hdf5":
            self.send_error(404)
            return
        content = b"<html>\nlogin</html>" if name == "page.hdf5" else CONTENT
        sent = content[: len(content) // 2] if name in ("cut.hdf5", "chopped.hdf5") else content
        self.send_response(200)
        if name != "chopped.hdf5":  # chopped: no length announced
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if name == "stalled.hdf5":
            self.wfile.write(sent[:1000])
            self.wfile.flush()
            RELEASE.wait(10)
        else:
            self.wfile.write(sent)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}/files/"
        RELEASE.set()
        running.shutdown()


@pytest.fixture(autouse=True)
def root(server, monkeypatch):
    monkeypatch.setenv("TGCVG_URL", server)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_whole_file(tmp_path, capsys):
    path = tmp_path / "new" / "folder" / "toy.hdf5"
    assert download.fetch("gym_mujoco_v2/toy.hdf5", path) == path
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["toy.hdf5"]
    captured = capsys.readouterr()
    assert "toy.hdf5: 100%" in captured.err and captured.out == ""


def check_failure(tmp_path, name, message):
    path = tmp_path / name
    with pytest.raises(UserError, match=message) as caught:
        download.fetch(f"gym_mujoco_v2/{name}", path)
    text = str(caught.value)
    assert f"gym_mujoco_v2/{name}" in text and f"put that file at {path}" in text
    assert "hopper-medium-mini" in text and "\n" not in text and ".part" not in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.hdf5", "HTTP Error 404"),
        ("page.hdf5", "is not an HDF5 file"),
        ("cut.hdf5", "broke off|IncompleteRead"),
        ("chopped.hdf5", "truncated or damaged"),
    ],
)
def test_failures_leave_nothing(tmp_path, name, message):
    check_failure(tmp_path, name, message)


def test_stalled_transfer(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SILENCE_SECONDS", 0.3)
    check_failure(tmp_path, "stalled.hdf5", "timed out")


def test_refused_connection(tmp_path, monkeypatch):
    with contextlib.closing(socket.socket()) as bound:  # bound, but nobody listens
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv("TGCVG_URL", f"http://127.0.0.1:{bound.getsockname()[1]}/")
        check_failure(tmp_path, "toy.hdf5", "refused")


def test_hanging_connection_ends_at_the_deadline(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "CONNECT_SECONDS", 0.3)
    with contextlib.closing(socket.socket()) as silent:  # accepts, but never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("TGCVG_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/")
        start = time.monotonic()
        check_failure(tmp_path, "toy.hdf5", "no answer within")
        assert time.monotonic() - start < 5


def test_deadlines_add_up_to_less_than_thirty_seconds():
    assert download.CONNECT_SECONDS < 30 and download.SILENCE_SECONDS <= 30


def test_bad_root(tmp_path, monkeypatch):
    monkeypatch.setenv("TGCVG_URL", "no-scheme")
    check_failure(tmp_path, "toy.hdf5", "unknown url type")


def test_destination_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot download .*toy\.hdf5"):
        download.fetch("toy.hdf5", tmp_path / "file" / "toy.hdf5")


def test_an_existing_file_survives_a_failure(tmp_path):
    path = tmp_path / "cut.hdf5"
    path.write_bytes(b"old")
    with pytest.raises(UserError):
        download.fetch("cut.hdf5", path)
    assert path.read_bytes() == b"old"
