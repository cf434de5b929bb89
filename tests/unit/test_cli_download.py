"""A checkpoint from a hub on this machine: ``qvl`` downloads it, says nothing in a pipe, and heeds Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from qvl.cli import INTERRUPTED, OK
from support.checkpoint import write_checkpoint

COMMIT = "a" * 40


class Hub(BaseHTTPRequestHandler):
    """What a download needs of the hub. Until ``server.gate`` opens, the end of the weights is held back."""

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer(with_content=False)

    def do_GET(self):
        self._answer(with_content=True)

    def _answer(self, with_content):
        path = self.path.partition("?")[0]
        listing = path.startswith("/api/")
        names = [file.name for file in self.server.folder.iterdir()]
        if listing:
            files = [{"rfilename": name} for name in names]
            content = json.dumps({"id": "some/model", "sha": COMMIT, "siblings": files}).encode()
        else:
            content = (self.server.folder / path.rpartition("/")[2]).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{path.rpartition("/")[2]}"')
        self.end_headers()
        if with_content:
            self.wfile.write(content[:1000])
            if path.endswith(".safetensors"):
                self.server.begun.set()
                self.server.gate.wait(60)
            self.wfile.write(content[1000:])


@pytest.fixture
def hub(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    server.folder = write_checkpoint(tmp_path / "model")
    server.begun, server.gate = threading.Event(), threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.gate.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def ask(hub, tmp_path):
    settings = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "qvl.cli", "ask", "Hi", "-m", "some/model", "--max-new-tokens", "2"]

    def ask():
        return subprocess.Popen(
            command, env={**os.environ, **settings}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    return ask


def test_a_download_ends_in_an_answer_and_a_pipe_sees_no_bars(hub, ask):
    hub.gate.set()
    process = ask()
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (OK, b"")
    assert out.strip()


def test_ctrl_c_ends_a_download_at_once(hub, ask):
    process = ask()
    assert hub.begun.wait(60)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (INTERRUPTED, b"") and b"Traceback" not in err
    assert time.monotonic() - begin < 10  # the weights are still held back
