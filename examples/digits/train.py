"""Trains the small model that ships inside qvl. Seeded; can be stopped and started again at any time.

First the vision tower learns alone which digit stands in each of its tokens and how its scan looks (a linear
reader, thrown away later, says what it sees); this gets past the long start in which a language model learns
nothing from pictures. Then all parts learn together to answer questions about pictures. What is kept is a
moving average of the weights.

    python -m examples.digits.train                    # goes on from runs/digits/state.pt if it is there
    python -m examples.digits.train --choose --steps 1000   # scores on training scans it holds back

Legend: T tokens, N merged vision tokens, D width, V vocabulary.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from examples.digits.checkpoint import ASSETS, export, model_config, write_small_files
from examples.digits.data import FAITHFUL, TRAINING, Scans, load_scans
from examples.digits.evaluate import held_out_figures
from examples.digits.lessons import (
    DENSE_SIZES,
    IGNORED,
    NOTHING,
    SIZES,
    Conversations,
    Pictures,
    Writer,
    draw_lesson,
    patchify,
)
from examples.digits.small import SmallPicturesLM, attend_by_length

CELLS = 64  # of a scan


@dataclass(frozen=True)
class Recipe:
    """``steps`` in all, the first ``tower_steps`` for the tower alone. ``average``: decay of the mean."""

    steps: int = 14000
    tower_steps: int = 4000
    tower_batch: int = 40
    batch: int = 48
    learning_rate: float = 2e-3
    warm_up: int = 100
    weight_decay: float = 0.05
    reader_weight: float = 0.3
    average: float = 0.998
    seed: int = 0


class Pupil(nn.Module):
    """The network, and the linear reader of vision tokens that helps it learn and is left behind."""

    def __init__(self) -> None:
        super().__init__()
        self.network = SmallPicturesLM(model_config())
        self.network.init_weights()
        self.reader = nn.Linear(self.network.config.text_config.hidden_size, NOTHING + 1 + CELLS)

    def look(self, pictures: Pictures) -> tuple[Tensor, Tensor]:
        """Vision tokens (N, D), and what the reader says of each: (N, 11 + 64)."""
        vision_ND = self.network.model.visual(patchify(pictures.pixels), (pictures.grid,) * len(pictures))
        return vision_ND, self.reader(vision_ND)

    def answer(self, talk: Conversations, vision_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (T', V) at the T' places where the assistant speaks, and the tokens to come there."""
        model, decoder = self.network.model, self.network.model.language_model
        shown_T = talk.ids_T == self.network.config.image_token_id
        x_TD = decoder.packed(
            model.embed(talk.ids_T, vision_ND, shown_T),
            talk.positions_3T,
            [attend_by_length(talk.lengths, causal=True)] * len(decoder.layers),
            lengths=talk.lengths,
        )
        spoken_T = talk.targets_T != IGNORED
        return self.network.logits(x_TD[spoken_T]), talk.targets_T[spoken_T]


def reading_loss(said: Tensor, pictures: Pictures) -> Tensor:
    """How badly vision tokens were read: the digit that stands in each, and the cells of its scan.

    To copy the scan as its writer left it, the tower must find the digit and undo its place, size, colours
    and distortion. That teaches much more per picture than the digit's name alone.
    """
    naming, copying = said.split([NOTHING + 1, CELLS], dim=-1)
    there = pictures.seen_N != NOTHING
    copy_loss = F.mse_loss(copying[there], (pictures.scans_NC[there] - 0.3) / 0.37)  # about standard normal
    return F.cross_entropy(naming, pictures.seen_N) + copy_loss


class Lessons(Dataset):
    """The pictures and conversations of every step: a function of the seed and the step alone."""

    def __init__(self, recipe: Recipe, scans: Scans) -> None:
        self.recipe, self.scans, self.writer = recipe, scans, Writer(ASSETS)

    def __getitem__(self, step: int) -> tuple[Pictures, Conversations | None]:
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + step)
        alone = step < self.recipe.tower_steps
        sizes, batch = (DENSE_SIZES, self.recipe.tower_batch) if alone else (SIZES, self.recipe.batch)
        size = sizes[int(torch.randint(len(sizes), (1,), generator=generator))]
        pictures = draw_lesson(self.scans, batch, size, TRAINING, generator, dense=alone)
        return pictures, None if alone else self.writer.write(pictures, generator)


