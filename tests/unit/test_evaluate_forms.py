"""Files of questions as public benchmarks give them out: their form, what is asked, where pictures lie."""

from __future__ import annotations

import base64
import builtins
import csv
import json

import pytest
from PIL import Image

from qvl.errors import InputError, MissingDependencyError, RowError
from qvl.evaluate import Asking, read_questions
from qvl.evaluate.forms import SHORT, Naming, rows_of
from qvl.evaluate.records import picture_of, read_records

SHORTLY = "\nAnswer the question using a single word or phrase."


@pytest.fixture
def folder(tmp_path):
    for name in ("documents/a_1.png", "png/7.png", "train_images/x9.jpg", "plain.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (30, 30)).save(tmp_path / name)
    return tmp_path


def questions(path, naming=None, asking=None):
    naming = naming or Naming()
    return list(read_questions(rows_of(read_records(path), path, naming), asking or Asking(), path.name))


def written(folder, name, value):
    path = folder / name
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def said(question) -> tuple[str, list]:
    *pictures, text = question.messages[0]["content"]
    return text["text"], [picture["image"] for picture in pictures]


DOCVQA = {
    "questionId": 5,
    "question": "Who?",
    "image": "documents/a_1.png",
    "docId": 1,
    "answers": ["Ann", "ann b"],
}
INFOVQA = {"questionId": 6, "question": "Who?", "image_local_name": "plain.png", "answers": ["3"]}
CHARTQA = {"imgname": "7.png", "query": "How many?", "label": "14"}
CHARTQA_HUB = {"type": "human_test", "question": "How many?", "answer": ["14"], "image": "7.png"}
PEOPLE = [{"answer": "yes", "answer_confidence": "yes", "answer_id": i} for i in range(10)]
TEXTVQA = {"question": "Who?", "image_id": "x9", "image_classes": [], "question_id": 3, "answers": ["a"] * 10}
VQAV2 = {"question": "Is it?", "image": "plain.png", "answers": PEOPLE, "multiple_choice_answer": "yes"}


@pytest.mark.parametrize(
    ("value", "metric", "references", "picture"),
    [
        ({"data": [DOCVQA], "dataset_name": "docvqa"}, "anls", ("Ann", "ann b"), "documents/a_1.png"),
        ({"data": [DOCVQA | {"image": "a_1.png"}]}, "anls", ("Ann", "ann b"), "documents/a_1.png"),
        ({"data": [INFOVQA]}, "anls", ("3",), "plain.png"),
        ([CHARTQA], "relaxed", ("14",), "png/7.png"),
        ([CHARTQA_HUB], "relaxed", ("14",), "png/7.png"),
        ({"data": [TEXTVQA]}, "vqa", ("a",) * 10, "train_images/x9.jpg"),
        ([VQAV2], "vqa", ("yes",) * 10, "plain.png"),
    ],
    ids=["docvqa", "docvqa, bare name", "infovqa", "chartqa", "chartqa of the hub", "textvqa", "vqav2"],
)
def test_public_forms(folder, value, metric, references, picture):
    (question,) = questions(written(folder, "q.json", value))
    text, pictures = said(question)
    assert text.endswith(SHORTLY) and not text.startswith("\n")
    assert pictures == [str(folder / picture)]
    assert (question.scoring.name, question.references) == (metric, references)
    (other,) = questions(written(folder, "q.json", value), asking=Asking(metric="contains"))
    assert other.scoring.name == "contains"


def test_names_and_tasks_of_rows(folder):
    (document,) = questions(written(folder, "val.json", {"data": [DOCVQA]}))
    assert (document.name, document.key) == ("val.json:1", 5)
    rows = [CHARTQA_HUB, CHARTQA_HUB | {"type": "augmented_test"}]
    assert [q.task for q in questions(written(folder, "c.json", rows))] == ["human_test", "augmented_test"]


def test_one_object_over_many_lines_and_on_one(folder):
    for indent in (None, 2):
        path = written(folder, "q.json", json.dumps({"data": [DOCVQA, DOCVQA]}, indent=indent))
        assert len(questions(path)) == 2
    path = written(folder, "q.jsonl", "\n".join([json.dumps(INFOVQA)] * 3))
    assert [q.name for q in questions(path)] == ["q.jsonl:1", "q.jsonl:2", "q.jsonl:3"]


def test_a_test_set_whose_answers_are_kept_back(folder):
    path = written(folder, "test.json", {"data": [{k: v for k, v in DOCVQA.items() if k != "answers"}]})
    (refused,) = questions(path)
    assert "no answer to compare with" in str(refused.error)
    (question,) = questions(path, asking=Asking(metric="none"))
    assert (question.references, question.scoring.name, question.key) == ((), "none", 5)


def test_tables_of_choices(folder):
    data = base64.b64encode((folder / "plain.png").read_bytes()).decode()
    with (folder / "bench.tsv").open("w", newline="") as file:
        table = csv.DictWriter(
            file, ("index", "question", "hint", "A", "B", "C", "answer", "image"), delimiter="\t"
        )
        table.writeheader()
        table.writerow(
            {"index": 1, "question": "Which?", "hint": "Look.", "A": "cat", "B": "dog", "answer": "B"}
        )
        table.writerow(
            {"index": 2, "question": "Who?", "A": "x", "B": "y", "C": "z", "answer": "C", "image": data}
        )
    first, second = questions(folder / "bench.tsv")
    assert said(first) == (
        "Hint: Look.\nQuestion: Which?\nOptions:\nA. cat\nB. dog\n"
        "Please select the correct answer from the options above.",
        [],
    )
    assert first.scoring.settings["choices"] == ["cat", "dog"] and first.references == ("B",)
    assert len(said(second)[1]) == 1 and second.key == "2" and second.name == "bench.tsv:3"


def test_fields_that_somebody_names(folder):
    rows = [
        {"photo": ["plain.png", "png/7.png"], "ask": "What?", "truth": "cat", "messages": "of something else"}
    ]
    path = written(folder, "mine.jsonl", json.dumps(rows[0]))
    naming = Naming("photo", "ask", "truth", "{question}\\nBriefly.", folder)
    (question,) = questions(path, naming)
    assert said(question) == ("What?\nBriefly.", [str(folder / "plain.png"), str(folder / "png/7.png")])
    assert question.references == ("cat",) and question.scoring.name == "exact"
    with pytest.raises(InputError, match="must hold"):
        Naming(prompt="Briefly.")


def test_plain_questions_are_asked_as_they_are(folder):
    row = {"question": "What?", "image": "plain.png", "answer": "2", "metric": "number", "tolerance": 0.5}
    (question,) = questions(written(folder, "q.jsonl", json.dumps(row)))
    assert said(question)[0] == "What?" and question.scoring.name == "number (tolerance 0.5)"
    (asked,) = questions(written(folder, "q.jsonl", json.dumps(row)), Naming(prompt=SHORT))
    assert said(asked)[0] == "What?" + SHORTLY


def test_conversations_are_read_as_training_reads_them(folder):
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "a cat"}]
    rows = [{"conversations": turns, "images": ["plain.png"], "task": "t"}, {"query": "A?", "response": "B"}]
    path = written(folder, "rows.jsonl", "\n".join(map(json.dumps, rows)))
    first, second = questions(path)
    assert (first.references, first.task, second.references) == (("a cat",), "t", ("B",))
    assert first.messages[0]["content"][0]["image"] == str(folder / "plain.png")


