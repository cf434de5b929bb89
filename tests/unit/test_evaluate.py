"""Evaluation from rows to a report, with the bundled model: what is asked, counted, kept and refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import qvl.evaluate.run as run_module
from qvl import AutoProcessor, Qwen2_5_VLForConditionalGeneration
from qvl.engine.fake import FakeEngine
from qvl.errors import InputError, InputTypeError, MediaNotFoundError, RowError
from qvl.evaluate import (
    Asking,
    Prediction,
    Report,
    Settings,
    ask_questions,
    evaluate,
    question_of,
    read_questions,
)
from qvl.evaluate.asking import Asker
from qvl.evaluate.predictions import PredictionsFile, answered, read_predictions, write_predictions
from qvl.evaluate.preparing import Preparer, digest, shared_sources
from qvl.evaluate.tables import cells, markdown
from qvl.hub import BUNDLED
from qvl.processing.rows import Objects, Row
from qvl.types import SamplingParams

NAME = next(iter(BUNDLED))
PICTURES = Path(__file__).parents[2] / "examples" / "pictures"
FEW = Settings(max_new_tokens=6)


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(NAME)


@pytest.fixture(scope="module")
def model():
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(NAME, dtype=torch.float32)


def noise(seed: int, width: int, height: int) -> Image.Image:
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 255, (height, width, 3), np.uint8))


def asked(*media, text: str = "Which number is this?", **values) -> dict:
    items = [{"type": "video" if isinstance(one, list) else "image", "image": one} for one in media]
    for item in items:
        if item["type"] == "video":
            item["video"] = item.pop("image")
    return {"messages": [{"role": "user", "content": [*items, {"type": "text", "text": text}]}], **values}


def mixed_rows() -> list[dict]:
    """Pictures of several sizes, two of them, a film, and text alone."""
    rows = [asked(noise(i, 40 + 17 * i, 60 + 11 * i), answer="7") for i in range(6)]
    rows.append(asked(noise(7, 60, 60), noise(8, 90, 40), answer="7"))
    rows.append(asked([noise(9, 56, 56)] * 4, answer="7"))
    rows.append(asked(text="Hello", answer="7"))
    for name in ("two_digits.png", "one_digit.png"):
        rows.append(asked(Image.open(PICTURES / name), answer="7"))
    return rows


def generated(model, processor, messages, tokens: int) -> str:
    inputs = processor.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    ids = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, repetition_penalty=1.0)
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("at_once", [1, 3, 64])
def test_answers_are_those_of_generate(model, processor, at_once):
    rows = mixed_rows()
    alone = [generated(model, processor, row["messages"], 6) for row in rows]
    found = evaluate(model, processor, rows, settings=Settings(max_new_tokens=6, max_sequences=at_once))
    assert [prediction.answer for prediction in found.predictions] == alone
    assert [prediction.row for prediction in found.predictions] == [f"row {i + 1}" for i in range(len(rows))]
    assert len(set(alone)) > 1


def test_questions_about_one_picture_share_it(model, processor, tmp_path):
    for name in ("a", "b"):
        noise(ord(name), 200, 120).save(tmp_path / f"{name}.png")
    rows = [
        asked(str(tmp_path / f"{n}.png"), text=t, answer="1") for n in "ab" for t in ("What?", "Who?", "Why?")
    ]
    questions = list(read_questions(rows, Asking()))
    assert shared_sources(questions) == {str(tmp_path / "a.png"), str(tmp_path / "b.png")}
    prepare = Preparer(processor, model.config, shared=shared_sources(questions))
    digests = [prepare(question).prompt.media[0].digest for question in questions]
    assert len(set(digests)) == 2 and None not in digests
    assert Preparer(processor, model.config)(questions[0]).prompt.media[0].digest is None
    engines = []
    real = run_module.Engine
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "Engine", lambda *args: engines.append(real(*args)) or engines[-1])
        found = evaluate(model, processor, rows, settings=FEW)
    assert engines[0].stats().media_encoded == 2
    assert engines[0].stats().prefix_tokens > 0
    assert [p.answer for p in found.predictions] == [
        generated(model, processor, row["messages"], 6) for row in rows
    ]


def test_digests_tell_films_apart(processor, model):
    prepare = Preparer(processor, model.config)
    (question,) = read_questions([asked([noise(1, 56, 56)] * 4, answer="1")], Asking())
    (medium,) = prepare(question).prompt.media
    slower = replace(medium, seconds_per_grid=2 * medium.seconds_per_grid)
    assert digest(medium) == digest(replace(medium)) != digest(slower)


def test_scores_by_task_with_a_total(model, processor):
    rows = mixed_rows()[:4]
    alone = [generated(model, processor, row["messages"], 6) for row in rows]
    for row, answer, task in zip(rows, [alone[0], "wrong", alone[2], alone[3]], "xxyy", strict=True):
        row |= {"answer": answer, "task": task}
    found = evaluate(model, processor, rows, metrics={"y": "match"}, settings=FEW)
    assert [(t.task, t.metric, t.rows, t.score) for t in found.tasks] == [
        ("x", "exact", 2, 0.5),
        ("y", "match", 2, 1),
    ]
    assert (found.total.task, found.total.metric, found.total.score) == ("all rows", "mixed", 0.75)
    assert found.total.low < 0.75 < found.total.high
    told = json.loads(json.dumps(found.to_dict()))
    assert told["tasks"][0]["score"] == 0.5 and told["total"]["rows"] == 4
    assert markdown(found).splitlines()[2].startswith("| x | 2 | exact | 50.0 % | 9.5 % - 90.5 % |")


def test_cut_off_and_limit(model, processor):
    seen = []
    found = evaluate(
        model,
        processor,
        mixed_rows(),
        settings=Settings(max_new_tokens=1),
        limit=3,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert found.total.rows == found.total.cut_off == 3
    assert all(prediction.finish == "length" and prediction.tokens == 1 for prediction in found.predictions)
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_rows_of_a_generator_are_drawn_as_they_are_needed(model, processor):
    drawn, ahead = [], []

    def rows():
        for i in range(40):
            drawn.append(i)
            yield asked(noise(i, 40, 40), answer="7")

    def watch(prediction):
        ahead.append(len(drawn) - len(ahead))

    settings = Settings(max_new_tokens=2, max_sequences=4)
    assert len(evaluate(model, processor, rows(), settings=settings, on_answer=watch).predictions) == 40
    assert max(ahead) <= 4 + 8  # in the engine, and with the workers


def test_patches_that_wait_are_bounded(model, processor):
    """With room for a byte only one question is under way at a time."""
    questions = list(read_questions(mixed_rows(), Asking()))
    held = []

    class Watched(FakeEngine):
        def step(self):
            held.append(len(self._sequences))
            return super().step()

    prepare = Preparer(processor, model.config)
    asker = Asker(Watched([1, 2, 3]), prepare, SamplingParams(max_new_tokens=9), 64, most_bytes=1)
    assert len(list(asker.ask(questions))) == len(questions)
    assert max(held) <= 2 * asker.workers
    assert max(held[-9:]) == 1  # three answers of three tokens


def test_a_broken_picture_counts_as_wrong(model, processor, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    rows = [
        asked(noise(1, 40, 40), answer="7", task="t"),
        asked(str(tmp_path / "missing.png"), answer="7", task="t"),
        asked(str(tmp_path / "broken.png"), answer="7", task="t"),
        {"task": "t", "answer": "7"},
        RowError("file.jsonl", 9, "not valid JSON"),
    ]
    rows[0]["answer"] = generated(model, processor, rows[0]["messages"], 6)
    found = evaluate(model, processor, rows, settings=FEW)
    assert [bool(prediction.error) for prediction in found.predictions] == [False, True, True, True, True]
    assert "missing.png" in found.predictions[1].error and "MediaNotFoundError" in found.predictions[1].error
    assert found.predictions[4].error == "RowError: not valid JSON"
    (first, _) = found.tasks
    assert (first.rows, first.errors, first.score, first.unanswered) == (4, 3, 0.25, 0)
    with pytest.raises(MediaNotFoundError, match=r"row 2: .*missing\.png"):
        evaluate(model, processor, rows[:2], settings=FEW, strict=True)
    with pytest.raises(InputError, match="row 1: it has no messages"):
        evaluate(model, processor, rows[3:], settings=FEW, strict=True)


def test_every_row_is_told_where_none_can_be_asked(model, processor, tmp_path):
    """More of them than are looked at ahead."""
    rows = [asked(str(tmp_path / f"{i}.png"), answer="7") for i in range(40)]
    assert evaluate(model, processor, rows, settings=Settings(max_sequences=2)).total.errors == 40


def test_a_question_that_the_engine_refuses(model, processor):
    """The others are answered; more positions than the model has cannot be."""
    long = "7 " * model.config.text_config.max_position_embeddings
    rows = [asked(text=long, answer="7"), asked(noise(1, 40, 40), answer="7")]
    first, second = evaluate(model, processor, rows, settings=FEW).predictions
    assert "PromptTooLongError" in first.error and not second.error


def scripted(monkeypatch, processor, model, text: str) -> None:
    """The engine says ``text`` to everything."""
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    script = [*ids, model.generation_config.eos_token_ids[0]]
    monkeypatch.setattr(run_module, "Engine", lambda *_: FakeEngine(script))


def test_boxes_in_original_pixels(model, processor, monkeypatch, tmp_path):
    """The answer speaks of the resized picture; EXIF turns the file by a quarter."""
    picture = noise(1, 100, 60)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    scripted(monkeypatch, processor, model, '{"bbox_2d": [0, 0, 28, 28]}')
    row = asked(str(tmp_path / "turned.png"), metric="iou")
    (prepared,) = [
        Preparer(processor, model.config)(q) for q in read_questions([row | {"expected": []}], Asking())
    ]
    shown = prepared.picture
    assert (shown.width, shown.height) == (60, 100)
    assert shown.grid.h > shown.grid.w
    right = [0, 0, 28 * 60 / (shown.grid.w * 14), 28 * 100 / (shown.grid.h * 14)]
    rows = [row | {"expected": right}, row | {"expected": [30, 50, 60, 100]}]
    found = evaluate(model, processor, rows)
    assert [prediction.score for prediction in found.predictions] == [1, 0]
    assert found.tasks[0].details == {"precision": 0.5, "recall": 0.5, "mean IoU": 0.5}
    assert cells(found)[0][5:8] == ["precision", "recall", "mean IoU"]


def test_which_picture_boxes_lie_in(model, processor, monkeypatch):
    scripted(monkeypatch, processor, model, '{"bbox_2d": [0, 0, 28, 28]}')
    small, large = noise(1, 56, 56), noise(2, 112, 56)
    values = {"metric": "iou", "expected": [0, 0, 28, 28]}
    rows = [
        asked(small, small, **values),
        asked(small, large, **values),
        asked(small, large, picture=1, **values),
        asked(small, large, picture=2, **values),
        asked(small, large, picture=True, **values),
        asked(**values),
    ]
    found = evaluate(model, processor, rows).predictions
    assert not found[0].error and not found[2].error
    for prediction, message in zip(
        (found[1], *found[3:]),
        ("say which one", "picture is 2, but it has 2", "not True", "has no picture"),
        strict=True,
    ):
        assert message in prediction.error


def test_boxes_in_questions_are_those_of_the_resized_picture(model, processor):
    """Original pixels in the data, as in training; the question is written in the resized ones."""
    text = 'What is at {"bbox_2d": [10, 20, 40, 100]}?'
    prepare = Preparer(processor, model.config)

    def shown(*media, text=text):
        (question,) = read_questions([asked(*media, text=text, answer="x")], Asking())
        prompt = prepare(question).prompt
        return processor.decode(list(prompt.token_ids)), [medium.grid for medium in prompt.media]

    said, (grid,) = shown(noise(1, 40, 100))
    width, height = 14 * grid.w, 14 * grid.h
    assert (width, height) != (40, 100)
    assert f'"bbox_2d": [{round(width / 4)}, {round(height / 5)}, {width}, {height}]' in said
    named, grids = shown(noise(1, 40, 100), noise(2, 200, 100), text=text.replace("]}", '], "image": 1}'))
    assert f"{width}, {height}]" in named and grids[0] != grids[1]
    for media, message in (
        ((noise(1, 40, 100), noise(2, 200, 100)), "several pictures"),
        ((noise(1, 30, 40),), "outside a picture"),
    ):
        with pytest.raises(InputError, match=message):
            shown(*media)
    with pytest.raises(InputError, match='"image": 3, and there are 1'):
        shown(noise(1, 40, 100), text=text.replace("]}", '], "image": 3}'))
    assert '"bbox_2d": [10, 20, 40, 100]' in shown()[0]  # no picture, no mapping


def test_the_metric_none_only_asks(model, processor):
    found = evaluate(model, processor, mixed_rows()[:2], metric="none", settings=FEW)
    assert found.total.score is None and found.tasks[0].low is None
    assert found.predictions[0].answer
    assert cells(found)[1][3:5] == ["not scored", ""]
    both = Report((*found.predictions, Prediction("x", metric="exact", score=1.0)))
    assert (both.total.rows, both.total.score, both.total.metric) == (1, 1.0, "exact")


def test_known_rows_are_not_asked_again(model, processor):
    rows = mixed_rows()
    first = evaluate(model, processor, rows, settings=FEW, setup="one")
    known = answered(first.predictions[:5])
    again = []
    second = evaluate(model, processor, rows, settings=FEW, setup="one", known=known, on_answer=again.append)
    assert len(again) == len(rows) - 5
    assert [p.answer for p in second.predictions] == [p.answer for p in first.predictions]
    for change in ({"setup": "two"}, {"settings": replace(FEW, max_new_tokens=5)}, {"metric": "match"}):
        again.clear()
        options = {"settings": FEW, "setup": "one", "known": known, "on_answer": again.append} | change
        evaluate(model, processor, rows, **options)
        assert len(again) == len(rows), change


@pytest.mark.parametrize(
    ("row", "asking", "references", "metric"),
    [
        (asked(answer="a"), Asking(), ("a",), "exact"),
        (asked(answers=["a", "b"], answer="c"), Asking(), ("a", "b"), "exact"),
        (asked(expected=3, metric="number"), Asking(metric="match"), (3,), "number"),
        (asked(target="a", task="t"), Asking(metric="match", metrics={"t": "anls"}), ("a",), "anls"),
        (asked(target="a", form_metric="vqa"), Asking(), ("a",), "vqa"),
        (asked(target="a", form_metric="vqa"), Asking(metric="match"), ("a",), "match"),
        (asked(expected=[1, 2, 3, 4], metric="iou"), Asking(), ([1, 2, 3, 4],), "iou"),
        (asked(answer='{"bbox_2d": [1, 2, 3, 4]}'), Asking(), ('{"bbox_2d": [1, 2, 3, 4]}',), "iou"),
        (asked(answer="2", metric="number", tolerance=0.5), Asking(), ("2",), "number (tolerance 0.5)"),
        (
            asked(answer="2", metric="number"),
            Asking(settings={"tolerance": 1}),
            ("2",),
            "number (tolerance 1)",
        ),
    ],
    ids=[
        "answer",
        "answers",
        "row",
        "task",
        "form",
        "over form",
        "box",
        "guessed box",
        "own setting",
        "setting",
    ],
)
def test_what_is_compared_and_how(row, asking, references, metric):
    question = question_of(row, "x", asking)
    assert question.references == references
    assert question.scoring.name == metric


def test_the_last_turn_is_the_answer():
    turns = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": [{"type": "text", "text": "2"}]},
    ]
    question = question_of({"messages": turns}, "x", Asking(system="Be short."))
    assert question.references == ("2",)
    assert question.messages == [{"role": "system", "content": "Be short."}, *turns[:3]]
    assert question_of({"messages": turns, "expected": "3"}, "x", Asking()).references == ("3",)
    read = Row(4, turns, {"metric": "match", "task": "t"})
    (from_file,) = read_questions([read], Asking(), "a.jsonl")
    assert (from_file.name, from_file.task, from_file.scoring.name) == ("a.jsonl:4", "t", "match")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, "no messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "there is no question"),
        (asked(), "no answer to compare with"),
        (asked(answer="x", metric="number"), "needs numbers"),
    ],
    ids=["empty", "no question", "no answer", "no number"],
)
def test_rows_that_cannot_be_asked(row, message):
    with pytest.raises(InputError, match=message):
        question_of(row, "x", Asking())
    with pytest.raises(InputTypeError, match="mapping with messages"):
        question_of("text", "x", Asking())
    with pytest.raises(InputError, match="under 'objects'"):
        question_of(Row(1, asked()["messages"], {"answer": "x"}, objects=Objects((), ())), "x", Asking())


@pytest.mark.parametrize(
    "values",
    [{"max_new_tokens": 0}, {"max_sequences": 0}, {"repetition_penalty": 0.0}, {"kv_bytes": 0}],
    ids=str,
)
def test_settings_that_make_no_sense(values):
    with pytest.raises(InputError, match=next(iter(values))):
        Settings(**values)


def test_predictions_are_kept_line_by_line(tmp_path):
    path = tmp_path / "p.jsonl"
    one = Prediction("a:1", "1", "t", "exact", "ü", ("ü",), 1.0, {"iou": 0.5}, 3, 0.1, "stop", key=7)
    two = Prediction("a:2", "2", references=(3,), error="broken", finish="error")
    with PredictionsFile(path) as file:
        file.add(one)
        assert path.read_text(encoding="utf-8").count("\n") == 1  # on the disk's way at once
        file.add(two)
    with path.open("a") as file:
        file.write('{"row": "a:3", "id": "3", "sc')  # killed while it wrote
    found = read_predictions(path)
    assert found == [replace(one, references=["ü"]), replace(two, references=[3])]
    assert answered(found).keys() == {"1"}
    assert path.read_text(encoding="utf-8").endswith("}\n")
    write_predictions(path, [two, one])
    assert [p.row for p in read_predictions(path)] == ["a:2", "a:1"]
    assert [p.name for p in tmp_path.iterdir()] == ["p.jsonl"]
    path.write_text("[1, 2]\n")
    with pytest.raises(InputError, match="line 1, is no prediction"):
        read_predictions(path)


def test_text_that_is_no_unicode_is_kept(tmp_path):
    write_predictions(tmp_path / "p.jsonl", [Prediction("a", "1", answer="\ud800")])
    assert read_predictions(tmp_path / "p.jsonl")[0].answer == "\ud800"


def test_asking_stops_the_workers_when_it_is_left(model, processor):
    """What has not begun by then is never prepared."""
    prepared = []

    def prepare(question):
        prepared.append(question)
        return Preparer(processor, model.config)(question)

    questions = list(read_questions(mixed_rows() * 4, Asking()))
    asker = Asker(FakeEngine([1, 2]), prepare, SamplingParams(max_new_tokens=9), 64)
    answers = asker.ask(questions)
    next(answers)
    answers.close()
    assert len(prepared) < len(questions)


def test_questions_that_are_ready_can_be_asked(model, processor):
    questions = list(read_questions(mixed_rows()[:2], Asking(task="t")))
    found = ask_questions(model, processor, iter(questions), settings=FEW, total=2)
    assert [p.task for p in found.predictions] == ["t", "t"]
