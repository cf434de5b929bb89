"""The engine against transformers' generate() on tiny random models: the same ids, whatever is asked for."""

import pytest
import torch

from qvl.engine.beams import BeamParams
from qvl.engine.engine import Engine, EngineSettings
from qvl.engine.sequence import Hooks
from qvl.processing.positions import find_spans, multimodal_positions
from qvl.types import Grid, Medium, Prompt, SamplingParams
from support.batches import MIXED, batch, prompt_row, single
from support.tiny import IMAGE, ROPE_SCALINGS, VIDEO, random_ids, tiny_pair

pytestmark = pytest.mark.oracle
PAD = 0

ROWS = {
    "text": prompt_row(20, seed=5),
    "image": prompt_row(4, ("image", (1, 6, 10)), 6, seed=6),
    "images": prompt_row(4, ("image", (1, 6, 10)), ("image", (1, 16, 18)), 6, seed=7),
    "video": prompt_row(4, ("video", (3, 8, 6)), 6, seed=8),
    "mixed": MIXED[3],
}


@pytest.fixture(scope="module")
def pair():
    theirs, ours = tiny_pair(seed=1)
    return quiet(theirs), ours


def quiet(model):
    """No end-of-sequence id unless a test gives one, so that answers have their full length."""
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


def prompt_of(arguments):
    """Our `Prompt` for the arguments of a call with a single row."""
    ids = arguments["input_ids"][0].tolist()
    grids = {
        kind: [Grid(*g) for g in arguments.get(f"{kind}_grid_thw", torch.empty(0, 3)).tolist()]
        for kind in ("image", "video")
    }
    spans = find_spans(ids, grids["image"], grids["video"], image_token_id=IMAGE, video_token_id=VIDEO)
    pixels = {"image": arguments.get("pixel_values"), "video": arguments.get("pixel_values_videos")}
    media = []
    for span in spans:
        grid, used = grids[span.kind].pop(0), pixels[span.kind]
        media.append(Medium(span.kind, grid, used[: grid.patches], seconds_per_grid=1.0))
        pixels[span.kind] = used[grid.patches :]
    positions_3T, delta = multimodal_positions(
        len(ids), spans, [m.grid for m in media], [1.0] * len(spans), tokens_per_second=2
    )
    return Prompt(ids, positions_3T, delta, spans, tuple(media))


def text_prompt(length, seed=0):
    arguments = {"input_ids": random_ids(1, length, seed=seed)}
    arguments["attention_mask"] = torch.ones_like(arguments["input_ids"])
    return arguments


def generated(model, arguments, **settings):
    out = model.generate(**arguments, **{"do_sample": False, "max_new_tokens": 64, **settings})
    sequences = out if isinstance(out, torch.Tensor) else out.sequences
    return sequences[0, arguments["input_ids"].shape[1] :].tolist()


def answer(network, prompt, settings=None, hooks=None, **params):
    engine = Engine(network, settings)
    engine.add(prompt, SamplingParams(**{"max_new_tokens": 64, **params}), hooks=hooks)
    return [token for delta in engine.run() for token in delta.token_ids]


@pytest.mark.parametrize("kind", ROWS)
def test_greedy(pair, kind):
    """Whole, in chunks of 7 tokens, and with guesses: 64 tokens, all as transformers."""
    theirs, ours = pair
    arguments = batch(ROWS[kind])
    expected, prompt = generated(theirs, arguments), prompt_of(arguments)
    assert len(set(expected)) > 2
    assert answer(ours, prompt) == expected
    assert answer(ours, prompt, EngineSettings(max_step_tokens=7)) == expected
    assert answer(ours, prompt, prompt_lookup_num_tokens=6) == expected


