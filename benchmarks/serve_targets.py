"""What `qvl serve` must show, as the project's issue asks for it, and how it compares with transformers."""

from __future__ import annotations

from benchmarks.results import ratio
from benchmarks.served import BATCHED, QVL, SERVE
from benchmarks.targets import Found, Target, Value

THROUGHPUT, PICTURE, GAPS = "throughput", "picture", "gaps"
STEPS, WHOLE, FIRST = "a token for every stream", "the same, prompts counted", "to the first token"
ASKED, AGAIN, TURN = "a question about a picture", "another one about it", "a second turn about it"
WORST, USUAL, ALLOWED = "worst gap while a picture is read", "usual gap", "worst gap / what is allowed"
MANY = 8  # streams that are compared with one


def streams(who: str, count: int) -> str:
    """The name of so many streams of one server."""
    return f"{who} x {count}"


def serve_targets() -> list[Target]:
    """What is asked first; then, with nothing asked, the ratios to the peers."""
    return [*asked(), *compared()]


def asked() -> list[Target]:
    rows = [Target(THROUGHPUT, f"text, tokens/s of {MANY} streams / of 1", 4.0, together(f"text, {STEPS}"))]
    rows += [
        Target(PICTURE, f"time to the first token: {case} / {ASKED}", 0.1, shorter(case), most=True)
        for case in (AGAIN, TURN)
    ]
    rows += [
        Target(GAPS, f"{ALLOWED}, {streams(QVL, count)}, worst of all rounds", 1.0, worst(count), most=True)
        for count in (1, 4)
    ]
    return rows


def compared() -> list[Target]:
    rows = [
        Target(THROUGHPUT, f"{case}: tokens/s of {MANY} streams / of 1", None, together(case))
        for case in (f"text, {WHOLE}", f"picture, {STEPS}", f"picture, {WHOLE}")
    ]
    for peer in (BATCHED, SERVE):
        for kind in ("text", "picture"):
            for case in (STEPS, WHOLE, FIRST):
                for count in (1, MANY):
                    rows.append(against(THROUGHPUT, f"{kind}, {case}", count, peer))
        for case in (ASKED, AGAIN, TURN):
            value = beside(PICTURE, case, QVL, peer)
            rows.append(Target(PICTURE, f"{case}: {peer} / {QVL}", None, value))
    return rows


def against(section: str, case: str, count: int, peer: str) -> Target:
    value = beside(section, case, streams(QVL, count), streams(peer, count))
    return Target(section, f"{case}, {count} at once: {peer} / {QVL}", None, value)


def beside(section: str, case: str, ours: str, theirs: str) -> Value:
    """How many times as long the peer takes."""
    return lambda found: found.faster(section, case, ours, theirs)


def together(case: str) -> Value:
    """Tokens per second of many streams over those of one, round for round."""

    def value(found: Found) -> float | None:
        one, many = (found.one(THROUGHPUT, case, streams(QVL, count)) for count in (1, MANY))
        return None if one is None or many is None else MANY * ratio(one, many)

    return value


def shorter(case: str) -> Value:
    """A later question's time over the first one's, round for round."""

    def value(found: Found) -> float | None:
        first, later = found.one(PICTURE, ASKED, QVL), found.one(PICTURE, case, QVL)
        return None if first is None or later is None else ratio(later, first)

    return value


def worst(count: int) -> Value:
    def value(found: Found) -> float | None:
        measured = found.one(GAPS, ALLOWED, streams(QVL, count))
        return None if measured is None else max(measured.samples)

    return value
