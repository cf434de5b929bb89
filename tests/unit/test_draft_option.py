"""A draft model by name: ``qvl ask/chat --draft`` and ``pipeline(assistant_model=...)`` answer as without."""

import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

import qvl
from qvl.cli import OK, USAGE, main
from qvl.engine.draft import DraftModel
from support.checkpoint import write_checkpoint

LENGTH = ("--max-new-tokens", "12")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("draft")
    noise = np.random.default_rng(0).integers(0, 255, (60, 100, 3), np.uint8)
    Image.fromarray(noise).save(folder / "picture.png")
    write_checkpoint(folder / "model")
    write_checkpoint(folder / "small", num_hidden_layers=1)
    write_checkpoint(folder / "wider", num_hidden_layers=1, vocab_size=1160)  # 8 rows that no token uses
    other = write_checkpoint(folder / "other")
    settings = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    settings["added_tokens"][-1]["content"] = "<|another|>"
    (other / "tokenizer.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.fixture
def drafted(monkeypatch):
    """Sequences for which a draft model was asked, call by call."""
    calls, propose = [], DraftModel.propose

    def noted(self, sequences, budget):
        calls.append(len(sequences))
        propose(self, sequences, budget)

    monkeypatch.setattr(DraftModel, "propose", noted)
    return calls


class TestCommandLine:
    @pytest.mark.parametrize("draft", ["small", "wider"])
    def test_ask(self, folder, drafted, capsys, draft):
        words = ["ask", str(folder / "picture.png"), "What?", "--model", str(folder / "model"), *LENGTH]
        assert main(words) == OK
        plain = capsys.readouterr().out
        assert not drafted
        assert main([*words, "--draft", str(folder / draft)]) == OK
        assert capsys.readouterr().out == plain
        assert drafted

    def test_chat_keeps_both_caches(self, folder, drafted, capsys, monkeypatch):
        words = ["chat", str(folder / "picture.png"), "--model", str(folder / "model"), *LENGTH]
        answers = []
        for more in ([], ["--draft", str(folder / "small")]):
            monkeypatch.setattr(sys, "stdin", io.StringIO("What is it?\nAnd now?\n"))
            assert main([*words, *more]) == OK
            answers.append(capsys.readouterr().out)
        assert answers[0] == answers[1] and drafted

    def test_another_tokenizer(self, folder, capsys):
        words = ["ask", "What?", "--model", str(folder / "model"), "--draft", str(folder / "other")]
        assert main(words) == USAGE
        assert "has another tokenizer than the model" in capsys.readouterr().err

    def test_an_empty_name(self, folder, capsys):
        assert main(["ask", "What?", "--model", str(folder / "model"), "--draft", ""]) == USAGE
        assert "--draft is empty" in capsys.readouterr().err


@pytest.mark.parametrize("draft", ["small", "wider"])
def test_pipeline(folder, drafted, draft):
    settings = {"model": str(folder / "model"), "device": -1, "dtype": "float32", "max_new_tokens": 12}
    content = [{"type": "image", "path": str(folder / "picture.png")}, {"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": content}]
    plain = qvl.pipeline("image-text-to-text", **settings)(text=messages)
    assert not drafted
    pipe = qvl.pipeline("image-text-to-text", **settings, assistant_model=str(folder / draft))
    assert pipe(text=messages) == plain
    assert drafted
