"""Phases that are whole processes.

The start to the first token, preprocessing alone, memory, matrix products.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from benchmarks import readme
from benchmarks.checkpoints import BUNDLED, ROOT, WORK, made_once
from benchmarks.gguf_files import write_decoder, write_vision
from benchmarks.process import Contestant, environment
from benchmarks.results import measurement_of
from benchmarks.rounds import Job, Measurement, Run
from benchmarks.worker import seconds_of

LARGE_GRID = (256, 256)  # patches: a picture of 65,536 of them, 16,384 tokens
MEMORY = [Contestant("transformers", "fp32"), Contestant("qvl", "fp32"), Contestant("transformers", "bf16")]
MEMORY += [Contestant("qvl", "bf16"), Contestant("qvl", "int8"), Contestant("qvl", "int4")]


def start(run: Run) -> None:
    """A question about a picture to the bundled model, to its first token; and an import of torch alone."""
    commands = {
        "transformers": [
            sys.executable,
            "-c",
            readme.ASK_PEER.replace("max_new_tokens=8", "max_new_tokens=1"),
        ],
        "qvl": [*readme.ASK, "--max-new-tokens", "1"],
        "import torch": [sys.executable, "-c", "import torch; print(torch.__version__)"],
    }
    if find_spec("llama_cpp") and find_spec("gguf"):
        commands["llama.cpp"] = ask_llama()
    else:
        run.note("llama.cpp left out of the start: pip install 'qvl[bench]'")
    jobs = {name: Job(whole_process(command, run.isa)) for name, command in commands.items()}
    run.measure("start", "process to first token, bundled model", jobs)


def ask_llama() -> list[str]:
    """The same question, in llama.cpp's files; the picture's size as the bundled model's settings say."""
    from qvl import Qwen2VLImageProcessor

    files = (
        made_once("bundled-F32.gguf", lambda path: write_decoder(BUNDLED, path)),
        made_once("bundled-mmproj-f32.gguf", lambda path: write_vision(BUNDLED, path)),
    )
    picture, sizes = Image.open(readme.PICTURE), Qwen2VLImageProcessor.from_pretrained(BUNDLED)
    _, rows, columns = sizes(picture, return_tensors="pt")["image_grid_thw"][0].tolist()
    size = (str(14 * columns), str(14 * rows))
    script = Path(__file__).with_name("ask_llama.py")
    return [sys.executable, str(script), *map(str, files), str(readme.PICTURE), prompt_for_llama(), *size]


def prompt_for_llama() -> str:
    """The bundled model's chat template, filled, with mtmd's marker where the picture's tokens come."""
    from qvl import AutoProcessor

    content = [{"type": "image"}, {"type": "text", "text": "What number is written here?"}]
    prompt: str = AutoProcessor.from_pretrained(BUNDLED).apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    return prompt.replace("<|vision_start|><|image_pad|><|vision_end|>", "<__media__>")


def whole_process(command: list[str], isa: str) -> Callable[[], float]:
    """Runs a command that must print something, and says how many seconds it took."""

    def run_it() -> None:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env=environment(isa), check=True
        )
        if not done.stdout.strip():
            raise RuntimeError(f"{command[:3]} printed nothing")

    return lambda: seconds_of(run_it)


def pixels(run: Run) -> None:
    """A 1024 px photo to patches: each library's own image processor, Pillow pictures in."""
    names = {"transformers": "peer", "qvl": "qvl"}
    jobs = {name: Job(inner_seconds(who, "pixels", run.isa)) for name, who in names.items()}
    run.measure("pixels", "1024 x 768 photo", jobs)


def inner_seconds(who: str, task: str, isa: str) -> Callable[[], float]:
    """A task of `benchmarks.tasks` in a fresh process: its median, without imports."""
    command = [sys.executable, "-m", "benchmarks.tasks", who, task]

    def ask() -> float:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env=environment(isa), check=True
        )
        return float(done.stdout.split()[-1])

    return ask


def memory(run: Run) -> None:
    """What loading and a first answer take, as a share of the weights.

    And what a very large picture takes.
    """
    for contestant in MEMORY:
        loads, answers = [], []
        for _ in range(min(run.rounds, 3)):
            shares = memory_shares(run, contestant)
            if shares is None:
                break
            loads.append(shares[0])
            answers.append(shares[1])
        if loads:
            run.add(Measurement("memory", "peak at load / weights", str(contestant), loads, unit="x"))
            run.add(
                Measurement("memory", "peak with an answer / weights", str(contestant), answers, unit="x")
            )
    large_picture(run)


def memory_shares(run: Run, contestant: Contestant) -> tuple[float, float] | None:
    """Peak above what the imports take, over the checkpoint's bytes: after loading, after a short answer."""
    with run.workers([contestant], parts="text,vision") as workers:
        for worker in workers.values():
            facts = worker.ask("facts")
            if "load_peak_bytes" not in facts:
                run.note("memory is measured on Linux alone")
                return None
            before = worker.ask("memory")["peak"] - facts["load_peak_bytes"]
            worker.ask("begin_streams", name="answer", streams=1, context=16, room=4)
            worker.ask("steps", name="answer", count=4)
            after = worker.ask("memory")["peak"] - before
            return facts["load_peak_bytes"] / facts["weight_bytes"], after / facts["weight_bytes"]
    return None


def large_picture(run: Run) -> None:
    """Bytes above weights and patches while the tower encodes 65,536 patches, for each format once."""
    side = (32, 32) if run.quick else LARGE_GRID
    for contestant in (Contestant("qvl", "fp32"), Contestant("qvl", "bf16")):
        with run.workers([contestant], parts="text,vision") as workers:
            for worker in workers.values():
                taken = worker.ask("encode_grid", height=side[0], width=side[1])
                case = f"a picture of {side[0] * side[1]} patches: above weights and patches"
                run.add(Measurement("memory", case, str(contestant), [taken["bytes"]], unit="B"))
                case = f"a picture of {side[0] * side[1]} patches"
                run.add(Measurement("memory", case, str(contestant), [taken["seconds"]]))


def products(run: Run) -> None:
    """The table of `benchmarks.kernels`, in a process of its own."""
    report = WORK / "kernels.json"
    command = [sys.executable, "-m", "benchmarks.kernels", "--rounds", str(run.rounds), "--json", str(report)]
    command += ["--isa", run.isa] if run.isa else []
    subprocess.run(
        [*command, *(["--quick"] if run.quick else [])], cwd=ROOT, env=environment(run.isa), check=True
    )
    found = json.loads(report.read_text(encoding="utf-8"))
    for note in found["notes"]:
        run.note(note)
    run.measurements.extend(measurement_of(values) for values in found["measurements"])