@pytest.mark.parametrize("rope", ROPE_SCALINGS)
def test_rope_types_beyond_their_limit(rope):
    """The limit of 48 positions is passed while decoding (dynamic and longrope change their frequencies)."""
    text = {"rope_scaling": ROPE_SCALINGS[rope], "max_position_embeddings": 48}
    theirs, ours = tiny_pair(seed=2, text=text)
    arguments = text_prompt(30, seed=3)
    expected = generated(quiet(theirs), arguments)
    for settings in (None, EngineSettings(max_step_tokens=7)):
        assert answer(ours, prompt_of(arguments), settings, prompt_lookup_num_tokens=3) == expected


def test_sliding_window():
    text = {"use_sliding_window": True, "sliding_window": 10, "max_window_layers": 1}
    theirs, ours = tiny_pair(seed=3, text=text)
    arguments = text_prompt(30, seed=4)
    expected = generated(quiet(theirs), arguments)
    for settings in (None, EngineSettings(max_step_tokens=7)):
        assert answer(ours, prompt_of(arguments), settings, prompt_lookup_num_tokens=3) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2, "min_new_tokens": 30},
        {"do_sample": True, "top_k": 0},
        {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9},
        {"do_sample": True, "min_p": 0.05, "typical_p": 0.9, "top_k": 0, "repetition_penalty": 1.1},
    ],
    ids=lambda s: "+".join(s),
)
def test_settings_and_the_default_generator(pair, settings):
    theirs, ours = pair
    arguments = batch(ROWS["image"])
    torch.manual_seed(11)
    expected = generated(theirs, arguments, eos_token_id=150, **settings)
    params = {k: v for k, v in settings.items() if k != "do_sample"}
    if settings.get("do_sample"):
        params = {"temperature": 1.0, **params}
    for guesses in (0, 4):
        params |= {"eos_token_ids": (150,), "prompt_lookup_num_tokens": guesses}
        torch.manual_seed(11)
        assert answer(ours, prompt_of(arguments), **params) == expected


def test_logits_and_scores(pair):
    theirs, ours = pair
    arguments, seen = batch(ROWS["video"]), []
    out = theirs.generate(
        **arguments, do_sample=True, top_k=7, max_new_tokens=10, return_dict_in_generate=True,
        output_scores=True, output_logits=True, generation_config=theirs.generation_config,
    )  # fmt: skip
    drawn = iter(out.sequences[0, arguments["input_ids"].shape[1] :].tolist())

    def follow(sequence, scores_1V):
        return scores_1V.index_fill(1, torch.tensor([next(drawn)]), 1e9)

    hooks = Hooks(process=follow, record=lambda s, logits, scores: seen.append(logits))
    answer(ours, prompt_of(arguments), hooks=hooks, max_new_tokens=10)
    torch.testing.assert_close(torch.cat(seen), torch.cat(out.logits), atol=1e-4, rtol=1e-4)


def test_a_batch_gives_what_single_calls_give(pair):
    """Four mixed prompts in one engine and one by one: the same ids, logits within 1e-5."""
    _, ours = pair
    arguments = batch(*MIXED)
    prompts = [prompt_of(single(arguments, MIXED, i)) for i in range(len(MIXED))]

    def run(prompts, settings):
        seen = {}
        hooks = Hooks(record=lambda s, logits, scores: seen.setdefault(s.id, []).append(logits))
        engine, ids = Engine(ours, settings), {}
        for prompt in prompts:
            engine.add(prompt, SamplingParams(max_new_tokens=20), hooks=hooks)
        for delta in engine.run():
            ids.setdefault(delta.sequence_id, []).extend(delta.token_ids)
        return ids, {number: torch.cat(rows) for number, rows in seen.items()}

    alone = [run([prompt], None) for prompt in prompts]
    for settings in (None, EngineSettings(max_step_tokens=13)):
        ids, logits = run(prompts, settings)
        for i, (own_ids, own_logits) in enumerate(alone):
            assert ids[i] == own_ids[0]
            torch.testing.assert_close(logits[i], own_logits[0], atol=1e-5, rtol=1e-5)


