"""``qvl eval``: the table, the files that it writes, going on after a stop, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import qvl.cli.eval as command
from qvl.cli import FAILED, INTERRUPTED, OK, USAGE
from support.checkpoint import write_checkpoint

SHORT = ("--max-new-tokens", 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def data(tmp_path):
    """Six rows of two tasks, with a picture each."""
    generator = np.random.default_rng(0)
    rows = []
    for i in range(6):
        Image.fromarray(generator.integers(0, 255, (60, 50 + 20 * i, 3), np.uint8)).save(
            tmp_path / f"{i}.png"
        )
        content = [{"type": "image", "path": f"{i}.png"}, {"type": "text", "text": f"What is {i}?"}]
        rows.append({"messages": [{"role": "user", "content": content}], "answer": "x", "task": "ab"[i % 2]})
    return rewrite(tmp_path / "rows.jsonl", rows)


def rewrite(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def cells(out: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in out.splitlines()
    ]


def test_table_scores_and_predictions(run, model, data, tmp_path):
    code, out, err = run("eval", model, data, *SHORT, "--predictions", tmp_path / "p.jsonl")
    assert (code, err) == (OK, "")
    said = lines(tmp_path / "p.jsonl")
    assert [row["row"] for row in said] == [f"rows.jsonl:{i}" for i in range(1, 7)]
    rows = lines(data)
    for row, prediction in zip(rows[:5], said, strict=False):  # now five of them are right
        row["answer"] = prediction["answer"]
    rewrite(data, rows)
    code, out, err = run("eval", model, data, *SHORT, "--json", tmp_path / "o.json")
    assert (code, err) == (OK, "")
    assert cells(out)[1][:4] == ["task", "rows", "metric", "score"]
    assert [row[:4] for row in cells(out) if row[0] in ("a", "b", "all rows")] == [
        ["a", "3", "exact", "100.0 %"],
        ["b", "3", "exact", "66.7 %"],
        ["all rows", "6", "exact", "83.3 %"],
    ]
    told = json.loads((tmp_path / "o.json").read_text())
    assert told["model"] == str(model) and told["data"] == [str(data)]
    assert told["total"]["score"] == pytest.approx(5 / 6, abs=1e-6) and told["total"]["rows"] == 6
    assert told["settings"]["max_new_tokens"] == 3 and told["settings"]["decoding"] == "greedy"
    assert told["versions"].keys() >= {"qvl", "torch"} and told["date"].startswith("20")


def test_options_reach_the_rows(run, model, data, tmp_path):
    options = (
        "--metric",
        "match",
        "--metric",
        "b=contains",
        "--limit",
        4,
        "--max-pixels",
        3136,
        "--system",
        "Hm.",
    )
    code, out, _ = run("eval", model, data, *SHORT, *options, "--json", tmp_path / "o.json")
    assert code == OK
    told = json.loads((tmp_path / "o.json").read_text())
    assert [(task["task"], task["metric"], task["rows"]) for task in told["tasks"]] == [
        ("a", "match", 2),
        ("b", "contains", 2),
    ]
    assert (told["settings"]["max_pixels"], told["settings"]["system"]) == (3136, "Hm.")
    number = rewrite(tmp_path / "n.jsonl", [lines(data)[0] | {"answer": "3"}])
    _, out, _ = run("eval", model, number, *SHORT, "--metric", "number", "--tolerance", 0.5)
    assert "number (tolerance" in out


def test_broken_rows_are_told_and_count_as_wrong(run, model, data):
    (data.parent / "1.png").write_bytes(b"no picture")
    with data.open("a") as file:
        file.write("{broken\n")
    code, out, err = run("eval", model, data, *SHORT)
    assert code == OK
    assert "1 of 7 rows cannot be asked; rows.jsonl:7: " in err and "not valid JSON" in err
    assert "rows.jsonl:2: MediaDecodeError: " in err and "1.png" in err
    head, total = cells(out)[1], next(row for row in cells(out) if row[0] == "all rows")
    assert (total[head.index("rows")], total[head.index("errors")]) == ("7", "2")
    code, out, err = run("eval", model, data, *SHORT, "--strict")
    assert code == USAGE and not out and "rows.jsonl:7" in err
    rewrite(data, [json.loads(line) for line in data.read_text().splitlines()[:6]])
    code, out, err = run("eval", model, data, *SHORT, "--strict")
    assert code == USAGE and not out and err.startswith("qvl: rows.jsonl:2: ")


def test_no_row_that_can_be_asked(run, model, data):
    rows = [
        row | {"messages": [{"role": "user", "content": [{"type": "image", "path": "no.png"}]}]}
        for row in lines(data)
    ]
    code, out, err = run("eval", model, rewrite(data, rows), *SHORT)
    assert code == FAILED and "all rows" in out and err.count("no.png") == 6


def interrupt(monkeypatch, after: int) -> list:
    """Ctrl-C as the answer to row ``after`` is kept; returns the rows that are answered from then on."""
    from qvl.evaluate.predictions import PredictionsFile

    seen, real = [], PredictionsFile.add

    def add(self, prediction):
        real(self, prediction)
        seen.append(prediction.row)
        if len(seen) == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(PredictionsFile, "add", add)
    return seen


def test_going_on_after_ctrl_c(run, model, data, tmp_path, monkeypatch):
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    assert run("eval", model, data, *SHORT, "--predictions", whole)[0] == OK
    seen = interrupt(monkeypatch, 2)
    code, out, err = run("eval", model, data, *SHORT, "--predictions", part, "--batch", 1)
    assert code == INTERRUPTED and not out
    assert f"rows are answered and kept in {part}; --resume goes on" in err
    assert len(lines(part)) == 2
    with part.open("a") as file:
        file.write('{"row": "rows.jsonl:3", "id')  # as a kill would leave it
    code, out, _ = run("eval", model, data, *SHORT, "--predictions", part, "--resume")
    assert code == OK and "all rows" in out
    assert sorted(seen) == [f"rows.jsonl:{i}" for i in range(1, 7)]
    assert [row["answer"] for row in lines(part)] == [row["answer"] for row in lines(whole)]
    assert [row["row"] for row in lines(part)] == [row["row"] for row in lines(whole)]


def test_going_on_asks_what_has_changed(run, model, data, tmp_path, monkeypatch):
    kept = tmp_path / "p.jsonl"
    assert run("eval", model, data, *SHORT, "--predictions", kept)[0] == OK
    seen = interrupt(monkeypatch, 0)
    rows = lines(data)
    rows[2]["messages"][0]["content"][1]["text"] = "Something else?"
    rewrite(data, rows)
    assert run("eval", model, data, *SHORT, "--predictions", kept, "--resume")[0] == OK
    assert seen == ["rows.jsonl:3"]
    assert run("eval", model, data, "--max-new-tokens", 2, "--predictions", kept, "--resume")[0] == OK
    assert len(seen) == 7 and len(lines(kept)) == 6


def test_a_new_checkpoint_under_the_old_name_is_asked_anew(run, data, tmp_path, monkeypatch):
    model = write_checkpoint(tmp_path / "model")
    kept = tmp_path / "p.jsonl"
    assert run("eval", model, data, *SHORT, "--predictions", kept)[0] == OK
    seen = interrupt(monkeypatch, 0)
    write_checkpoint(tmp_path / "model", seed=1)
    assert run("eval", model, data, *SHORT, "--predictions", kept, "--resume")[0] == OK
    assert len(seen) == 6


def test_what_is_refused(run, model, data, tmp_path):
    kept = tmp_path / "kept.jsonl"
    kept.write_text("{}\n")
    for words, message in [
        ((tmp_path / "no.jsonl",), "There is no file"),
        ((data, "--metric", "nearly"), "there is no metric 'nearly'"),
        ((data, "--metric", "exact", "--metric", "anls"), "give one, and TASK=METRIC"),
        ((data, "--resume"), "--predictions"),
        ((data, "--predictions", kept), "is there already"),
        ((data, "--predictions", kept, "--resume"), "is no prediction of qvl eval"),
        ((data, "--json", tmp_path / "no" / "o.json"), "there is no folder"),
        ((data, "--json", tmp_path), "is a folder"),
        ((data, "--fps", 0), "--fps must be a positive"),
        ((data, "--kv-memory", "much"), "is no size"),
        ((data, "--prompt", "Briefly."), "must hold {question}"),
        ((data, "--repetition-penalty", 0), "must be above 0"),
    ]:
        code, out, err = run("eval", model, *words)
        assert code == USAGE and message in err and not out, words


def test_files_of_the_same_name_are_told_apart(run, model, data, tmp_path):
    (tmp_path / "other").mkdir()
    other = rewrite(tmp_path / "other" / "rows.jsonl", lines(data)[:1])
    options = ("--image-root", tmp_path, "--predictions", tmp_path / "p.jsonl")
    assert run("eval", model, data, other, *SHORT, *options)[0] == OK
    names = [row["row"] for row in lines(tmp_path / "p.jsonl")]
    assert len(set(names)) == 7 and names[-1] == f"{other}:1"


def test_tables_are_streamed(run, model, data, tmp_path):
    (tmp_path / "b.tsv").write_text("question\tA\tB\tanswer\timage\nWhich?\tcat\tdog\tA\t0.png\n")
    code, out, err = run("eval", model, tmp_path / "b.tsv", *SHORT)
    assert (code, err) == (OK, "")
    assert [row[:3] for row in cells(out) if row[0] == "b"] == [["b", "1", "choice"]]


def test_a_bar_only_on_a_terminal(monkeypatch, capsys):
    with command._bar("asking") as show:
        show(1, 2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with command._bar("asking \x1b[31m[red]") as show:
        show(1, 2)
    shown = capsys.readouterr().err
    assert "asking \N{REPLACEMENT CHARACTER}[31m[red]" in shown and "1/2" in shown
