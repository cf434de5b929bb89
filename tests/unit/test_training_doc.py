"""docs/training.md says what is so: its rows are read and encoded, its options are those of the command."""

import json
import re
from pathlib import Path

import pytest
import typer

from qvl.cli.app import app
from qvl.cli.train_options import _DEFAULTS, OPTIONS
from qvl.train.data.checking import check
from qvl.train.data.dataset import Dataset
from qvl.train.encode import Encoder
from support.media import photo
from support.serving import bundled_config, bundled_processor

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
TEXT = PAGE.read_text(encoding="utf-8")
BEGIN, END = "<!-- options: begin (tests/unit/test_training_doc.py) -->\n", "<!-- options: end -->"
EXAMPLES = re.findall(r"^```jsonl\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def table() -> str:
    """The options as the page is to list them."""
    lines = []
    panel = None
    for option in OPTIONS:
        if option.panel != panel:
            panel = option.panel
            lines += ["", f"### {panel}", "", "| option | what it says | default |", "|---|---|---|"]
        default = option._shown(_DEFAULTS[option.field])
        lines.append(f"| `{option.names}` | {option.help} | {f'`{default}`' if default else ''} |")
    return "\n".join(lines[1:]) + "\n"


def test_the_options_are_those_of_the_command():
    """Paste what fails here into the page."""
    assert TEXT.split(BEGIN)[1].split(END)[0] == table()


def test_the_page_and_the_command_have_the_same_options():
    command = typer.main.get_command(app).commands["train"]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", TEXT))
    others = {"--model", "--nproc-per-node", "--base", "--metric", "--predictions", "--resume"}
    assert named - known == others, "of other commands"
    assert {name for name in known if name.startswith("--")} - named == {"--debug"}


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_rows_of_the_page_can_be_trained_on(tmp_path, number):
    photo(80, 60).save(tmp_path / "one.png")
    path = tmp_path / "rows.jsonl"
    path.write_text(EXAMPLES[number])
    encoder = Encoder(bundled_processor(), bundled_config())
    report = check(path, encoder)
    assert [row.reason for row in report.bad] == []
    data = Dataset(path, encoder)
    assert [len(data[i]) for i in range(len(data))] == list(report.lengths)
    array = tmp_path / "rows.json"
    array.write_text(json.dumps([json.loads(line) for line in EXAMPLES[number].splitlines()]))
    assert list(check(array, encoder).lengths) == list(report.lengths)


def test_the_page_has_examples():
    assert len(EXAMPLES) == 6
