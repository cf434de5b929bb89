"""What is measured of a server under load: one function for each thing that its users wait for.

Each adds its figures to the run. Contestants are asked in turn, in rounds; the limits of the machine are
measured around every turn.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import httpx

from benchmarks import work
from benchmarks.rounds import FAILURES, Job, Measurement, Run
from benchmarks.serve_targets import (
    AGAIN,
    ALLOWED,
    ASKED,
    FIRST,
    GAPS,
    MANY,
    PICTURE,
    STEPS,
    THROUGHPUT,
    TURN,
    USUAL,
    WHOLE,
    WORST,
    streams,
)
from benchmarks.served import QVL, SERVE, Server, served_checkpoint, way
from benchmarks.streams import (
    Answer,
    Chat,
    first_token,
    gaps,
    picture_uri,
    question,
    seconds_of_steps,
    seconds_with_prompts,
    together,
)

MOST_GAP, GAPS_ALLOWED = 1.0, 3.0  # seconds, and usual gaps, whichever is longer
CLIENT = "client's share of one core"
UNITS = {CLIENT: "x", ALLOWED: "x"}
WARM = 4  # tokens of a running stream before anything is done to it
FOREVER = 4096  # tokens of a stream that is left when it has served its purpose

Values = dict[str, float]


@dataclass(frozen=True)
class Load:
    """``tokens`` of an answer; ``small`` and ``large``: pixels of a picture's side; ``counts``: streams of
    qvl's server alone; ``running``: streams that a picture meets; ``pieces``: as `Chat`'s."""

    tokens: int = 48
    counts: tuple[int, ...] = (1, 2, 4, MANY, 16)
    running: tuple[int, ...] = (1, 4)
    small: int = 224
    large: int = 1036
    pieces: float = 0.9


# Half of the tiny vocabulary is the bundled model's own word parts: they do not end in a space.
QUICK = Load(tokens=8, counts=(1, MANY), small=56, large=196, pieces=0.25)


@dataclass
class Bench:
    """A run with its load and the servers that are up. Questions are numbered: none is asked twice."""

    run: Run
    load: Load
    peers: Sequence[str]
    servers: dict[str, Server] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def chat(self, server: Server) -> Chat:
        folder = str(served_checkpoint(self.run.shape))
        return Chat(server.url, folder, server.name == QVL, self.load.pieces)

    @contextmanager
    def up(self) -> Iterator[None]:
        """All servers, warm and waiting; of those that can't run here a note says why."""
        with ExitStack() as stack:
            for name in (QVL, *self.peers):
                try:
                    server = stack.enter_context(Server(way(name, self.run.shape), self.run.isa))
                    self.servers[name] = server
                    self.remember(server, "ready")
                    together(partial(self._warm, self.chat(server)))
                except FAILURES as reason:
                    self.run.note(f"{name} left out: {reason}")
                    self.servers.pop(name, None)
            yield
            for server in self.servers.values():
                self.remember(server, "after the load")
        self.servers.clear()

    async def _warm(self, chat: Chat, client: httpx.AsyncClient) -> None:
        await chat.ask(client, question("warm"), self.load.tokens)

    def remember(self, server: Server, when: str) -> None:
        for account, what in (("VmRSS", "resident"), ("RssAnon", "resident, without mapped files")):
            if taken := server.memory(account):
                self.run.add(Measurement("memory", f"{what}, {when}", server.name, [taken], unit="B"))

    def questions(self, count: int, side: int | None) -> list[list[dict[str, object]]]:
        found = []
        for number in itertools.islice(self.numbers, count):
            shown = None if side is None else picture_uri(side, number)
            found.append(question(f"{number:05}", shown))
        return found

    def measure(
        self,
        section: str,
        main: str,
        turns: Mapping[str, Callable[[], Values]],
        amounts: Mapping[str, tuple[work.Work | None, int]],
    ) -> None:
        """Turns that find several figures each, by case; the limits are measured around ``main``, in seconds.

        ``amounts``: by turn, what its main case is held against, and how many tokens a sample brings.
        """
        found: dict[str, list[Values]] = {name: [] for name in turns}

        def seconds(name: str) -> float:
            found[name].append(turns[name]())
            return found[name][-1][main]

        known = len(self.run.measurements)
        nothing = (None, 0)
        jobs = {name: Job(partial(seconds, name), *amounts.get(name, nothing)) for name in turns}
        self.run.measure(section, main, jobs)
        for measured in self.run.measurements[known:]:
            counted = found[measured.contestant][-len(measured.samples) :]
            for case in counted[0]:
                if case != main:
                    self._beside(measured, case, [values[case] for values in counted])

    def _beside(self, measured: Measurement, case: str, samples: list[float]) -> None:
        unit = next((unit for name, unit in UNITS.items() if case.endswith(name)), "s")
        tokens = measured.tokens if case.endswith(WHOLE) else 0
        self.run.add(Measurement(measured.section, case, measured.contestant, samples, unit, tokens=tokens))


def start(bench: Bench) -> None:
    """From the start of a process to the first token of its first answer; the weights' files are cached."""
    names = (QVL, *bench.peers)
    case = "process to the first token"

    def turn(name: str) -> Values:
        with Server(way(name, bench.run.shape), bench.run.isa) as server:
            chat = bench.chat(server)
            answer = together(lambda client: chat.ask(client, question("first"), tokens=4))
            return {case: answer.times[0] - server.began, "process to ready": server.start_seconds}

    bench.measure("start", case, {name: partial(turn, name) for name in names}, {})
    if bench.peers:
        bench.run.note(f"{SERVE} is ready before it has loaded the model: it loads with the first question")


