"""``qvl serve``: its options, what it refuses before it loads anything, and its life as a process."""

import base64
import dataclasses
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer

from qvl.cli.serve_options import NOT_HERE, OPTIONS, make_settings
from qvl.cli.setting_options import parse_size, shown_size
from qvl.serve.settings import Access, Limits, ServeSettings
from support.serving import bundled_generation

MIB = 2**20
ONE_DIGIT = Path(__file__).parents[2] / "examples" / "pictures" / "one_digit.png"
PICTURE = {
    "role": "user",
    "content": [
        {
            "type": "image_url",
            "image_url": {
                "url": f"data:image/png;base64,{base64.b64encode(ONE_DIGIT.read_bytes()).decode()}"
            },
        }
    ],
}


class TestOptions:
    def test_every_setting_has_its_option_and_every_option_its_setting(self):
        fields = {f.name for kind in (ServeSettings, Limits, Access) for f in dataclasses.fields(kind)}
        assert {option.field for option in OPTIONS} == fields - NOT_HERE
        assert len({option.names for option in OPTIONS}) == len(OPTIONS)

    def test_without_any_the_settings_are_the_defaults(self):
        assert make_settings("m", (), {}) == ServeSettings(model="m")

    def test_given_values_arrive_where_they_belong(self):
        given = {"port": 1, "fetch_hosts": ["a", "b"], "media_root": Path("x"), "body": 5, "fetch": False}
        made = make_settings("m", ("key",), given)
        assert (made.port, made.access.fetch_hosts, made.access.media_root) == (1, ("a", "b"), "x")
        assert (made.limits.body, made.access.fetch, made.access.api_keys) == (5, False, ("key",))

    @pytest.mark.parametrize(
        ("text", "size"),
        [("4096", 4096), ("512M", 512 * MIB), ("1.5GiB", 1536 * MIB), ("2k", 2048), ("1 TB", 2**40)],
    )
    def test_sizes(self, text, size):
        assert parse_size(text) == size
        assert parse_size(shown_size(size)) == size

    @pytest.mark.parametrize("text", ["", "0", "-1", "M", "1X", "1e9", "0.1"])
    def test_no_sizes(self, text):
        with pytest.raises(typer.BadParameter, match="as in 4G"):
            parse_size(text)

    def test_help_groups_the_options_and_tells_the_defaults(self, run, monkeypatch):
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.delenv("QVL_API_KEY", raising=False)
        code, out, _ = run("serve", "--help")
        assert code == 0
        for title in ("Server", "Sharing the model", "Access", "Limits of a request", "Limits of media"):
            assert f"─ {title} ─" in out
        plain = " ".join(out.split())
        assert "Default: 127.0.0.1." in plain and "Default: 64M." in plain and "Default: --fetch." in plain
        for option in OPTIONS:
            for name in option.names.split("/"):
                assert name in out


class TestRefusals:
    """Each is one line, and comes before a model is loaded."""

    @pytest.fixture(autouse=True)
    def never_loads(self, monkeypatch):
        def load(*_):
            raise AssertionError("it went on to load the model")

        monkeypatch.setattr("qvl.cli.serve._backend", load)
        monkeypatch.delenv("QVL_API_KEY", raising=False)

    def refused(self, run, *words, code=2):
        found, out, err = run("serve", *words)
        assert (found, out) == (code, "")
        assert err.count("\n") == 1 and err.startswith("qvl: ")
        return err

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (("--host", "0.0.0.0"), "--no-api-key"),
            (("--host", "0.0.0.0", "--api-key", "short"), "8 or more"),
            (("--api-key", ""), "8 or more"),
            (("--api-key-file", "/nowhere/keys"), "key file"),
            (("--api-key", "long-enough-key", "--no-api-key"), "contradicts"),
            (("--media-root", "/nowhere"), "no folder"),
            (("--port", "70000"), "65535"),
            (("--max-sequences", "0"), "--max-sequences"),
            (("--client-share", "2"), "--client-share"),
            (("--kv-memory", "much"), "as in 4G"),
            (("--host", "no such name", "--no-api-key"), "no address"),
            (("--model", " "), "--model is empty"),
            (("surplus",), "surplus"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
    )
    def test_bad_values(self, run, words, told):
        assert told in self.refused(run, *words)

    def test_the_key_of_the_environment_is_checked_too(self, run, monkeypatch):
        monkeypatch.setenv("QVL_API_KEY", "short")
        assert "8 or more" in self.refused(run)

    def test_a_port_in_use(self, run):
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            assert f"port {port} of 127.0.0.1 is in use" in self.refused(run, "--port", port, code=1)

    @pytest.mark.parametrize("package", ["fastapi", "uvicorn"])
    def test_the_extra_is_missing(self, run, monkeypatch, package):
        for name in [name for name in sys.modules if name.split(".")[:2] == ["qvl", "serve"]]:
            if name in ("qvl.serve.app", "qvl.serve.server"):
                monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)
        err = self.refused(run, "--port", "0", code=1)
        assert f'needs the package {package}: pip install "qvl[serve]"' in err

    def test_other_commands_do_not_import_it(self):
        code = "import sys; from qvl.cli.app import app; print(*sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert not {"fastapi", "starlette", "uvicorn", "prometheus_client", "torch"} & set(
            done.stdout.split()
        )


