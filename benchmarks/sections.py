"""What is measured: one function for each phase a person waits for. Each adds its figures to the run.

Contestants that belong together (the same bits for a weight) run in the same rounds; no more of them are
loaded at once than memory holds.
"""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path

from benchmarks import work
from benchmarks.checkpoints import WORK
from benchmarks.process import Contestant, Worker
from benchmarks.rounds import Job, Measurement, Run
from benchmarks.tasks import photo

FP32 = [Contestant("transformers", "fp32"), Contestant("llama.cpp", "F32"), Contestant("qvl", "fp32")]
BF16 = [Contestant("transformers", "bf16"), Contestant("llama.cpp", "BF16"), Contestant("qvl", "bf16")]
BITS8 = [Contestant("llama.cpp", "Q8_0"), Contestant("qvl", "int8")]
BITS4 = [Contestant("llama.cpp", "Q4_0"), Contestant("llama.cpp", "Q4_K_M"), Contestant("qvl", "int4")]
GROUPS = [FP32, BF16, BITS8, BITS4]
# Prompts in 8 bits are held against Q4_K_M too: llama.cpp's fastest format for them.
PREFILL_GROUPS = [FP32, BF16, [*BITS8, BITS4[1]], BITS4]
TOWERS = [
    [*FP32, Contestant("qvl", "int8-vision")],
    [BF16[0], Contestant("llama.cpp", "F16"), BF16[2]],
]
SHORT_CONTEXT = 128  # tokens before the first step of a decoding stream
STEPS = 8  # tokens in one turn; the turn's figure is their median


def prefill(run: Run) -> None:
    """A prompt, from nothing to the logits after it."""
    lengths = [32, 64] if run.quick else [512, 2048]
    for group in PREFILL_GROUPS:
        with run.workers(group) as workers:
            for tokens in lengths:
                jobs = run.jobs(
                    (str(c), partial(prefill_job, run, c, worker, tokens)) for c, worker in workers.items()
                )
                run.measure("prefill", f"{tokens} tokens, {label(group)}", jobs)


def prefill_job(run: Run, contestant: Contestant, worker: Worker, tokens: int) -> Job:
    amount = work.prefill(run.shape, tokens, decoder_bytes(worker), contestant.weights)
    return Job(lambda: worker.ask("prefill", tokens=tokens), amount, tokens)


def decode(run: Run) -> None:
    """One token after another for one person."""
    for group in GROUPS:
        with run.workers(group) as workers:
            jobs = run.jobs(
                (str(c), partial(stream_job, run, c, worker, 1, SHORT_CONTEXT))
                for c, worker in workers.items()
            )
            run.measure("decode", f"1 stream, {label(group)}", jobs)


def batch(run: Run) -> None:
    """A step of 8 and of 16 streams, beside one of a single stream."""
    for group in GROUPS:
        with run.workers(group) as workers:
            jobs = run.jobs(
                (f"{c} x {streams}", partial(stream_job, run, c, worker, streams, SHORT_CONTEXT))
                for streams in (1, 8, 16)
                for c, worker in workers.items()
            )
            run.measure("batch", f"streams, {label(group)}", jobs)


def context(run: Run) -> None:
    """A step behind a short context and behind a long one."""
    lengths = (64, 256) if run.quick else (1024, 16384)
    for group in (FP32, BF16[2:], BITS8, BITS4[2:]):
        with run.workers(group) as workers:
            jobs = run.jobs(
                (f"{c} at {length}", partial(stream_job, run, c, worker, 1, length))
                for length in lengths
                for c, worker in workers.items()
            )
            run.measure("context", f"1 stream, {label(group)}", jobs)


def stream_job(run: Run, contestant: Contestant, worker: Worker, streams: int, length: int) -> Job:
    """Prompts are computed here, once; every turn goes on from there."""
    name = f"{streams} x {length}"
    room = STEPS * (run.rounds + 1) + 1
    worker.ask("begin_streams", name=name, streams=streams, context=length, room=room)
    amount = work.decode(run.shape, streams, length, decoder_bytes(worker), contestant.weights)
    return Job(lambda: statistics.median(worker.ask("steps", name=name, count=STEPS)), amount, tokens=streams)


def vision(run: Run) -> None:
    """A picture, from its patches to its embeddings."""
    sides = [112, 196] if run.quick else [448, 1036]
    for group in TOWERS:
        with run.workers(group, parts="text,vision") as workers:
            for side in sides:
                jobs = run.jobs(
                    (str(c), partial(picture_job, run, c, worker, side)) for c, worker in workers.items()
                )
                run.measure("vision", f"{side} px, {label(group)}", jobs)


def picture_job(run: Run, contestant: Contestant, worker: Worker, side: int) -> Job:
    name = f"{side} px"
    worker.ask("begin_picture", name=name, path=str(picture(side)))
    amount = work.vision(run.shape, side, contestant.weights)
    return Job(lambda: worker.ask("encode", name=name), amount, tokens=(side // 28) ** 2)


def picture(side: int) -> Path:
    """A square photo in a file: every contestant reads the same pixels."""
    path = WORK / f"photo-{side}.png"
    if not path.exists():
        WORK.mkdir(parents=True, exist_ok=True)
        photo().resize((side, side)).save(path)
    return path


def agreement(run: Run) -> None:
    """Whether the contestants compute the same: the largest difference of logits and of embeddings.

    Beside transformers in fp32, as a share of the largest value there.
    """
    tokens, side = (32, 112) if run.quick else (128, 448)
    reference: dict[str, list[float]] = {}
    for contestant in [*FP32, Contestant("qvl", "int8-vision"), *BF16, *BITS8, *BITS4]:
        parts = "text" if contestant in (BITS8 + BITS4) else "text,vision"
        with run.workers([contestant], parts) as workers:
            for worker in workers.values():
                compare(run, contestant, outputs(worker, tokens, side, parts), reference)


def outputs(worker: Worker, tokens: int, side: int, parts: str) -> dict[str, list[float]]:
    found = {f"logits after {tokens} tokens": worker.ask("logits", tokens=tokens)}
    if "vision" in parts:
        worker.ask("begin_picture", name="picture", path=str(picture(side)))
        worker.ask("encode", name="picture")
        found[f"embeddings of {side} px"] = worker.ask("embeddings", name="picture")
    return found


def compare(
    run: Run, contestant: Contestant, found: dict[str, list[float]], reference: dict[str, list[float]]
) -> None:
    for case, values in found.items():
        expected = reference.setdefault(case, values)
        largest = max(abs(b) for b in expected)
        apart = max(abs(a - b) for a, b in zip(values, expected, strict=True)) / largest
        run.add(Measurement("agreement", case, str(contestant), [apart], unit="x"))


def decoder_bytes(worker: Worker) -> float:
    return float(worker.ask("facts")["decoder_bytes"])


def label(group: list[Contestant]) -> str:
    """What a group of contestants has in common, for a case's name."""
    names = {"fp32": "fp32", "bf16": "bf16", "int8": "8 bits", "int4": "4 bits"}
    return next(names[c.weights] for c in group if c.weights in names)