def test_bad_rows_stand_in_their_place(folder):
    lines = [json.dumps(INFOVQA), "{", "7", json.dumps({"image_local_name": "plain.png", "answers": ["x"]})]
    found = questions(written(folder, "q.jsonl", "\n".join(lines)))
    assert found[0].references == ("3",)
    for row, (number, reason) in zip(
        found[1:], ((2, "not valid JSON"), (3, "no JSON object"), (4, "no text under question")), strict=True
    ):
        assert isinstance(row.error, RowError) and row.error.line == number
        assert reason in str(row.error) and row.name == f"q.jsonl:{number}"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.json", None, "There is no file"),
        ("empty.jsonl", "", "holds no rows"),
        ("object.json", '{"info":\n 3}', "without a list of questions"),
    ],
    ids=["missing", "empty", "object"],
)
def test_files_that_hold_no_questions(folder, name, content, message):
    if content is not None:
        written(folder, name, content)
    with pytest.raises(InputError, match=message):
        questions(folder / name)


def test_records_of_no_form(folder):
    (row,) = questions(written(folder, "q.jsonl", '{"caption": "x", "picture": "y"}'))
    assert "fields caption, picture" in str(row.error) and "--question-key" in str(row.error)


def test_parquet_without_pyarrow(folder, monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    written(folder, "x.parquet", "PAR1")
    with pytest.raises(MissingDependencyError, match="pip install pyarrow"):
        questions(folder / "x.parquet")


def test_parquet_with_pictures_inside(folder):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    data = (folder / "plain.png").read_bytes()
    rows = [DOCVQA | {"image": {"bytes": data, "path": None}}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "v.parquet")
    (question,) = questions(folder / "v.parquet")
    assert said(question)[1] == [data] and question.scoring.name == "anls"
    written(folder, "bad.parquet", "nothing")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        questions(folder / "bad.parquet")


def test_how_pictures_are_named(tmp_path):
    assert picture_of({"bytes": b"x", "path": "a.png"}, tmp_path) == b"x"
    assert picture_of({"bytes": None, "path": "a.png"}, tmp_path) == str(tmp_path / "a.png")
    assert picture_of("https://example.org/a.png", tmp_path) == "https://example.org/a.png"
    assert picture_of("/abs/a.png", tmp_path) == "/abs/a.png"
    assert picture_of("A" * 2000, tmp_path) == "A" * 2000
