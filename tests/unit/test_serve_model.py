"""The bundled model behind the engine's thread: answers do not depend on who else asks."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from qvl.types import SamplingParams
from support.serving import bundled_generation, chat_prompt, collect, job, model_backend

PICTURES = Path(__file__).parents[2] / "examples" / "pictures"
QUESTIONS = ("What number is written here?", "Which digits are shown?", "1 2 3 4", "What is written here?")


def pictures():
    found = [Image.open(PICTURES / name) for name in ("digits.png", "one_digit.png", "two_digits.png")]
    return [*found, found[0].rotate(90, expand=True), found[2].resize((160, 90))]


def mixed_jobs():
    """32 greedy jobs: with and without pictures, short and long, with log probabilities and stop texts."""
    images = pictures()
    prompts = [
        chat_prompt(QUESTIONS[i % len(QUESTIONS)] + "?" * (i % 7), *images[i % 5 : i % 5 + i % 3])
        for i in range(32)
    ]
    eos = bundled_generation().eos_token_ids
    jobs = []
    for i, prompt in enumerate(prompts):
        params = SamplingParams(max_new_tokens=8 + 5 * (i % 9), eos_token_ids=() if i % 4 == 3 else eos)
        if i % 5 == 2:
            params = replace(params, repetition_penalty=1.2)
        jobs.append(
            job(
                prompt=prompt,
                params=params,
                client=f"client {i % 3}",
                logprobs=2 if i % 6 == 1 else None,
                stops=("tell", "5") if i % 8 == 5 else (),
                repetition_tokens=24 if i % 4 == 3 else 0,
            )
        )
    return jobs


def answers(jobs, *, together, **settings):
    async def run():
        backend = model_backend(**settings)
        backend.service.start()
        try:
            if together:
                found = await asyncio.gather(*(collect(backend.service, one) for one in jobs))
            else:
                found = [await collect(backend.service, one) for one in jobs]
            return list(found), backend.service.stats()
        finally:
            await backend.service.close()

    return asyncio.run(run())


def said(pieces):
    """All that a client sees of an answer, but for how it is cut and for the last bits of numbers."""
    ids = [token for piece in pieces for token in piece.token_ids]
    logprobs = [entry.token_id for piece in pieces for entry in piece.logprobs]
    text = "".join(piece.text for piece in pieces)
    return text, ids, logprobs, pieces[-1].end, pieces[-1].stop, pieces[-1].usage.completion_tokens


@pytest.fixture(scope="module")
def alone():
    """Every answer from a server that reuses nothing and has one request at a time."""
    found, _ = answers(mixed_jobs(), together=False, prefix_reuse=False, vision_memory=0)
    return [said(pieces) for pieces in found]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="defaults"),
        pytest.param({"max_sequences": 5, "step_seconds": 0.002}, id="small batch and steps"),
        pytest.param({"kv_memory": 600_000}, id="little memory"),
        pytest.param({"prefix_reuse": False, "vision_memory": 0}, id="nothing kept"),
    ],
)
def test_32_mixed_jobs_together_say_what_each_says_alone(alone, settings):
    found, stats = answers(mixed_jobs(), together=True, **settings)
    assert [said(pieces) for pieces in found] == alone
    assert (stats.running, stats.waiting) == (0, 0)
    assert {pieces[-1].end for pieces in found} >= {"stop", "length"}


def test_a_second_question_about_the_same_picture_takes_it_from_the_first():
    picture = pictures()[0]
    jobs = [job(prompt=chat_prompt(text, picture), max_new_tokens=4) for text in QUESTIONS[:2]]
    (first, second), stats = answers(jobs, together=False)
    assert first[-1].usage.cached_tokens == 0
    usage = second[-1].usage
    assert 0 < usage.cached_tokens < usage.prompt_tokens
    assert stats.media_encoded == 1


def test_leaving_frees_the_memory():
    async def run():
        backend = model_backend(prefix_reuse=False, vision_memory=0)
        service = backend.service
        service.start()
        pieces = service.submit(job(params=SamplingParams(max_new_tokens=8000), special=True))
        await anext(pieces)
        assert service.stats().kv_bytes > 0
        await pieces.aclose()
        for _ in range(1000):
            if not service.stats().kv_bytes:
                break
            await asyncio.sleep(0.005)
        stats = service.stats()
        await service.close()
        return stats

    stats = asyncio.run(run())
    assert (stats.kv_bytes, stats.running) == (0, 0)
    assert stats.output_tokens < 8000


def test_media_are_counted_by_what_became_of_them():
    import base64

    from qvl.errors import MediaError
    from qvl.serve.media.requests import MediaRequest

    data = base64.b64encode((PICTURES / "one_digit.png").read_bytes()).decode()
    good = MediaRequest("messages[0]", "image", f"data:image/png;base64,{data}")
    bad = MediaRequest("messages[1]", "image", "data:image/png;base64,AAAA")

    async def run():
        backend = model_backend()
        await backend.media.start()
        try:
            assert backend.media.alive
            (prepared,) = await backend.media.prepare([good], most_tokens=10_000)
            with pytest.raises(MediaError):
                await backend.media.prepare([bad], most_tokens=10_000)
        finally:
            await backend.media.close()
        return prepared, backend.metrics.text()[0].decode()

    prepared, text = asyncio.run(run())
    assert prepared.media[0].kind == "image"
    assert 'qvl_media_requested_total{kind="image",outcome="ok"} 1.0' in text
    assert 'qvl_media_requested_total{kind="image",outcome="refused"} 1.0' in text