def test_a_model_that_cannot_be_loaded_is_one_line(run, tmp_path):
    code, out, err = run("serve", "--port", "0", "--model", tmp_path / "nowhere")
    loading, error = err.splitlines()
    assert (code, out) == (1, "") and loading.startswith("qvl: loading ")
    assert error.startswith("qvl: there is no folder")


class Process:
    """A server of its own process, with the bundled model."""

    def __init__(self, *words, **environment):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qvl.cli", "serve", "--port", "0", *words],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        self.lines = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line)

    @property
    def port(self):
        for _ in range(6000):
            for line in self.lines:
                if found := re.search(r"at http://127\.0\.0\.1:(\d+)", line):
                    return int(found[1])
            assert self.process.poll() is None, self.lines
            time.sleep(0.01)
        raise AssertionError(self.lines)

    def ask(self, method, path, body=None, **headers):
        """(status, headers, body) over a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        return response.status, response.headers, response.read().decode()

    def stream(self, tokens):
        """A stream of so many tokens, of which the first has arrived."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        body = {
            "model": "qvl/tiny",
            "prompt": "1 2 3",
            "max_tokens": tokens,
            "stream": True,
            "logit_bias": {str(end): -100 for end in bundled_generation().eos_token_ids},
        }
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        assert response.readline().startswith(b"data: ")
        return response

    def send(self, number):
        self.process.send_signal(number)

    def ended(self):
        """The exit code."""
        code = self.process.wait(30)
        self._reader.join(5)
        return code


@contextmanager
def process(*words, **environment):
    server = Process(*words, **environment)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


class TestProcess:
    def test_it_serves_and_drains_on_sigterm(self):
        with process("--repetition-tokens", "0", "--drain-seconds", "60") as server:
            assert server.ask("GET", "/health")[0] == 200
            assert server.ask("GET", "/ready")[0] == 200
            stream = server.stream(1200)
            server.send(signal.SIGTERM)
            wait(lambda: server.ask("GET", "/ready")[0] == 503)
            assert server.ask("GET", "/health")[0] == 200
            status, headers, text = server.ask("POST", "/v1/completions", {"prompt": "1"})
            assert status == 503 and headers["Retry-After"] == "10"
            assert json.loads(text)["error"]["type"] == "server_error"
            rest = stream.read().decode()
            assert '"finish_reason":"length"' in rest.replace(": ", ":") and "[DONE]" in rest
            assert server.ended() == 0
        assert "qvl: stopping: 1 request under way may finish; a second signal ends at once\n" in server.lines
        records = [json.loads(line) for line in server.lines if line.startswith("{")]
        (streamed,) = [record for record in records if record["completion_tokens"]]
        assert streamed["completion_tokens"] == 1200 and streamed["end"] == "length"
        assert not any("Traceback" in line for line in server.lines)

    def test_time_to_drain_is_bounded_and_a_second_signal_ends_at_once(self):
        plain = ("--repetition-tokens", "0")
        with process(*plain, "--drain-seconds", "0.2") as first, process(*plain) as second:
            stream = first.stream(16_000)
            first.send(signal.SIGTERM)
            rest = stream.read().decode()
            assert "[DONE]" in rest or "error" in rest
            assert first.ended() == 0
            stream = second.stream(16_000)
            second.send(signal.SIGTERM)
            wait(lambda: second.ask("GET", "/ready")[0] == 503)
            begun = time.monotonic()
            second.send(signal.SIGTERM)
            assert second.ended() == 128 + signal.SIGTERM
            assert time.monotonic() - begun < 5

    def test_ctrl_c_a_key_of_the_environment_and_a_supervisor(self, tmp_path):
        inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        inbox.bind(str(tmp_path / "notify"))
        inbox.settimeout(10)
        supervisor = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "600000000"}
        sizes = ("--min-pixels", "784", "--max-pixels", "3136")
        with inbox, process(*sizes, QVL_API_KEY="a-key-for-this-test", **supervisor) as server:
            key = {"Authorization": "Bearer a-key-for-this-test"}
            status, _, text = server.ask("POST", "/tokenize", {"messages": [PICTURE]}, **key)
            assert status == 200 and json.loads(text)["media"][0]["resized_width"] == 56, text
            assert server.ask("GET", "/metrics")[0] == 401
            assert server.ask("GET", "/metrics", Authorization="Bearer a-key-for-this-test")[0] == 200
            server.send(signal.SIGINT)
            assert server.ended() == 130
            told = [inbox.recv(100) for _ in range(3)]
            assert told == [b"READY=1", b"WATCHDOG=1", b"STOPPING=1"]
        assert "1 API key" in "".join(server.lines) and "qvl: stopping\n" in server.lines
        assert "a-key-for-this-test" not in "".join(server.lines)


def wait(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
