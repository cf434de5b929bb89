"""A conversation keeps what it has read: same answers, fewer tokens to run; failures leave it whole."""

import os
import signal

import pytest
from PIL import Image

from qvl.cli.chat import Conversation
from qvl.cli.common import STOPPED_BY_USER, Loading, load_assistant, load_processor
from qvl.cli.media import MediaFile
from qvl.errors import PromptError
from support.checkpoint import write_checkpoint

PICTURE = Image.radial_gradient("L").convert("RGB").resize((84, 56))
MEDIUM = MediaFile("gradient", "image", PICTURE, 84, 56)


@pytest.fixture(scope="module")
def assistant(tmp_path_factory):
    loading = Loading(str(write_checkpoint(tmp_path_factory.mktemp("tiny"))), device="cpu")
    return load_assistant(loading, load_processor(loading))


@pytest.fixture
def conversation(assistant):
    return Conversation(assistant, {"max_new_tokens": 6})


def quiet(text):
    pass


def three_turns(conversation, forget=False):
    conversation.bring([MEDIUM])
    answers = []
    for question in ("What is this?", "Really?", "And now?"):
        if forget:
            conversation._cache = None
        answers.append(conversation.ask(question, quiet).text)
    return answers


def test_answers_are_those_of_a_conversation_read_anew_every_turn(assistant, conversation):
    anew = Conversation(assistant, {"max_new_tokens": 6})
    assert three_turns(conversation) == three_turns(anew, forget=True)


def test_a_turn_only_runs_what_is_new(conversation, monkeypatch):
    handed = []
    generate = type(conversation.assistant.model).generate

    def spy(model, *args, past_key_values=None, **kwargs):
        handed.append(0 if past_key_values is None else past_key_values.get_seq_length())
        return generate(model, *args, past_key_values=past_key_values, **kwargs)

    monkeypatch.setattr(type(conversation.assistant.model), "generate", spy)
    three_turns(conversation)
    assert handed[0] == 0 and 0 < handed[1] < handed[2]


def test_history_and_system_prompt(assistant):
    conversation = Conversation(assistant, {"max_new_tokens": 2}, system="Be brief.")
    conversation.bring([MEDIUM])
    answer = conversation.ask("What?", quiet)
    assert [m["role"] for m in conversation.messages] == ["system", "user", "assistant"]
    assert [entry["type"] for entry in conversation.messages[1]["content"]] == ["image", "text"]
    assert conversation.messages[2]["content"] == answer.text
    conversation.reset()
    assert conversation.messages == [{"role": "system", "content": "Be brief."}]


def test_what_was_shown_is_the_answer(conversation):
    pieces = []
    assert conversation.ask("Hi", pieces.append).text == "".join(pieces)


def test_a_turn_that_fails_leaves_the_conversation_as_it_was(conversation, monkeypatch):
    conversation.ask("Hi", quiet)
    before = list(conversation.messages)

    def fail(*_, **__):
        raise PromptError("no")

    with monkeypatch.context() as patch, pytest.raises(PromptError):
        patch.setattr(type(conversation.assistant.model), "generate", fail)
        conversation.ask("Again", quiet)
    assert conversation.messages == before
    assert conversation.ask("Again", quiet).text is not None


def test_ctrl_c_ends_the_answer_and_keeps_what_was_said(assistant):
    conversation = Conversation(assistant, {"max_new_tokens": 200, "min_new_tokens": 200})
    handler = signal.getsignal(signal.SIGINT)

    def interrupt(text):
        if signal.getsignal(signal.SIGINT) is not handler:  # the second one would end the test
            os.kill(os.getpid(), signal.SIGINT)

    answer = conversation.ask("Hi", interrupt)
    assert answer.finish_reason == STOPPED_BY_USER
    assert 0 < len(answer.token_ids) < 200
    assert conversation.messages[-1]["role"] == "assistant"
    assert signal.getsignal(signal.SIGINT) is handler
    conversation.settings = {"max_new_tokens": 2}
    assert conversation.ask("Go on", quiet).finish_reason != STOPPED_BY_USER


def test_ctrl_c_while_the_prompt_is_read_keeps_the_media(conversation, monkeypatch):
    model = type(conversation.assistant.model)

    def interrupted(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("Ctrl-C was not noticed")  # pragma: no cover

    conversation.bring([MEDIUM])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model, "generate", interrupted)
        conversation.ask("What?", quiet)
    assert conversation.messages == [] and conversation.waiting
    conversation.ask("What?", quiet)
    assert [entry["type"] for entry in conversation.messages[0]["content"]] == ["image", "text"]


def test_a_turn_that_fails_takes_its_media_along(conversation, monkeypatch):
    def fail(*_, **__):
        raise PromptError("too long")

    conversation.bring([MEDIUM])
    with monkeypatch.context() as patch, pytest.raises(PromptError):
        patch.setattr(type(conversation.assistant.model), "generate", fail)
        conversation.ask("What?", quiet)
    assert not conversation.waiting
