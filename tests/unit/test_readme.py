"""The README shows only what works: its programs run, its commands run, its links and trees are true.

Commands that name a released checkpoint run on a tiny one, and on small media of the names that they use.
"""

import contextlib
import io
import json
import os
import re
import runpy
import shlex
from pathlib import Path

import pytest
from PIL import Image

from qvl.cli import OK, main
from support.checkpoint import write_checkpoint
from support.serving import live_server
from support.video import write_video

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SERVED = "http://127.0.0.1:8000"
RELEASED = "Qwen/Qwen2.5-VL-3B-Instruct"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PROGRAMS = [text for language, text in BLOCKS if language == "python"]
# Every "$ command" with the lines that it prints, up to the next one.
COMMANDS = [
    (command, said)
    for language, text in BLOCKS
    if language == "console"
    for command, said in re.findall(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE)
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which the names of the README lead to something."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "examples").symlink_to(ROOT / "examples")
    for name in ("photo.jpg", "before.png", "after.png"):
        Image.radial_gradient("L").convert("RGB").resize((84, 56)).save(folder / name)
    write_video(folder / "film.mp4", frames=8, fps=4)
    write_checkpoint(folder / RELEASED)
    for name in ("invoices.jsonl", "held-out.jsonl"):
        question = [{"type": "image", "path": "photo.jpg"}, {"type": "text", "text": "How much?"}]
        row = {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": name[0]}]}
        (folder / name).write_text(json.dumps(row) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def server():
    with live_server(log_requests=False) as live:
        yield live


def test_there_is_something_to_test():
    assert len(PROGRAMS) == 3
    assert {shlex.split(command)[1] for command, _ in COMMANDS} == {
        *("ask", "chat", "info"),
        *("train", "eval", "merge"),
    }


@pytest.mark.parametrize(
    ("program", "expected"),
    zip(PROGRAMS, ["407\n", "25\n", "8\n"], strict=True),
    ids=["pipeline", "generate", "client"],
)
def test_programs(program, expected, place, tmp_path, monkeypatch, request):
    monkeypatch.chdir(place)
    if SERVED in program:
        program = program.replace(SERVED, request.getfixturevalue("server").url)
    script = tmp_path / "program.py"
    script.write_text(program, encoding="utf-8")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path(str(script))
    assert printed.getvalue() == expected


@pytest.mark.parametrize(("command", "said"), COMMANDS, ids=[command for command, _ in COMMANDS])
def test_commands(command, said, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setattr("sys.stdin", io.StringIO("What is this?\n"))
    program, *words = shlex.split(command)
    assert program == "qvl"
    asks = words[0] in ("ask", "chat", "eval") and not said
    assert main([*words, *(["--max-new-tokens", "3"] if asks else [])]) == OK
    captured = capsys.readouterr()
    assert captured.out == said if said else (captured.out + captured.err).strip()


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("document", ["README.md", "docs/architecture.md"])
def test_the_tree_is_the_one_that_is_there(document):
    tree = runpy.run_path(str(ROOT / "scripts" / "tree"))
    text = (ROOT / document).read_text(encoding="utf-8")
    assert tree["with_tree"](document, text) == text, "run scripts/tree --write"


def test_every_place_has_a_floor():
    tree = runpy.run_path(str(ROOT / "scripts" / "tree"))
    places = {path.stem for path in (ROOT / "src" / "qvl").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert places - {"__pycache__", "assets", "py"} <= set(tree["floors"]())


def test_make_knows_the_commands_of_the_readme():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        script = re.search(rf"^{target}:\n\t@(\S+)$", makefile, re.MULTILINE)
        assert script is not None, target
        assert os.access(ROOT / script[1], os.X_OK)


def test_the_figures_are_there_with_their_machine():
    figures = README.split("<!-- figures: begin")[1].split("<!-- figures: end")[0]
    assert "printed words" in figures and "Measured" in figures
