"""Loading by repository id from a hub on this machine, end to end: revision, progress, cache, offline."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.checkpoint import write_checkpoint
from support.fake_hub import serve

SCRIPT = """
import sys, json
from qvl import AutoConfig, AutoModelForImageTextToText, AutoProcessor, errors

def tried(load, *args, **kwargs):
    try:
        return load(*args, **kwargs)
    except errors.QvlError as error:
        return f"{type(error).__name__}: {error}"

def layers(model):
    return model if isinstance(model, str) else model.config.text_config.num_hidden_layers

load = AutoModelForImageTextToText.from_pretrained
out = {
    "main": layers(tried(load, "owner/tiny")),
    "v1": layers(tried(load, "owner/tiny", revision="v1")),
    "config": getattr(tried(AutoConfig.from_pretrained, "owner/small"), "num_hidden_layers", None),
    "processor": type(tried(AutoProcessor.from_pretrained, "owner/tiny")).__name__,
    "no revision": layers(tried(load, "owner/tiny", revision="v9")),
    "no repository": layers(tried(load, "owner/nothing")),
    "pickled": layers(tried(load, "owner/pickled")),
}
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("repositories")
    write_checkpoint(root / "owner/tiny/main")
    write_checkpoint(root / "owner/tiny/v1", num_hidden_layers=2)
    write_checkpoint(root / "owner/small/main", num_hidden_layers=4)
    pickled = write_checkpoint(root / "owner/pickled/main", weights=False)
    (pickled / "pytorch_model.bin").write_bytes(b"never read")
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def environment(address: str, cache: Path, **more: str) -> dict[str, str]:
    settings = {"HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", **more}
    return {**os.environ, **settings}


def run(address: str, cache: Path, **more: str) -> tuple[dict, str]:
    """What the script finds in a fresh process, and its error stream."""
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(address, cache, **more))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.fixture(scope="module")
def online(root, cache):
    with serve(root) as (address, requests):
        found, stderr = run(address, cache)
    return found, stderr, requests, address


def test_a_repository_id_and_its_revisions(online):
    found, _, _, _ = online
    assert (found["main"], found["v1"], found["config"]) == (3, 2, 4)
    assert found["processor"] == "Qwen2_5_VLProcessor"


def test_downloads_show_progress_on_a_terminal_only(online, root, tmp_path):
    assert online[1] == ""
    pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))
    code = "from qvl import hub; hub.resolve('owner/tiny')"
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # a bar needs a width
    with serve(root) as (address, _):
        command = [sys.executable, "-c", code]
        with subprocess.Popen(command, stderr=theirs, env=environment(address, tmp_path)) as process:
            os.close(theirs)
            shown = b"".join(chunks(ours))
    os.close(ours)
    assert process.returncode == 0
    assert re.search(rb"model\.safetensors.*100%", shown), shown


def chunks(descriptor: int) -> Iterator[bytes]:
    """What arrives until the other end is closed."""
    while True:
        try:
            chunk = os.read(descriptor, 4096)
        except OSError:  # how Linux says that a terminal's other end is gone
            return
        if not chunk:
            return
        yield chunk


def test_only_what_is_needed_is_fetched(online):
    files = [path for path in online[2] if "/resolve/" in path]
    assert any(path.endswith("model.safetensors") for path in files if "owner/tiny" in path)
    assert {Path(path).name for path in files if "owner/small" in path} == {"config.json"}
    assert not any(path.endswith(".bin") for path in files)


def test_what_the_hub_does_not_have(online):
    found = online[0]
    assert found["no revision"] == (
        "CheckpointNotFoundError: the repository 'owner/tiny' has no revision 'v9'"
    )
    assert found["no repository"].startswith("CheckpointNotFoundError: there is no folder and no public")
    assert found["pickled"].startswith("CheckpointNotFoundError") and "safetensors" in found["pickled"]


@pytest.mark.parametrize("offline", ["0", "1"])
def test_the_cache_serves_when_the_hub_is_gone(online, cache, offline):
    """``HF_HUB_OFFLINE=1``, and a hub that does not answer (its port is closed by now)."""
    found, _ = run(online[3], cache, HF_HUB_OFFLINE=offline)
    assert (found["main"], found["v1"], found["processor"]) == (3, 2, "Qwen2_5_VLProcessor")
    for name in ("no revision", "no repository"):
        assert found[name].startswith("CheckpointNotFoundError") and "cache does not hold" in found[name]
