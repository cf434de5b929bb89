"""How right an answer is as text: equal, contained, nearly equal (ANLS), one of several people's, a letter.

Pure functions of strings; each returns a score from 0 to 1, the best over all references.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

IGNORABLE = ("case", "spaces", "stop")
"""What `exact` can be told to ignore: letter case, the kind and number of spaces, a final full stop."""
LETTERS = frozenset("ABCDEFGH")  # where nobody says how many choices there are: "I" is a word

_ANSWER_IS = re.compile(r"\b(?i:answer|option|choice)\b(?:\s+is)?\s*:?\s*[(\[*]*([A-Z])\b(?!['’])")
_LETTER_FIRST = re.compile(r"\W*([A-Za-z])(?:\s*$|\s*[.):\],]|\*\*)")
_ARTICLES = {"a", "an", "the"}
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(value) for value, word in enumerate(_WORDS)} | {"none": "0"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
# Contractions without their apostrophe. Those that are words of their own (were, its, well) stay as they are.
_NEGATED = "are ca could did does do had has have is might must need sha should was wo would"
_CONTRACTIONS = {f"{word}nt": f"{word}n't" for word in _NEGATED.split()} | {
    f"{word}{end}": f"{word}'{end}"
    for end, words in {
        "s": "he she that there what when where who why how somebody someone something",
        "ve": "could i might should they we what who would you",
        "re": "they there what who you",
        "ll": "how that they what who you",
        "d": "there they you",
    }.items()
    for word in words.split()
}


def normalized(text: str, ignore: Collection[str] = IGNORABLE) -> str:
    """``text`` without what is to be ignored; spaces at its ends never count."""
    text = text.strip()
    if "stop" in ignore:
        text = re.sub(r"[.。]$", "", text).rstrip()
    if "spaces" in ignore:
        text = " ".join(text.split())
    return text.casefold() if "case" in ignore else text


def exact(answer: str, references: Sequence[str], ignore: Collection[str] = ()) -> float:
    """1 where the answer equals a reference, apart from what is to be ignored (of `IGNORABLE`)."""
    return float(normalized(answer, ignore) in {normalized(reference, ignore) for reference in references})


def contains(answer: str, references: Sequence[str]) -> float:
    """1 where a reference stands anywhere in the answer, whatever the case and the spaces.

    The rule of OCRBench (arXiv 2305.07895); it does not ask for whole words: "12" stands in "312" too.
    """
    spaced = ("case", "spaces")
    text = normalized(answer, spaced)
    found = (normalized(reference, spaced) for reference in references)
    return float(any(reference and reference in text for reference in found))


def edits(one: str, other: str) -> int:
    """Levenshtein distance: characters inserted, deleted or replaced from one text to the other."""
    before = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        row = [i]
        for j, b in enumerate(other, start=1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b)))
        before = row
    return before[-1]


def anls(answer: str, references: Sequence[str], threshold: float = 0.5) -> float:
    """Normalised Levenshtein similarity, 0 below ``threshold``; its average over rows is ANLS.

    Formula 1 of "Scene Text Visual Question Answering" (arXiv 1905.13648), as DocVQA and InfographicVQA use
    it (arXiv 2007.00398): case and the kind of spaces do not count, the best reference does.
    """
    spaced = ("case", "spaces")
    text = normalized(answer, spaced)
    return max((_similarity(text, normalized(r, spaced), threshold) for r in references), default=0.0)


def _similarity(one: str, other: str, threshold: float) -> float:
    longest = max(len(one), len(other))
    if not longest:
        return 1.0
    if 1 - abs(len(one) - len(other)) / longest < threshold:  # so far apart at least: spares the long ones
        return 0.0
    similarity = 1 - edits(one, other) / longest
    return similarity if similarity >= threshold else 0.0


def vqa(answer: str, references: Sequence[str]) -> float:
    """VQA accuracy: min(people who gave this answer / 3, 1), averaged over leaving out one person each.

    "VQA: Visual Question Answering" (arXiv 1505.00468) and its evaluation page, https://visualqa.org: both
    sides are normalised by `vqa_text` first. Of fewer than four people, one who agrees is enough.
    """
    said = vqa_text(answer)
    agree = sum(vqa_text(reference) == said for reference in references)
    others = len(references) - agree
    if len(references) < 4:
        return float(agree > 0)
    left_out_agrees, left_out_differs = min((agree - 1) / 3, 1.0), min(agree / 3, 1.0)
    return (agree * left_out_agrees + others * left_out_differs) / len(references)


def vqa_text(text: str) -> str:
    """The normal form of the VQA challenge: lower case, digits for number words, no articles or punctuation.

    Apostrophes that are missing from contractions come back; of the challenge's list of those the regular
    ones.
    """
    text = " ".join(text.lower().split())
    tight = bool(_DIGIT_COMMA.search(text))
    cleaned = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if tight or beside_space else " ")
    words = (_NUMBERS.get(word, word) for word in _FULL_STOP.sub("", cleaned).split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def choice(answer: str, references: Sequence[str], choices: Sequence[str] = ()) -> float:
    """1 where the answer picks the right letter; ``choices``: the texts of A, B, C ...

    Read as the letter: a letter alone or before other text ("(B)", "B.", "B) cat"), one that is said to be
    the answer ("The answer is B"), or the text of one choice. No letter that can be read is wrong. As
    MMBench and MMMU are scored where no other model is asked (arXiv 2307.06281, section 4.3).
    """
    said = letter_of(answer, choices)
    return float(said is not None and said in {letter_of(reference, choices) for reference in references})


def letter_of(text: str, choices: Sequence[str] = ()) -> str | None:
    """The letter, upper case, that ``text`` names, or None."""
    plain = normalized(text)
    texts = [normalized(one) for one in choices]
    if plain in texts and texts.count(plain) == 1:
        return chr(ord("A") + texts.index(plain))
    letters = {chr(ord("A") + i) for i in range(len(choices))} or LETTERS
    for found in (_LETTER_FIRST.match(text), *reversed(list(_ANSWER_IS.finditer(text)))):
        if found and found[1].upper() in letters:
            return found[1].upper()
    return None