def throughput(bench: Bench) -> None:
    """The same questions to 1 and to many, of text alone and about a small picture each."""
    for kind, side in (("text", None), ("picture", bench.load.small)):
        turns: dict[str, Callable[[], Values]] = {}
        amounts = {}
        for name, server in bench.servers.items():
            counts = bench.load.counts if name == QVL and side is None else (1, MANY)
            for count in counts:
                turns[streams(name, count)] = partial(load_turn, bench, bench.chat(server), kind, count, side)
                amounts[streams(name, count)] = (step_work(bench, count), count)
        bench.measure(THROUGHPUT, f"{kind}, {STEPS}", turns, amounts)


def load_turn(bench: Bench, chat: Chat, kind: str, count: int, side: int | None) -> Values:
    questions = bench.questions(count, side)
    began, used = time.perf_counter(), time.process_time()
    answers = together(lambda client: chat.ask_all(client, questions, bench.load.tokens))
    share = (time.process_time() - used) / (time.perf_counter() - began)
    return {
        f"{kind}, {STEPS}": seconds_of_steps(answers),
        f"{kind}, {WHOLE}": seconds_with_prompts(answers),
        f"{kind}, {FIRST}": first_token(answers),
        f"{kind}, {CLIENT}": share,
    }


def step_work(bench: Bench, count: int) -> work.Work:
    """A step of so many streams in the middle of their answers."""
    shape = bench.run.shape
    weights = shape.layers * work.layer_weights(shape) + work.head_weights(shape)
    return work.decode(shape, count, bench.load.tokens, 4.0 * weights, "fp32")


def picture(bench: Bench) -> None:
    """A question about a large picture, a different one about the same, and a second turn after the first."""
    turns = {n: partial(picture_turn, bench, bench.chat(server)) for n, server in bench.servers.items()}
    bench.measure(PICTURE, ASKED, turns, {})


def picture_turn(bench: Bench, chat: Chat) -> Values:
    number = next(bench.numbers)
    shown = picture_uri(bench.load.large, number)
    first = question("", shown, f"{number:05}: what does this picture show?")
    other = question("", shown, f"{number:05}: and how many houses do people see here?")

    async def talk(client: httpx.AsyncClient) -> list[Answer]:
        one = await chat.ask(client, first, 4)
        two = await chat.ask(client, other, 4)
        said = {"role": "assistant", "content": one.text}
        turn = [*first, said, {"role": "user", "content": "Where in the picture is that?"}]
        return [one, two, await chat.ask(client, turn, 4)]

    answers = together(talk)
    if chat.own:
        bench.run.note(
            f"of the prompts about a {bench.load.large} px picture, qvl took from memory "
            + ", ".join(f"{a.cached} of {a.usage['prompt_tokens']} tokens" for a in answers)
        )
    return dict(zip((ASKED, AGAIN, TURN), (a.first for a in answers), strict=True))


def gap(bench: Bench) -> None:
    """Running streams, while somebody else's large picture is encoded and its prompt computed."""
    if (server := bench.servers.get(QVL)) is None:
        return
    chat = bench.chat(server)
    turns = {streams(QVL, n): partial(gap_turn, bench, chat, n) for n in bench.load.running}
    bench.measure(GAPS, WORST, turns, {})


def gap_turn(bench: Bench, chat: Chat, count: int) -> Values:
    running, asked = together(partial(interrupted, bench, chat, count))
    before = [g for answer in running for g in gaps(answer, answer.times[WARM], asked.asked)]
    during = [g for answer in running for g in gaps(answer, asked.asked, asked.times[0])]
    usual = statistics.median(before)
    longest = max(during)
    return {
        WORST: longest,
        USUAL: usual,
        "usual gap while a picture is read": statistics.median(during),
        ALLOWED: longest / max(GAPS_ALLOWED * usual, MOST_GAP),
        "the picture's own first token": asked.first,
    }


async def interrupted(
    bench: Bench, chat: Chat, count: int, client: httpx.AsyncClient
) -> tuple[list[Answer], Answer]:
    """Streams that run until somebody's question about a picture got its first token, and that answer.

    Raises RuntimeError where a stream ended before.
    """
    running: dict[int, Answer] = {}
    read: list[float] = []  # when the picture's first token came

    def watch(number: int, answer: Answer) -> bool:
        running[number] = answer
        return bool(read and answer.times and answer.times[-1] > read[0])

    texts, (shown,) = bench.questions(count, None), bench.questions(1, bench.load.large)
    tasks = [
        asyncio.create_task(chat.ask(client, text, FOREVER, partial(watch, number)))
        for number, text in enumerate(texts)
    ]
    try:
        while len(running) < count or any(len(a.times) < 4 * WARM for a in running.values()):
            if any(task.done() for task in tasks):
                raise RuntimeError("a stream ended before the picture was shown")
            await asyncio.sleep(0.02)
        asked = await chat.ask(client, shown, 1)
        read.append(asked.times[0])
        answers = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    if any(answer.ended for answer in answers):
        raise RuntimeError("a stream ended before the picture was read")
    return list(answers), asked


def agreement(bench: Bench) -> None:
    """A remark on whether all servers say the same."""
    (asked,) = bench.questions(1, bench.load.small)
    texts = {}
    for name, server in bench.servers.items():
        ask = partial(bench.chat(server).ask, messages=asked, tokens=bench.load.tokens)
        texts[name] = together(ask).text
    if len(texts) > 1:
        same = len({tuple(text.split()) for text in texts.values()}) == 1
        names = " and ".join(texts)
        verdict = "say the same" if same else "do not say the same"
        bench.run.note(f"{names} {verdict} about a picture ({bench.load.tokens} greedy tokens)")
