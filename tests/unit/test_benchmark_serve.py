"""The benchmark of the server: its arithmetic, its clients against real servers, and a whole quick run."""

import json
import math
from pathlib import Path

import httpx
import pytest
from tokenizers import Tokenizer

from benchmarks import checkpoints, limits, serve, serve_phases, serve_targets, served, streams
from benchmarks.checkpoints import BUNDLED, TINY
from benchmarks.rounds import Measurement, Run
from benchmarks.served import BATCHED, QVL
from benchmarks.streams import Answer, Chat, question, together
from benchmarks.targets import held_against
from support.serving import ScriptedEngine, bundled_processor, fake_backend, live_server


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """Where checkpoints and logs are kept here, instead of the person's folder."""
    made = tmp_path_factory.mktemp("benchmarks")
    with pytest.MonkeyPatch.context() as patch:
        for module in (checkpoints, limits, serve, served):
            patch.setattr(module, "WORK", made)
        patch.setattr(serve, "Gauge", lambda *_: dict)  # the limits have tests of their own
        yield made


def answer(*times: float, asked: float = 0.0, tokens: int | None = None) -> Answer:
    return Answer(tokens or len(times), asked, list(times), ended=times[-1])


def test_a_step_is_timed_while_all_streams_run():
    slow_start, early_end = answer(4, 5, 6, 7, 8), answer(1, 2, 3, 4, 5, 6, 7)
    assert streams.seconds_of_steps([slow_start, early_end]) == 1.0
    crowded = [answer(1, 2, 3, 4), answer(1.5, 2.5, 3.5, 4.5)]
    assert streams.seconds_of_steps(crowded) == pytest.approx(1.0)


def test_streams_that_follow_each_other_are_timed_from_the_first_to_the_last_token():
    assert streams.seconds_of_steps([answer(1, 2, 3), answer(4, 5, 6)]) == 2.0


def test_pieces_of_several_tokens_count_for_all_of_them():
    assert streams.seconds_of_steps([answer(0, 1, 2, 3, tokens=8)]) == 0.5


def test_prompts_are_counted_from_the_first_request_to_the_last_end():
    assert streams.seconds_with_prompts([answer(2, 3, asked=1), answer(4, 9, asked=2)]) == 4.0
    assert streams.first_token([answer(2, 3, asked=1), answer(4, 9, asked=2), answer(9, asked=0)]) == 2.0


def test_gaps_are_those_that_reach_into_the_time():
    assert streams.gaps(answer(0, 1, 3, 6, 10, 15), 2, 9) == [2, 3, 4]
    assert streams.gaps(answer(0, 1, 3), 4, 9) == []


def test_every_number_has_a_word_and_no_text_is_cut_otherwise():
    contents = json.loads((BUNDLED / "tokenizer.json").read_text(encoding="utf-8"))
    before = Tokenizer.from_str(json.dumps(contents))
    first = before.get_vocab_size()
    served.add_words(contents, first + 198)
    after = Tokenizer.from_str(json.dumps(contents))
    words = [after.decode([number], skip_special_tokens=False) for number in range(first, first + 198)]
    assert len(set(words)) == 198 and all(word.strip() and word.endswith(" ") for word in words)
    text = "<|im_start|>user\nWhat number is aaaa written <|image_pad|> here? 42<|im_end|>"
    assert after.encode(text).ids == before.encode(text).ids


def test_pictures_differ_by_their_seed_alone():
    assert streams.picture_uri(56, 1) == streams.picture_uri(56, 1) != streams.picture_uri(56, 2)


def asked_of(backend, tokens: int, **more) -> Answer:
    with live_server(backend) as server:
        chat = Chat(server.url, "qvl/tiny", own=True)
        return together(lambda client: chat.ask(client, question("one"), tokens, **more))


# Ordinary tokens, each shown at once, and one that is never shown.
WORDS = bundled_processor().tokenizer.encode(" red green blue circle square star first second left right")
HIDDEN = bundled_processor().tokenizer.convert_tokens_to_ids("<|object_ref_start|>")
assert len(WORDS) == 10


def test_a_client_sees_when_tokens_arrive():
    engine = ScriptedEngine(WORDS, pause=0.03)
    found = asked_of(fake_backend(engine=engine), 6)
    assert (len(found.times), found.tokens, found.finish) == (6, 6, "length")
    assert found.first > 0.02 and found.ended >= found.times[-1]
    assert streams.seconds_of_steps([found]) == pytest.approx(0.03, rel=0.5)


def test_a_client_that_has_enough_leaves():
    engine = ScriptedEngine(WORDS * 50, pause=0.01)
    backend = fake_backend(engine=engine)
    found = asked_of(backend, 400, enough=lambda answer: len(answer.times) == 3)
    assert len(found.times) == 3 and not found.ended
    assert backend.service.jobs == 0


@pytest.mark.parametrize(
    ("script", "reason"),
    [(WORDS[:3], "asked for 6 tokens, got 3, ended by"), ([HIDDEN] * 6, "6 tokens arrived in 0 pieces")],
    ids=["short", "silent"],
)
def test_an_answer_that_is_not_what_was_asked_for_is_no_measurement(script, reason):
    with pytest.raises(RuntimeError, match=reason):
        asked_of(fake_backend(engine=ScriptedEngine(script)), 6)


def test_a_server_that_refuses_is_no_measurement():
    with pytest.raises(RuntimeError, match="answered 400"):
        asked_of(fake_backend(), 10**9)
    nowhere = Chat("http://127.0.0.1:9", "", own=True)
    with pytest.raises(RuntimeError, match="ConnectError"):
        together(lambda client: nowhere.ask(client, question("x"), 1))


