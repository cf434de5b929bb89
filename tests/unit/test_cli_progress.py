"""Progress shows on a terminal only, and only when the work takes a while."""

import io
import sys
import time

import pytest

from qvl.cli.common import Loading, generate, load_assistant, load_processor, tokenized
from qvl.cli.progress import Bar
from qvl.weights.progress import SlowProgress
from support.checkpoint import write_checkpoint


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def use_terminal(monkeypatch):
    """To be called in the test itself: pytest puts its own stderr back between set-up and test."""

    def use_terminal():
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(sys, "stderr", Terminal())
        return sys.stderr

    return use_terminal


def appears(text, terminal):
    """Waits for it: the bar is drawn by another thread."""
    end = time.monotonic() + 20
    while text not in terminal.getvalue() and time.monotonic() < end:
        time.sleep(0.02)
    return text in terminal.getvalue()


def test_long_work_on_a_terminal_shows_a_bar_and_takes_it_away(use_terminal):
    terminal = use_terminal()
    with Bar("reading 5 tokens", delay=0.01) as bar:
        bar.update(1, 4)
        assert appears("reading 5 tokens", terminal)
        bar.update(3, 4)
    after = terminal.getvalue()
    time.sleep(0.15)
    assert terminal.getvalue() == after


def test_short_work_shows_nothing(use_terminal):
    terminal = use_terminal()
    with Bar("short", delay=30):
        pass
    assert terminal.getvalue() == ""


def test_a_pipe_shows_nothing(capsys):
    with Bar("long", delay=0.01):
        time.sleep(0.1)
    assert capsys.readouterr() == ("", "")


def test_closing_before_the_end(use_terminal):
    terminal = use_terminal()
    with Bar("long", delay=0.01) as bar:
        bar.close()
        time.sleep(0.1)
        bar.update(1, 2)
    assert terminal.getvalue() == ""


def test_loading_shows_a_bar_on_a_terminal_only(use_terminal, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with SlowProgress("Loading weights", 10, patience=0.0) as progress:
        progress.advance(5)
    assert sys.stderr.getvalue() == ""
    terminal = use_terminal()
    with SlowProgress("Loading weights", 10, patience=0.0) as progress:
        progress.advance(5)
        assert appears("Loading weights", terminal)


def test_a_long_prompt_reports_what_is_read(tmp_path, monkeypatch):
    """The bar of ``ask`` and ``chat`` is told after every chunk, and closed before the first text."""
    told = []
    monkeypatch.setattr(Bar, "update", lambda self, done, total: told.append((done, total)))
    monkeypatch.setattr(Bar, "close", lambda self: told.append("closed"))
    loading = Loading(str(write_checkpoint(tmp_path)), device="cpu")
    processor = load_processor(loading)
    inputs = tokenized(processor, [{"role": "user", "content": "Hello"}], None)
    answer = generate(
        load_assistant(loading, processor), inputs, {"max_new_tokens": 2}, lambda text: told.append(text)
    )
    assert told[0] == (answer.prompt_tokens, answer.prompt_tokens)
    assert told[1] == "closed"