class Training:
    """Everything that a saved state must hold for training to go on as if it had never stopped."""

    def __init__(self, recipe: Recipe, scans: Scans, others: Scans) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.others, self.lessons = recipe, others, Lessons(recipe, scans)
        self.pupil = Pupil()
        self.average = copy.deepcopy(self.pupil)
        self.optimizer = torch.optim.AdamW(
            self.pupil.parameters(), betas=(0.9, 0.98), weight_decay=recipe.weight_decay
        )
        self.step = 0

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {name: getattr(self, name).state_dict() for name in ("pupil", "average", "optimizer")}
        fresh = path.with_suffix(".new")
        torch.save(state | {"step": self.step}, fresh)
        fresh.replace(path)  # a stop while writing leaves the old state whole

    def load(self, path: Path) -> None:
        state = torch.load(path)
        for name in ("pupil", "average", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.step = state["step"]

    def advance(self, pictures: Pictures, talk: Conversations | None) -> tuple[float, float]:
        """One step: the losses of reading vision tokens and of answering (0 while the tower learns alone)."""
        vision_ND, read = self.pupil.look(pictures)
        reading = reading_loss(read, pictures)
        answering = torch.zeros(()) if talk is None else F.cross_entropy(*self.pupil.answer(talk, vision_ND))
        loss = reading if talk is None else answering + self.recipe.reader_weight * reading
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.pupil.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self._follow()
        return reading.item(), answering.item()

    def learning_rate(self) -> float:
        """Half a cosine down to a fiftieth, with a gentle start of each of the two stages."""
        recipe = self.recipe
        into_stage = self.step - (recipe.tower_steps if self.step >= recipe.tower_steps else 0)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.step / recipe.steps)))
        return recipe.learning_rate * min(1.0, (into_stage + 1) / recipe.warm_up) * (0.02 + 0.98 * cosine)

    @torch.no_grad()
    def _follow(self) -> None:
        decay = min(self.recipe.average, (self.step + 1) / (self.step + 20))
        for kept, current in zip(self.average.parameters(), self.pupil.parameters(), strict=True):
            kept.lerp_(current, 1 - decay)

    @torch.no_grad()
    def check(self, batch: int = 40) -> tuple[float, float]:
        """Shares of vision tokens and of numbers that the averaged weights read right in other scans."""
        generator, end = torch.Generator().manual_seed(1), self.lessons.writer.end
        numbers, cells = [], []
        for size in SIZES:
            pictures = draw_lesson(self.others, batch, size, FAITHFUL, generator)
            vision_ND, read = self.average.look(pictures)
            cells.append(read[:, : NOTHING + 1].argmax(-1) == pictures.seen_N)
            logits, targets = self.average.answer(self.lessons.writer.write(pictures, generator), vision_ND)
            wrong, ends = (logits.argmax(-1) != targets).long(), (targets == end).long()
            answer_of = ends.cumsum(0) - ends  # every answer closes with an end
            numbers.append(torch.zeros(batch, dtype=torch.long).index_add(0, answer_of, wrong) == 0)
        return float(torch.cat(cells).float().mean()), float(torch.cat(numbers).float().mean())


def learn(training: Training, state: Path, report_every: int, save_every: int) -> None:
    """Trains to the end of the recipe, with a bar, a line of figures now and then, and saved states."""
    recipe, start, sums = training.recipe, time.monotonic(), torch.zeros(2)
    # Another process draws the next pictures meanwhile.
    lessons = DataLoader(training.lessons, None, sampler=range(training.step, recipe.steps), num_workers=1)
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("", total=recipe.steps, completed=training.step)
        for lesson in lessons:
            sums += torch.tensor(training.advance(*lesson))
            bar.update(task, completed=training.step)
            if training.step % report_every == 0:
                reading, answering = (sums / report_every).tolist()
                cells, numbers = training.check()
                bar.console.print(
                    f"step {training.step}, {time.monotonic() - start:.0f} s: loss of reading {reading:.3f}, "
                    f"of answering {answering:.3f}; other scans: tokens {cells:.1%}, numbers {numbers:.1%}"
                )
                sums.zero_()
            if training.step % save_every == 0 or training.step == recipe.steps:
                training.save(state)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--tower-steps", type=int, default=Recipe.tower_steps)
    parser.add_argument("--tower-batch", type=int, default=Recipe.tower_batch)
    parser.add_argument("--batch", type=int, default=Recipe.batch)
    parser.add_argument("--learning-rate", type=float, default=Recipe.learning_rate)
    parser.add_argument("--state", type=Path, default=Path("runs/digits/state.pt"))
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder of the finished checkpoint")
    parser.add_argument("--report-every", type=int, default=100)
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument("--choose", action="store_true", help="hold back training scans, write no checkpoint")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    write_small_files(options.out)
    scans, held_out = load_scans()
    if options.choose:  # recipes are chosen on these, never on the scans that are held out
        cut = len(scans) * 4 // 5
        scans, held_out = scans.part(0, cut), scans.part(cut, len(scans))
    names = ("steps", "tower_steps", "tower_batch", "batch", "learning_rate")
    training = Training(Recipe(**{name: getattr(options, name) for name in names}), scans, held_out)
    if options.state.exists():
        training.load(options.state)
    learn(training, options.state, options.report_every, options.save_every)
    print("other scans: tokens {:.1%}, numbers {:.1%}".format(*training.check(64)))
    if not options.choose:
        export(training.average.network, options.out)
        held_out_figures(options.out)


if __name__ == "__main__":
    main()
