"""How many prompt tokens a step may have, so that those who decode get their next token in time.

Counts and seconds only. What a step of many tokens takes depends on the machine, the network and how long
the prompts are already, so it is measured and followed, not computed.
"""

from __future__ import annotations

FIRST = 64  # tokens, before any step with a prompt was timed
LEAST = 16  # prompt tokens in every step: prompts move however slow the steps are


class StepSize:
    """``seconds``: what a step should take. Where decoding alone takes half of that or more, a step may take
    twice as long as decoding does: waiting prompts would hardly move otherwise.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.wanted = seconds  # of the step to come
        self.tokens = float(FIRST)  # of a step that takes about that long

    def begin(self, plain: float) -> float:
        """A step is to come in which decoding takes ``plain`` seconds: how many there are for other work."""
        self.wanted = max(self.seconds, 2 * plain)
        return self.wanted - plain

    def note(self, tokens: int, seconds: float) -> None:
        """The step had so many tokens, some of a prompt among them, and took ``seconds``.

        Time grows with the tokens at most in proportion, so a quick step says that there is room for more; a
        short one of few tokens says nothing about what more would take.
        """
        fitting = tokens * self.wanted / max(seconds, 1e-9)
        if seconds > self.wanted:
            self.tokens = min(self.tokens, max(fitting, self.tokens / 2))
        else:
            self.tokens = max(self.tokens, min(fitting, 2 * self.tokens))

    def prompt_tokens(self, decoding: int, spent: float = 0.0) -> int:
        """Prompt tokens beside so many decoding ones, when ``spent`` seconds of the step are gone already."""
        share = max(0.0, 1 - spent / self.wanted)
        return max(LEAST, int(self.tokens * share) - decoding)