def test_a_kept_cache_continues_a_conversation(pair):
    theirs, ours = pair
    first = batch(ROWS["image"])
    engine = Engine(ours)
    engine.add(prompt_of(first), SamplingParams(max_new_tokens=8), keep_kv=True)
    finished = list(engine.run())[-1].extras["sequence"]
    more = torch.tensor([[*first["input_ids"][0].tolist(), *finished.output_ids, 5, 6, 7]])
    second = {**first, "input_ids": more, "attention_mask": torch.ones_like(more)}
    engine.add(prompt_of(second), SamplingParams(max_new_tokens=64), kv=finished.kv)
    got = [token for delta in engine.run() for token in delta.token_ids]
    assert got == generated(theirs, second)


BEAMS = [
    ({"num_beams": 4}, ()),
    ({"num_beams": 2}, (165,)),
    ({"num_beams": 4, "length_penalty": 0.0}, (74, 187, 11)),
    ({"num_beams": 3, "length_penalty": 2.0, "early_stopping": True}, (165,)),
    ({"num_beams": 3, "length_penalty": -1.0, "early_stopping": "never"}, (74, 187, 11)),
    ({"num_beams": 3, "length_penalty": 1.5, "early_stopping": "never"}, (165,)),
]


def compare_beams(pair, arguments, settings, eos, ours_params, **more):
    theirs, ours = pair
    count = settings["num_beams"]
    torch.manual_seed(13)
    out = theirs.generate(
        **arguments, **settings, **more, max_new_tokens=64, num_return_sequences=count,
        eos_token_id=list(eos) or None, return_dict_in_generate=True, output_scores=True, output_logits=True,
    )  # fmt: skip
    engine = Engine(ours, EngineSettings(max_step_tokens=40))
    params = SamplingParams(max_new_tokens=64, eos_token_ids=eos, **ours_params)
    beams = BeamParams(num_return_sequences=count, keep_scores=True, keep_logits=True, **settings)
    torch.manual_seed(13)
    engine.add_beams(prompt_of(arguments), params, beams)
    result = list(engine.run())[-1].extras["beams"]
    start = arguments["input_ids"].shape[1]
    lengths = (out.beam_indices >= 0).sum(1).tolist()
    rows = zip(out.sequences.tolist(), lengths, strict=True)
    assert [list(ids) for ids in result.token_ids] == [row[start : start + n] for row, n in rows]
    rows = zip(out.beam_indices.tolist(), lengths, strict=True)
    assert [list(beams) for beams in result.beam_indices] == [row[:n] for row, n in rows]
    torch.testing.assert_close(result.scores_R, out.sequences_scores, atol=1e-5, rtol=1e-5)
    for ours_steps, their_steps in ((result.step_scores, out.scores), (result.step_logits, out.logits)):
        torch.testing.assert_close(torch.stack(ours_steps), torch.stack(their_steps), atol=1e-4, rtol=1e-4)
    return lengths


@pytest.mark.parametrize(("settings", "eos"), BEAMS, ids=str)
def test_beam_search(pair, settings, eos):
    lengths = compare_beams(pair, batch(ROWS["image"]), settings, eos, {}, do_sample=False)
    assert eos or set(lengths) == {64}


def test_beam_search_with_penalties(pair):
    more = {
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 3,
        "min_new_tokens": 10,
        "bad_words_ids": [[3], [4, 5]],
    }
    ours = {**more, "bad_words_ids": ((3,), (4, 5))}
    compare_beams(pair, batch(ROWS["video"]), {"num_beams": 3}, (74,), ours, do_sample=False, **more)


@pytest.mark.parametrize("eos", [(), (74, 187)], ids=str)
def test_drawn_beams(pair, eos):
    more = {"temperature": 1.2, "top_k": 9, "top_p": 0.95}
    compare_beams(pair, batch(ROWS["image"]), {"num_beams": 3}, eos, more, do_sample=True, **more)
