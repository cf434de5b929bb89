"""What guessing ahead brings: `python -m benchmarks.speculation`, tokens per second against no guesses.

A random checkpoint of moderate size answers twice: once it quotes its prompt, once it says what no lookup can
know. What it says is dictated by a logits processor, so that every run of a case makes the same tokens while
all the work of a step is done. The draft model is the checkpoint's own first layers, with the others damped
so far that it is often right, or it is a stranger that never is. All runs take turns, several rounds; medians
are printed, and the share of guesses that held.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import qvl
from qvl.engine.engine import Engine

VOCABULARY = 8192
PROMPT, ANSWER = 256, 96


@dataclass(frozen=True)
class Case:
    """One way of answering one prompt; ``than``: the case without guesses that it is compared with."""

    name: str
    than: str
    answer: Callable[[], torch.Tensor]


def network(
    hidden: int, layers: int, *, seed: int, damped: float = 1.0, first: int = 2, tied: bool = True
) -> Any:
    """A random model; what layers from ``first`` on add is multiplied by ``damped``. ``tied``: its head."""
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": max(1, hidden // 256),
        "rope_scaling": {"rope_type": "default", "mrope_section": [8, 12, 12]},
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    vision = {
        "depth": 1,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "out_hidden_size": hidden,
    }
    special = {"image_token_id": VOCABULARY - 1, "video_token_id": VOCABULARY - 2}
    special |= {"vision_start_token_id": VOCABULARY - 3, "vision_end_token_id": VOCABULARY - 4}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = qvl.Qwen2_5_VLConfig(
            text_config={**text, "tie_word_embeddings": tied},
            tie_word_embeddings=tied,
            vision_config={**vision, "fullatt_block_indexes": [0]},
            **special,
        )
        model = qvl.Qwen2_5_VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for layer in model.model.language_model.layers[first:]:
            layer.self_attn.o_proj.weight.mul_(damped)
            layer.mlp.down_proj.weight.mul_(damped)
    return model


def first_layers(model: Any, hidden: int, count: int) -> Any:
    """The model cut to its first ``count`` layers, sharing nothing."""
    short = network(hidden, count, seed=0)
    weights = model.state_dict()
    short.load_state_dict({name: weights[name] for name in short.state_dict()})
    return short


def dictate(answer: torch.Tensor, prompt_length: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A logits processor that makes the model say ``answer``."""

    def say(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        said = ids.shape[1] - prompt_length
        scores[:, answer[said]] = scores.amax() + 1.0
        return scores

    return say


def cases(hidden: int, layers: int) -> list[Case]:
    """Every case; dictated ones for lookup, the model's own answers for drafts."""
    model = network(hidden, layers, seed=0, damped=0.1)
    friend, stranger = first_layers(model, hidden, 2), network(hidden, 2, seed=7, tied=False)
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randperm(VOCABULARY - 8, generator=generator)[:PROMPT][None]
    scripts = {
        "quoting": prompt[0, 40 : 40 + ANSWER],
        "not quoting": torch.randint(0, VOCABULARY - 8, (ANSWER,), generator=generator),
    }

    def case(name: str, than: str, script: str | None = None, **settings: Any) -> Case:
        def answer() -> torch.Tensor:
            dictated = [] if script is None else [dictate(scripts[script], PROMPT)]
            return model.generate(prompt, max_new_tokens=ANSWER, logits_processor=dictated, **settings)

        return Case(name, than, answer)

    listed = []
    for script in scripts:
        base = f"{script}: no guesses"
        listed += [
            case(base, base, script, prompt_lookup_num_tokens=0),
            case(f"{script}: as measured", base, script),
            case(f"{script}: lookup of 8", base, script, prompt_lookup_num_tokens=8),
        ]
    base = "drafts: none"
    listed += [
        case(base, base, prompt_lookup_num_tokens=0),
        case("drafts: good model, as measured", base, assistant_model=friend),
        case("drafts: good model, 4 at a time", base, assistant_model=friend, num_assistant_tokens=4),
        case("drafts: useless model, as measured", base, assistant_model=stranger),
        case("drafts: useless model, 4 at a time", base, assistant_model=stranger, num_assistant_tokens=4),
    ]
    return listed


class Watch:
    """Counts the guesses of every request that an engine finishes."""

    def __init__(self) -> None:
        self.guessed = self.accepted = 0
        close = Engine._close

        def counting(engine: Engine, request: Any, token_ids: tuple[int, ...]) -> Any:
            self.guessed, self.accepted = request.guessed, request.accepted
            return close(engine, request, token_ids)

        Engine._close = counting  # type: ignore[method-assign]


def run(listed: list[Case], rounds: int) -> list[str]:
    """The table's lines. Raises RuntimeError if a case answers otherwise than without guesses."""
    watch = Watch()
    seconds: dict[str, list[float]] = {case.name: [] for case in listed}
    guesses: dict[str, tuple[int, int]] = {}
    answers: dict[str, torch.Tensor] = {}
    for _ in range(rounds):
        for case in listed:
            began = time.perf_counter()
            answers[case.name] = case.answer()
            seconds[case.name].append(time.perf_counter() - began)
            guesses[case.name] = (watch.guessed, watch.accepted)
            if not torch.equal(answers[case.name], answers[case.than]):
                raise RuntimeError(f"{case.name!r} does not answer as {case.than!r}")
    lines = [f"{'case':38} {'tokens/s':>9} {'ratio':>6} {'guesses':>8} {'held':>6}"]
    for case in listed:
        time_of = statistics.median(seconds[case.name])
        ratio = statistics.median(seconds[case.than]) / time_of
        guessed, held = guesses[case.name]
        share = f"{held / guessed:.0%}" if guessed else "-"
        lines.append(f"{case.name:38} {ANSWER / time_of:9.1f} {ratio:6.2f} {guessed:8} {share:>6}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    print(
        f"width {given.hidden}, {given.layers} layers, fp32, {torch.get_num_threads()} threads, "
        f"prompt {PROMPT}, answer {ANSWER}, medians of {given.rounds} rounds"
    )
    print("\n".join(run(cases(given.hidden, given.layers), given.rounds)))


if __name__ == "__main__":
    main()
