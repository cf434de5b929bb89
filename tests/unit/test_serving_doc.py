"""docs/serving.md says what is so: examples run; options, fields and metrics are those of the server."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
import typer

from qvl.cli.app import app
from qvl.cli.serve_options import _DEFAULTS, OPTIONS
from qvl.cli.setting_options import SettingOption
from qvl.serve.logs import RequestRecord
from qvl.serve.protocol.chat import ChatRequest
from qvl.serve.protocol.completions import CompletionRequest, TokenizeRequest
from qvl.serve.protocol.content import MediaOptions
from qvl.serve.protocol.responses import ResponsesRequest
from support.serving import live_server

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
ADDRESS = "http://127.0.0.1:8000"
# What each example prints, or part of it
COMMANDS = list(
    zip(
        [text for language, text in BLOCKS if language == "bash"],
        ['"content":"407"', '"count":'],
        strict=True,
    )
)
PROGRAMS = list(
    zip([text for language, text in BLOCKS if language == "python"], ["407\n", "2\n", "stop\n"], strict=True)
)


@pytest.fixture(scope="module")
def server():
    with live_server(log_requests=False) as live:
        yield live


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
@pytest.mark.parametrize(("command", "expected"), COMMANDS, ids=range(len(COMMANDS)))
def test_commands(server, command, expected):
    assert ADDRESS in command
    here = command.replace(ADDRESS, server.url)
    done = subprocess.run(["bash", "-c", here], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert expected in done.stdout


@pytest.mark.parametrize(("program", "expected"), PROGRAMS, ids=range(len(PROGRAMS)))
def test_programs(server, program, expected, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # it only talks to this machine
    assert ADDRESS in program
    exec(compile(program.replace(ADDRESS, server.url), "docs/serving.md", "exec"), {})
    assert capsys.readouterr().out == expected


def section(title: str) -> str:
    """The text below a heading, up to the next one of its rank."""
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """The cells of its tables, without the heads."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" |")] for line in lines]


def helped(option: SettingOption) -> str:
    """The default as `qvl serve --help` says it."""
    parameter = option.parameter(_DEFAULTS[option.field])
    found = re.search(r" Default: (.*)\.$", parameter.annotation.__metadata__[0].help)
    return found[1] if found else "none"


@pytest.mark.parametrize("panel", sorted({option.panel for option in OPTIONS}))
def test_options(panel):
    told = {
        re.sub(r"`", "", cells[0]): re.sub(r"`", "", cells[1])
        for cells in rows(section("Options").split(f"**{panel}**")[1].split("**")[0])
    }
    keys = {"--api-key": "QVL_API_KEY", "--api-key-file": "", "--no-api-key": ""}  # not in the table
    real = {option.names.split("/")[-1]: helped(option) for option in OPTIONS if option.panel == panel}
    assert told == real | (keys if panel == "Access" else {})


def test_every_option_is_named():
    for parameter in typer.main.get_command(app).commands["serve"].params:
        names = [*parameter.opts, *parameter.secondary_opts]
        assert any(f"`{name}`" in section("Options") for name in names) or names == ["--help"], names


def fields(title: str) -> set[str]:
    """The names in backticks of one paragraph that begins with ``title`` in bold."""
    text = section("What a request may say").split(f"**{title}")[1].split("\n**")[0]
    return set(re.findall(r"`([a-z_.]+)`", text))


def test_every_field_is_named():
    options = set(MediaOptions.model_fields)
    assert set(ChatRequest.model_fields) <= fields("Chat completions")
    assert options <= fields("Parts of a message")
    assert set(CompletionRequest.model_fields) <= fields("Completions") | fields("Chat completions")
    assert set(ResponsesRequest.model_fields) <= fields("Responses") | fields("Chat completions")
    known = fields("Tokenize") | fields("Chat completions")
    assert set(TokenizeRequest.model_fields) <= known


def test_what_is_ignored_and_refused():
    assert fields("Ignored") == ChatRequest.ignored
    refused = {**ChatRequest.refused, **CompletionRequest.refused, **ResponsesRequest.refused}
    assert fields("Refused") == set(refused) - {"echo"}  # which completions have


def test_nothing_is_named_that_is_not_there():
    known = set(ChatRequest.model_fields)
    told = {
        name for cells in rows(section("What a request may say")) for name in re.findall(r"`(\w+)`", cells[0])
    }
    parts = {"text", "refusal", "image_url", "video_url", "file", "input_audio"}
    assert told - known - parts == set()


def test_metrics(server):
    text = httpx.get(f"{server.url}/metrics").text
    real = {
        name for name in re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE) if not name.endswith("_created")
    }
    told = {name for cells in rows(section("Operating")) for name in re.findall(r"`(qvl_\w+)", cells[0])}
    assert told == real


def test_links_and_files():
    for path in re.findall(r"`((?:deploy|benchmarks|tests)/[\w./]+)`", TEXT):
        assert (ROOT / path).exists(), path


def test_the_log_line_is_the_one_that_is_written():
    (line,) = [text for language, text in BLOCKS if language == "json"]
    assert re.findall(r'"(\w+)":', line) == list(RequestRecord().line())
