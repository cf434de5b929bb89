"""Streamers: nothing cut, nothing lost, nothing late."""

import threading
from queue import Empty

import pytest
import torch

from qvl.errors import GenerationError
from qvl.generation.streamers import BaseStreamer, TextIteratorStreamer, TextStreamer


class Bytes:
    """A tokenizer whose tokens are the bytes of UTF-8."""

    def decode(self, ids, skip_special_tokens=False, **kwargs):
        return bytes(i for i in ids if not (skip_special_tokens and i == 0)).decode("utf-8", errors="replace")


def feed(streamer, prompt, answer):
    streamer.put(torch.tensor([list(prompt.encode())]))
    for byte in answer.encode():
        streamer.put(torch.tensor([byte]))
    streamer.end()


@pytest.mark.parametrize("text", ["hello big world", "one\ntwo", "日本語 und äöü 🙂 ok", "🙂", "  x", ""])
def test_pieces_add_up_and_hold_whole_characters(text):
    streamer = TextIteratorStreamer(Bytes(), skip_prompt=True, timeout=1)
    feed(streamer, "prompt", text)
    pieces = list(streamer)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_words_are_held_back_until_they_are_complete():
    streamer = TextIteratorStreamer(Bytes(), skip_prompt=True, timeout=1)
    feed(streamer, "p", "ab cd")
    assert [p for p in streamer if p] == ["ab ", "cd"]


def test_cjk_comes_at_once():
    streamer = TextIteratorStreamer(Bytes(), skip_prompt=True, timeout=1)
    feed(streamer, "p", "日本")
    assert [p for p in streamer if p] == ["日", "本"]


def test_printing(capsys):
    feed(TextStreamer(Bytes()), "Q: ", "a b")
    assert capsys.readouterr().out == "Q: a b\n"
    feed(TextStreamer(Bytes(), skip_prompt=True, skip_special_tokens=True), "Q: ", "a\0b")
    assert capsys.readouterr().out == "ab\n"


def test_a_streamer_serves_one_call_after_another(capsys):
    streamer = TextStreamer(Bytes(), skip_prompt=True)
    feed(streamer, "Q", "one")
    feed(streamer, "Q", "two")
    assert capsys.readouterr().out == "one\ntwo\n"


def test_batches_are_refused():
    with pytest.raises(GenerationError, match="2 rows"):
        TextStreamer(Bytes()).put(torch.zeros(2, 3, dtype=torch.int64))


def test_reading_from_another_thread_and_errors():
    streamer = TextIteratorStreamer(Bytes(), timeout=5)
    thread = threading.Thread(target=lambda: (streamer.put(torch.tensor([65])), streamer.fail(KeyError("x"))))
    thread.start()
    with pytest.raises(KeyError):
        list(streamer)
    thread.join()


def test_timeout():
    with pytest.raises(Empty):
        next(iter(TextIteratorStreamer(Bytes(), timeout=0.01)))


def test_base_says_what_to_define():
    with pytest.raises(NotImplementedError):
        BaseStreamer().put(torch.tensor([1]))
