"""The training loop: samples in, steps of the optimizer, checkpoints that serve as they are.

Everything that decides a step is a function of the settings and the step, or stands in the checkpoint: a run
that was killed goes on bit for bit (on a CPU). What a checkpoint holds beside the trainer's own state is
written by ``write_model``; what is minimised is the ``objective``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from qvl.errors import CheckpointMismatchError, NonFiniteError, QvlError
from qvl.train import saving
from qvl.train.objective import Loss, Objective, answer_loss
from qvl.train.optimizer import build_optimizer, set_rate
from qvl.train.packing import PackedBatch, groups, pack
from qvl.train.parallel import Processes
from qvl.train.sample import Sample, Source
from qvl.train.schedule import indices, rate
from qvl.train.settings import TrainSettings

# Settings that may differ when a run goes on: they do not change its course, but for ``steps`` and
# ``epochs``, which move its end, and with it the fall of the rate.
FREE = frozenset(
    {"workers", "log_every", "save_every", "evaluate_every", "keep", "steps", "epochs", "save_dtype"}
)

Values = dict[str, float]


class Listener(Protocol):
    """Whoever wants to know how training goes: a progress bar, a file of metrics."""

    def started(self, step: int, steps: int) -> None: ...

    def stepped(self, step: int, values: Values) -> None:
        """After every step (counted from 1): loss, right, rate, gradient norm, tokens, seconds."""

    def evaluated(self, step: int, values: Values) -> None: ...

    def saved(self, step: int, folder: Path) -> None: ...


@dataclass(frozen=True, eq=False)
class Passes:
    """A process's samples of a step, packed. ``learned``: tokens to be learned in all of them; ``tokens``:
    all of them.
    """

    batches: tuple[PackedBatch, ...]
    learned: int
    tokens: int


class Steps(Dataset):
    """What every step takes, by its number: a pure function, so that another process can prepare it.

    ``share``: what of a step's samples is this process's. ``filler``: a sample with a picture, put where
    there is none, if every pass must have one.
    """

    def __init__(
        self,
        source: Source,
        settings: TrainSettings,
        collate: Callable[[Sequence[Sample]], PackedBatch],
        share: Callable[[Sequence[int]], Sequence[int]],
        filler: Sample | None,
    ) -> None:
        self.source, self.settings, self.collate = source, settings, collate
        self.share, self.filler = share, filler

    def __getitem__(self, step: int) -> Passes | QvlError:
        """An error comes back as it is: raised here, the loader would make a text with a traceback of it."""
        try:
            own = self.share(indices(step, len(self.source), self.settings))
            return self.packed([self.source[i] for i in own])
        except QvlError as error:
            return error

    def packed(self, samples: Sequence[Sample]) -> Passes:
        parts = groups(map(len, samples), self.settings.pass_tokens)
        batches = tuple(self.collate(self._filled([samples[i] for i in part])) for part in parts)
        return Passes(batches, sum(batch.learned for batch in batches), sum(map(len, samples)))

    def _filled(self, samples: list[Sample]) -> list[Sample]:
        if self.filler is None or any(sample.prompt.media for sample in samples):
            return samples
        return [*samples, self.filler]

    def idle(self) -> PackedBatch:
        """A pass that teaches nothing, for a process that has none left."""
        return self.collate(self._filled([]))


class Trainer:
    """Trains ``model`` in place.

    ``write_model``: writes everything that serves (config, weights, processor) into a folder. ``objective``:
    a function of the model and a batch; if it is a module, its own parameters are trained too and thrown
    away in the end. ``rate_of``: learning rate by parameter name. ``processes``: those that train together,
    each with a trainer of its own; listeners are told in the first one.
    """

    def __init__(
        self,
        model: Any,
        source: Source,
        settings: TrainSettings,
        out: Path,
        write_model: Callable[[nn.Module, Path], None],
        *,
        objective: Objective = answer_loss,
        collate: Callable[[Sequence[Sample]], PackedBatch] = pack,
        rate_of: Callable[[str], float] | None = None,
        evaluation: Source | None = None,
        listeners: Sequence[Listener] = (),
        processes: Processes | None = None,
    ) -> None:
        self.model, self.settings, self.out, self.write_model = model, settings, out, write_model
        self.processes = Processes() if processes is None else processes
        self.objective, self.evaluation = objective, evaluation
        self.listeners = listeners if self.processes.first else ()
        self.steps = settings.total_steps(len(source))
        self.lessons = Steps(source, settings, collate, self.processes.share, self.processes.filler(model))
        self.samples = len(source)
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        self.loss_of = self.processes.prepare(model, objective)
        for parameter in self._trained().values():
            parameter.data = parameter.data.float()
        self.optimizer = build_optimizer(self._trained().items(), settings, rate_of)
        self.average = self._copies() if settings.average else {}
        self.step = 0

    # -- the run ---------------------------------------------------------------------------------------

    def run(self) -> None:
        """Trains to the end, from the newest checkpoint of ``out`` if there is one, and publishes the model.

        An interruption (Ctrl-C) saves first, if this process trains alone. Raises NonFiniteError for a loss
        that is not a number.
        """
        self.resume()
        for listener in self.listeners:
            listener.started(self.step, self.steps)
        self.model.train()
        try:
            for passes in self._upcoming():
                self._report(self.advance(passes))
                if self.step % self.settings.save_every == 0 or self.step == self.steps:
                    self.save()
        except KeyboardInterrupt:
            if self.processes.count == 1:  # many are interrupted in many places, and can't do it together
                self.save()
            raise
        finally:
            self.model.eval()
        found = saving.newest(self.out)
        if found is not None and self.processes.first:
            saving.publish(found[1], self.out)
        self.processes.barrier()

    def _upcoming(self) -> Iterator[Passes]:
        workers = self.settings.workers
        loader = DataLoader(
            self.lessons,
            batch_size=None,
            sampler=range(self.step, self.steps),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
        )
        for passes in loader:
            if isinstance(passes, QvlError):
                raise passes
            yield passes

    def advance(self, passes: Passes) -> Values:
        """One step of the optimizer; the loss is the mean over all learned tokens of the step."""
        start, settings = perf_counter(), self.settings
        # Of dropout: the same when resumed, another in each process.
        torch.manual_seed(hash((settings.seed, self.step, self.processes.rank)) % 2**63)
        factor = rate(self.step, self.steps, settings)
        set_rate(self.optimizer, factor)
        self.optimizer.zero_grad(set_to_none=True)
        sums = self._passes(passes)
        self.processes.meet(self._trained().values())
        norm = self.processes.clip(self._trained().values(), settings.clip)
        self.optimizer.step()
        self.step += 1
        self._follow()
        return sums | {"rate": factor, "norm": norm, "seconds": perf_counter() - start}

    def _passes(self, passes: Passes) -> Values:
        counts = self.processes.sums({"learned": passes.learned, "tokens": passes.tokens})
        learned = max(1.0, counts["learned"])
        sums: dict[str, float] = {"loss": 0.0, "right": 0.0}
        for batch in self._together(passes.batches):
            loss = self._loss(batch)
            mean = loss.total / learned
            mean.backward()
            share = batch.learned / learned
            found = {"loss": mean.detach(), "right": loss.right / learned}
            found |= {name: value.detach() * share for name, value in loss.parts.items()}
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        sums = self.processes.sums(sums) | {"tokens": counts["tokens"]}
        if not all(map(math.isfinite, sums.values())):
            raise NonFiniteError(
                f"The loss of step {self.step + 1} is {sums['loss']}: lower the learning rate, or compute in "
                "float32; the last checkpoint is as it was"
            )
        return sums

    def _together(self, batches: Sequence[PackedBatch]) -> Iterator[PackedBatch]:
        """As many passes in each process: idle ones where there are no more."""
        most = self.processes.most(len(batches))  # before any of them: passes are met in the same order
        yield from batches
        for _ in range(most - len(batches)):
            yield self.lessons.idle()

    def _loss(self, batch: PackedBatch) -> Loss:
        device = next(self.model.parameters()).device
        half = self.settings.dtype == "bfloat16"
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            return self.loss_of(batch.to(device))

    @torch.no_grad()
    def _follow(self) -> None:
        """The moving average follows; young ones follow faster."""
        if not self.average:
            return
        keep = min(self.settings.average, (self.step + 1) / (self.step + 20))
        torch._foreach_lerp_(list(self.average.values()), list(self._values().values()), 1 - keep)

    @torch.no_grad()
    def evaluate(self) -> Values:
        """Mean loss and share of right tokens over the evaluation source."""
        assert self.evaluation is not None
        self.model.eval()
        sums: Values = {"loss": 0.0, "right": 0.0}
        learned = 0
        for first in range(0, len(self.evaluation), self.settings.batch):
            last = min(first + self.settings.batch, len(self.evaluation))
            own = self.processes.share(range(first, last))
            passes = self.lessons.packed([self.evaluation[i] for i in own])
            for batch in self._together(passes.batches):
                loss = self._loss(batch)
                sums["loss"] += float(loss.total)
                sums["right"] += float(loss.right)
            learned += passes.learned
        self.processes.settle()
        self.model.train()
        sums = self.processes.sums({**sums, "learned": learned})
        return {name: sums[name] / max(1.0, sums["learned"]) for name in ("loss", "right")}

    def _report(self, values: Values) -> None:
        for listener in self.listeners:
            listener.stepped(self.step, values)
        every = self.settings.evaluate_every
        if self.evaluation is not None and (self.step == self.steps or (every and self.step % every == 0)):
            found = self.evaluate()
            for listener in self.listeners:
                listener.evaluated(self.step, found)

    # -- what is trained -------------------------------------------------------------------------------

    def _trained(self) -> dict[str, nn.Parameter]:
        """Every parameter that is trained, by name; those of the objective under "objective."."""
        found = dict(self.model.named_parameters())
        if isinstance(self.objective, nn.Module):
            found |= {f"objective.{name}": value for name, value in self.objective.named_parameters()}
        return {name: value for name, value in found.items() if value.requires_grad}

    def _values(self) -> dict[str, Tensor]:
        return {name: parameter.data for name, parameter in self._trained().items()}

    def _copies(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self._values().items()}

    # -- checkpoints -----------------------------------------------------------------------------------

    def save(self) -> Path:
        """A checkpoint of this step: the model as it serves, and what the trainer needs to go on."""
        state = self.processes.gathered(self._state())
        folder = saving.place(self.out, self.step)
        with self._averaged():
            model = self.processes.whole(self.model)
            if model is not None and self.processes.first:
                saving.save_whole(self.out, self.step, lambda folder: self._write(folder, model, state))
        if self.processes.first:
            saving.tidy(self.out, self.settings.keep)
        self.processes.barrier()
        for listener in self.listeners:
            listener.saved(self.step, folder)
        return folder

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "samples": self.samples,
            "settings": asdict(self.settings),
            "weights": self._copies() if self.average else self._values(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }

    def _write(self, folder: Path, model: nn.Module, state: dict[str, Any]) -> None:
        self.write_model(model, folder)
        torch.save(state, folder / saving.STATE)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The model with its average in place of its weights, if there is one."""
        values, own = self._values(), self._copies() if self.average else {}
        with torch.no_grad():
            try:
                for name, value in self.average.items():
                    values[name].copy_(value)
                yield
            finally:
                for name, value in own.items():
                    values[name].copy_(value)

    def resume(self) -> None:
        """Goes on from the newest checkpoint of ``out``, if there is one.

        Raises CheckpointMismatchError where it was made by other settings or other data.
        """
        found = saving.newest(self.out)
        self.processes.check_same("the last checkpoint at step", found[0] if found else 0)
        if found is None:
            return
        state = torch.load(found[1] / saving.STATE, weights_only=True, mmap=True)
        self._check(state, found[1])
        with torch.no_grad():
            for kind, values in (("weights", self._values()), ("average", self.average)):
                for name, value in state[kind].items():
                    values[name].copy_(self.processes.spread(value, values[name]))
        self.optimizer.load_state_dict(self._optimizer_state(state["optimizer"]))
        self.step = state["step"]

    def _optimizer_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """As the optimizer keeps it: for each parameter by its number, what has the parameter's shape."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        spread = {
            number: {name: self.processes.spread(value, parameters[number]) for name, value in own.items()}
            for number, own in state["state"].items()
        }
        return {**state, "state": spread}

    def _check(self, state: dict[str, Any], folder: Path) -> None:
        saved, own = state["settings"], asdict(self.settings)
        other = [
            f"{f.name} (then {saved.get(f.name)!r}, now {own[f.name]!r})"
            for f in fields(self.settings)
            if f.name not in FREE and saved.get(f.name) != own[f.name]
        ]
        if state["samples"] != self.samples:
            other.append(f"samples (then {state['samples']}, now {self.samples})")
        if state["weights"].keys() != self._trained().keys():
            other.append("which parameters are trained")
        if other:
            raise CheckpointMismatchError(
                f"{folder} is from a run with other settings: {', '.join(other)}; give the same ones to go "
                "on, or another folder to begin anew"
            )