def test_a_server_that_ends_is_no_measurement():
    broken = served.Way("broken", (served.sys.executable, "-c", "print('no such model')"), "/ready")
    with pytest.raises(RuntimeError, match="no such model"):
        served.Server(broken)
    code = f"import sys; print('not here'); sys.exit({served.UNAVAILABLE})"
    missing = served.Way("missing", (served.sys.executable, "-c", code), "/ready")
    with pytest.raises(served.PeerUnavailable, match="not here"):
        served.Server(missing)


def test_figures_of_a_turn_stand_beside_its_seconds():
    run = Run(TINY, rounds=2, gauge=dict)
    uncounted, *counted = ({"steps": s, serve_phases.CLIENT: s / 10} for s in (9.0, 1.0, 3.0))
    turns = iter([uncounted, *counted])
    bench = serve_phases.Bench(run, serve_phases.QUICK, ())
    bench.measure("throughput", "steps", {"a": lambda: next(turns)}, {"a": (None, 8)})
    assert [(m.case, m.samples, m.unit, m.tokens) for m in run.measurements] == [
        ("steps", [1.0, 3.0], "s", 8),
        (serve_phases.CLIENT, [0.1, 0.3], "x", 0),
    ]


def test_targets_compare_round_for_round():
    def measured(section: str, case: str, who: str, *samples: float) -> Measurement:
        return Measurement(section, case, who, list(samples))

    names = serve_targets
    rows = held_against(
        [
            measured(names.THROUGHPUT, f"text, {names.STEPS}", f"{QVL} x 1", 1.0, 2.0, 3.0),
            measured(names.THROUGHPUT, f"text, {names.STEPS}", f"{QVL} x 8", 2.0, 4.0, 3.0),
            measured(names.THROUGHPUT, f"text, {names.STEPS}", f"{BATCHED} x 8", 6.0, 8.0, 9.0),
            measured(names.PICTURE, names.ASKED, QVL, 10.0, 20.0, 30.0),
            measured(names.PICTURE, names.AGAIN, QVL, 1.0, 4.0, 6.0),
            measured(names.GAPS, names.ALLOWED, f"{QVL} x 4", 0.2, 1.4, 0.3),
        ],
        names.serve_targets(),
    )
    found = {row["what"]: (row["measured"], row["holds"]) for row in rows if row["measured"] is not None}
    assert found == {
        "text, tokens/s of 8 streams / of 1": (4.0, True),
        f"time to the first token: {names.AGAIN} / {names.ASKED}": (0.2, False),
        f"{names.ALLOWED}, {QVL} x 4, worst of all rounds": (1.4, False),
        f"text, {names.STEPS}, 8 at once: {BATCHED} / {QVL}": (3.0, None),
    }


def test_results_are_pasted_between_the_marks(tmp_path):
    result, document = tmp_path / "result.md", tmp_path / "serving.md"
    result.write_text("# Benchmarks\n\n## gaps\n\n| a |\n", encoding="utf-8")
    document.write_text(f"before\n{serve.BEGIN}\nold\n{serve.END}\nafter\n", encoding="utf-8")
    serve.main(["--paste", str(document), "--result", str(result)])
    text = f"before\n{serve.BEGIN}\n## Benchmarks\n\n### gaps\n\n| a |\n{serve.END}\nafter\n"
    assert document.read_text(encoding="utf-8") == text
    document.write_text("no marks", encoding="utf-8")
    with pytest.raises(SystemExit, match="lacks the lines"):
        serve.main(["--paste", str(document), "--result", str(result)])


def test_a_quick_run_measures_everything_that_is_asked(tmp_path, capsys):
    """qvl's own process, on the tiny checkpoint."""
    path = serve.main(
        ["start", "throughput", "picture", "gaps", "--quick", "--without-peers", "--out", str(tmp_path)]
    )
    result = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    stopped = [note for note in result["notes"] if "stopped" in note or "left out" in note]
    assert stopped == [], capsys.readouterr().out[-2000:]
    asked = [row for row in result["targets"] if row["asked"] is not None]
    assert len(asked) == 5
    assert all(row["measured"] > 0 and isinstance(row["holds"], bool) for row in asked)
    sections = {m["section"] for m in result["measurements"]}
    assert sections - {"memory"} == {"start", "throughput", "picture", "gaps"}
    assert ("memory" in sections) == Path("/proc/self/status").exists()
    for measured in result["measurements"]:
        assert len(measured["samples"]) == 1 and math.isfinite(measured["median"])
        assert measured["median"] > 0, measured
    text = path.read_text(encoding="utf-8")
    assert "## what it must show" in text and "not measured" not in text


@pytest.mark.oracle
def test_a_loop_around_generate_says_the_same():
    """The peer that batches, behind the same interface: rows of one batch, pictures among them."""
    pytest.importorskip("transformers")
    questions = [question("a"), question("b", streams.picture_uri(84, 3)), question("c and more")]
    said = {}
    for name in (BATCHED, QVL):
        with served.Server(served.way(name, TINY)) as server:
            chat = Chat(server.url, str(served.served_checkpoint(TINY)), name == QVL, pieces=0.25)

            async def ask(client: httpx.AsyncClient, chat=chat) -> list[Answer]:
                return await chat.ask_all(client, questions, 8)

            said[name] = [a.text for a in together(ask)]
    # A character that the last token leaves unfinished: the peer shows a mark for it, qvl nothing.
    unfinished = "\N{REPLACEMENT CHARACTER}"
    assert said[QVL] == [text.removesuffix(unfinished) for text in said[BATCHED]]
    assert all(len(text.split()) >= 4 for text in said[QVL])
