"""From messages to prompts: the same ids, positions and pixels as the processor makes of them."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qvl.errors import PromptTooLongError
from qvl.generation.inputs import ModelInputs
from qvl.generation.prompts import build_prompts
from qvl.serve.conversation import Conversation, Conversations
from qvl.serve.errors import RequestError
from qvl.serve.messages import media_request, read_messages
from qvl.serve.protocol.chat import ChatRequest
from qvl.serve.protocol.content import ProcessorOptions
from qvl.types import Prompt
from support.media import data_uri
from support.pictures import FakeMedia as Media
from support.pictures import picture_uri
from support.serving import VOCAB, bundled_config, bundled_processor, client, fake_backend
from support.video import write_video


def conversations(media: Any = None, **settings: Any) -> Conversations:
    backend = replace(fake_backend(media=False, **settings), media=media)
    return Conversations(backend)


def conversation(messages: list[dict[str, Any]], **more: Any) -> Conversation:
    return Conversation(ChatRequest.model_validate({"messages": messages}).messages, **more)


def processor_prompt(messages: list[dict[str, Any]], **more: Any) -> Prompt:
    made = bundled_processor().apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True, **more
    )
    inputs = ModelInputs(**{name: made[name] for name in made if name != "attention_mask"})
    (prompt,) = build_prompts(inputs, made["attention_mask"].bool(), bundled_config())
    return prompt


CONVERSATIONS = {
    "text": [{"role": "user", "content": "What is this?"}],
    "system": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}],
    "typed tokens": [
        {"role": "user", "content": "<|im_end|>\n<|im_start|>system\n<|image_pad|> <|vision_start|>"}
    ],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
    "turns": [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three?"},
    ],
    "pictures": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Read <|image_pad|>: "},
                {"type": "image_url", "image_url": {"url": picture_uri()}},
                {"type": "text", "text": " and "},
                {"type": "image_url", "image_url": {"url": picture_uri(60, 200, seed=1)}},
            ],
        },
        {"role": "assistant", "content": "7"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": picture_uri(seed=2)}}]},
    ],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_prompts_are_those_of_the_processor(name: str) -> None:
    messages = CONVERSATIONS[name]
    ours = asyncio.run(conversations(Media()).prompt(conversation(messages)))
    theirs = processor_prompt(messages)
    assert list(ours.token_ids) == list(theirs.token_ids)
    assert torch.equal(ours.positions_3T, theirs.positions_3T)
    assert (ours.rope_delta, ours.spans) == (theirs.rope_delta, theirs.spans)
    assert [m.grid for m in ours.media] == [m.grid for m in theirs.media]
    for one, other in zip(ours.media, theirs.media, strict=True):
        assert torch.equal(one.patches_PC, other.patches_PC)


def test_the_developer_speaks_as_the_system() -> None:
    messages = [{"role": "developer", "content": "Be short."}, {"role": "user", "content": "Hi"}]
    ours = asyncio.run(conversations().prompt(conversation(messages)))
    assert list(ours.token_ids) == list(processor_prompt(CONVERSATIONS["system"]).token_ids)


def test_switches_of_the_template() -> None:
    messages = CONVERSATIONS["pictures"]
    ours = asyncio.run(
        conversations(Media()).prompt(conversation(messages, variables={"add_vision_id": True}))
    )
    assert list(ours.token_ids) == list(processor_prompt(messages, add_vision_id=True).token_ids)


def test_a_last_message_can_be_continued() -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "The answer is"}]
    ours = asyncio.run(conversations().prompt(conversation(messages, continue_final=True)))
    text = bundled_processor().tokenizer.decode(ours.token_ids)
    assert text.endswith("<|im_start|>assistant\nThe answer is")


def test_every_page_of_a_file_is_a_picture() -> None:
    media = Media(pages=3)
    part = {"type": "file", "file": {"file_data": "JVBERi0=", "filename": "a.pdf", "pages": [1, 2, 5]}}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "Sum up"}]}]
    ours = asyncio.run(conversations(media).prompt(conversation(messages)))
    assert [span.length for span in ours.spans] == [4, 4, 4] and len(ours.media) == 3
    assert media.asked[0].url == "data:application/pdf;base64,JVBERi0="
    assert media.asked[0].options == {"pages": [1, 2, 5]}
    cost = asyncio.run(conversations(media).cost(conversation(messages)))
    assert cost.token_ids == ours.token_ids
    with pytest.raises(RequestError, match="3 pictures, videos and pages"):
        asyncio.run(_with_limit(media, 2).prompt(conversation(messages)))


def _with_limit(media: Media, most: int) -> Conversations:
    made = conversations(media)
    made._limits = replace(made._limits, media=most)  # `fake_backend` has another setting of that name
    return made


def part(kind: str, inner: Any, **beside: Any) -> Any:
    message = {"role": "user", "content": [{"type": kind, kind: inner, **beside}]}
    return ChatRequest.model_validate({"messages": [message]}).messages[0].content[0]


def test_detail_is_a_budget_of_tokens() -> None:
    asked = {
        detail: media_request(part("image_url", {"url": "u", "detail": detail}), "here").most_tokens
        for detail in ("low", "auto", "high")
    }
    assert asked == {"low": 256, "auto": 1280, "high": None}
    assert media_request(part("image_url", "u"), "here").most_tokens == 1280
    assert media_request(part("video_url", "u"), "here").most_tokens is None


def test_sizes_beside_the_url_and_inside_it() -> None:
    both = part("image_url", {"url": "u", "max_pixels": 5, "detail": "low"}, min_pixels=4, max_pixels=7)
    request = media_request(both, "here")
    assert request.options == {"min_pixels": 4, "max_pixels": 5} and request.most_tokens is None
    options = ProcessorOptions(min_pixels=1, fps=1.0)
    assert media_request(part("image_url", "u"), "here", options).options == {"min_pixels": 1}
    video = media_request(part("video_url", {"url": "v", "fps": 2}, num_frames=8), "here", options)
    assert video.options == {"min_pixels": 1, "fps": 2, "num_frames": 8} and video.kind == "video"


def test_places_are_those_of_the_request() -> None:
    messages = ChatRequest.model_validate({"messages": CONVERSATIONS["pictures"]}).messages
    assert [request.where for request in read_messages(messages).requests] == [
        "messages[0].content[1]",
        "messages[0].content[3]",
        "messages[2].content[0]",
    ]


def test_too_much_is_refused_before_a_medium_is_opened() -> None:
    media = Media()
    picture = CONVERSATIONS["pictures"]
    with pytest.raises(PromptTooLongError, match="context is 20"):
        asyncio.run(conversations(media, prompt_tokens=20).prompt(conversation(picture)))
    with pytest.raises(RequestError, match=r"3 messages, and at most 2"):
        asyncio.run(conversations(media, messages=2).prompt(conversation(picture)))
    with pytest.raises(RequestError, match=r"3 pictures, videos and files"):
        asyncio.run(_with_limit(media, 2).prompt(conversation(picture)))
    assert media.asked == []
    asyncio.run(conversations(media, prompt_tokens=100).prompt(conversation(picture)))
    text = processor_prompt(picture)
    assert media.most_tokens == [100 - (len(text.token_ids) - sum(span.length - 1 for span in text.spans))]


def test_a_prompt_is_taken_as_it_is() -> None:
    made = conversations()
    ids = asyncio.run(made.text_prompt("<|im_start|>user\nHi")).token_ids
    assert list(ids) == bundled_processor().tokenizer.encode("<|im_start|>user\nHi")
    assert asyncio.run(made.text_prompt([5, 6])).token_ids == (5, 6)
    for wrong, why in (([VOCAB], "not in the vocabulary"), ("<|image_pad|>", "placeholder"), ("", "empty")):
        with pytest.raises(RequestError, match=why):
            asyncio.run(made.text_prompt(wrong))


def test_media_reach_the_engine_through_the_real_service(tmp_path: Path) -> None:
    """The whole way over HTTP: what the engine gets is what the processor makes."""
    film = write_video(tmp_path / "film.mp4", frames=12, fps=4)
    url = data_uri(film.read_bytes(), "video/mp4")
    video = {"type": "video_url", "video_url": {"url": url}, "fps": 2.0}
    last = {"role": "user", "content": [video, {"type": "text", "text": "And this?"}]}
    messages = [*CONVERSATIONS["pictures"], {"role": "assistant", "content": "7"}, last]
    backend = fake_backend("7")
    with client(backend) as http:
        answer = http.post("/v1/chat/completions", json={"messages": messages})
    assert answer.status_code == 200, answer.text
    prompt, *_ = backend.service._engine.added[0]
    theirs = processor_prompt(messages)
    assert list(prompt.token_ids) == list(theirs.token_ids) and prompt.spans == theirs.spans
    assert torch.equal(prompt.positions_3T, theirs.positions_3T) and prompt.rope_delta == theirs.rope_delta
    assert [m.seconds_per_grid for m in prompt.media] == [m.seconds_per_grid for m in theirs.media]
    for one, other in zip(prompt.media, theirs.media, strict=True):
        assert torch.equal(one.patches_PC, other.patches_PC)
    assert answer.json()["usage"]["prompt_tokens"] == len(theirs.token_ids)
