"""Training in several processes under ``torchrun``: samples dealt out; weights in shards (FSDP2) or copies.

Every process takes its share of each step's samples; a step is the same as that of one process, up to the
order in which sums are taken. Works on GPUs (NCCL) and on the CPU (gloo). Knows no optimizer and no files.

Copies exchange gradients once a step: the least to send, where the model fits into every process. With
weights in shards, processes meet inside the network: each layer is put together from all of them right
before it is used. So all of them must use the same layers equally often. One without a picture, or out of
samples, would leave the others waiting for ever; a `blank` picture that teaches nothing keeps it in step.
"""

from __future__ import annotations

import atexit
import copy
import gc
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from qvl.errors import CheckpointMismatchError, UnsupportedError
from qvl.train.objective import Loss, Objective
from qvl.train.packing import PackedBatch
from qvl.train.sample import IGNORED, Sample
from qvl.types import Grid, Medium, Prompt, Span

PATIENCE = timedelta(hours=2)  # for a process that waits, say for another to write a large checkpoint
Item = TypeVar("Item")


class Processes:
    """One process that trains alone; what many do together does nothing here."""

    rank = 0
    count = 1

    @property
    def first(self) -> bool:
        """Whether it is this one that writes and speaks."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """What of a step's samples is this process's."""
        return items[self.rank :: self.count]

    def prepare(self, model: nn.Module, objective: Objective) -> Callable[[PackedBatch], Loss]:
        """The loss of a batch, as a function that all processes call equally often."""
        return lambda batch: objective(model, batch)

    def filler(self, model: nn.Module) -> Sample | None:
        """What has to be in a pass without media; None where nothing has."""
        return None

    def sums(self, values: Mapping[str, float]) -> dict[str, float]:
        """Of every process's values, which have the same names everywhere."""
        return dict(values)

    def most(self, value: int) -> int:
        """The greatest of every process's values."""
        return value

    def meet(self, parameters: Iterable[nn.Parameter]) -> None:
        """Adds up the gradients of all processes, where that has not happened on the way."""

    def clip(self, parameters: Iterable[nn.Parameter], limit: float) -> float:
        """The norm of all gradients together, which are cut to ``limit`` where that is not 0."""
        norm = nn.utils.clip_grad_norm_(list(parameters), limit or float("inf"), foreach=True)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def barrier(self) -> None: ...

    def settle(self) -> None:
        """After passes that nothing went backward through: what they put together is let go."""

    def whole(self, model: nn.Module) -> nn.Module | None:
        """The model with all of its weights, in the first process; None in the others."""
        return model

    def gathered(self, state: Any) -> Any:
        """Nested lists and dicts of tensors with whole ones; of use in the first process only."""
        return state

    def spread(self, value: Tensor, like: Tensor) -> Tensor:
        """A whole tensor as ``like`` is: the same device, or this process's part of it."""
        return value.to(like.device, copy=True)

    def check_same(self, what: str, value: int) -> None:
        """Raises CheckpointMismatchError where the processes differ in something they must not."""


class Group(Processes):
    """What is the same for all processes of a group, however they hold the weights."""

    def __init__(self) -> None:
        self.rank, self.count = dist.get_rank(), dist.get_world_size()

    def filler(self, model: nn.Module) -> Sample | None:
        return blank(model.config)

    def sums(self, values: Mapping[str, float]) -> dict[str, float]:
        total = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(total)
        return dict(zip(values, total.tolist(), strict=True))

    def most(self, value: int) -> int:
        greatest = torch.tensor(value)
        dist.all_reduce(greatest, dist.ReduceOp.MAX)
        return int(greatest)

    def barrier(self) -> None:
        self.most(0)

    def check_same(self, what: str, value: int) -> None:
        if (greatest := self.most(value)) != (least := -self.most(-value)):
            raise CheckpointMismatchError(
                f"One process has {what} {least}, another {greatest}: all of them must see the same folders; "
                "give an output folder and data that every machine has"
            )


class Replicated(Group):
    """One of the processes of a group, each with all weights and the whole state of the optimizer."""

    def meet(self, parameters: Iterable[nn.Parameter]) -> None:
        """In one message. Who has learned nothing in a step has no gradients, and adds zeros."""
        trained = list(parameters)
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))


class Sharded(Group):
    """One of the processes of a group, weights and optimizer state cut into as many parts."""

    def __init__(self, mesh: DeviceMesh) -> None:
        super().__init__()
        self.mesh = mesh
        self._bare: nn.Module | None = None
        self._shards: list[FSDPModule] = []

    def prepare(self, model: nn.Module, objective: Objective) -> Callable[[PackedBatch], Loss]:
        """Cuts the model, in place, and the objective's own weights.

        ``model``: `CausalLM`, on the CPU, the same in all processes. Its parameters keep their names. Raises
        UnsupportedError for a torch that can't add up gradients.
        """
        if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
            raise UnsupportedError(
                f"torch {torch.__version__} is too old to train with shares of the weights; install a newer "
                "torch, or let each process hold all of them (--copies)"
            )
        self._bare = _without_weights(model) if self.first else None
        whole = _Whole(model, objective)
        backbone: Any = model.model
        for block in (*backbone.visual.blocks, *backbone.language_model.layers):
            fully_shard(block, mesh=self.mesh)
        fully_shard(whole, mesh=self.mesh)
        self._shards = [module for module in whole.modules() if isinstance(module, FSDPModule)]
        for module in self._shards:
            # Losses are divided by all learned tokens before, so gradients are summed. And gloo can do no
            # other reduction.
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
        return lambda batch: Loss(*whole(batch))

    def settle(self) -> None:
        for module in self._shards:
            module.reshard()

    def whole(self, model: nn.Module) -> nn.Module | None:
        values = self.gathered(dict(model.named_parameters()))
        if self._bare is None:
            return None
        # A copy of the bare model whose parameters are said to be copied already: as these values.
        bare = dict(self._bare.named_parameters())
        known = {id(p): nn.Parameter(values[name], requires_grad=False) for name, p in bare.items()}
        return copy.deepcopy(self._bare, known)

    def gathered(self, state: Any) -> Any:
        if isinstance(state, Mapping):
            return {name: self.gathered(value) for name, value in state.items()}
        if isinstance(state, (list, tuple)):
            return type(state)(self.gathered(value) for value in state)
        if isinstance(state, DTensor):
            state = state.full_tensor()  # all processes together
        if isinstance(state, Tensor):
            return state.detach().cpu() if self.first else None
        return state

    def spread(self, value: Tensor, like: Tensor) -> Tensor:
        if not isinstance(like, DTensor) or value.shape != like.shape:
            return value.clone()
        # Every process has read the whole tensor, so nothing is sent.
        return distribute_tensor(value.to(like.device), self.mesh, like.placements, src_data_rank=None)


class _Whole(nn.Module):
    """Model and objective under one root, whose weights are put together for the whole of a pass."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: PackedBatch) -> tuple[Any, ...]:
        return tuple(vars(self.objective(self.model, batch)).values())


@contextmanager
def processes(*, sharded: bool = True) -> Iterator[Processes]:
    """Those of ``torchrun``, from its environment; without it, one alone. ``sharded``: or with copies."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Processes()
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    mesh = None
    try:
        if sharded:
            mesh = init_device_mesh("cuda" if cuda else "cpu", (dist.get_world_size(),))
            yield Sharded(mesh)
        else:
            yield Replicated()
    finally:
        dist.destroy_process_group()
        _let_go(mesh)


def _let_go(mesh: DeviceMesh | None) -> None:
    """Ends the threads of gloo before Python ends.

    One that is late in letting a tensor go asks for Python's lock, and where that is gone, it aborts the
    process. torch's caches keep the mesh for ever, the mesh its groups; the model knows them in cycles.
    """
    getattr(mesh, "_pg_registry", {}).clear()
    atexit.register(gc.collect)


def blank(config: Any) -> Sample:
    """The smallest picture there is, nothing to be learned of it. ``config``: the model's (outer) config."""
    vision = config.vision_config
    side = vision.spatial_merge_size
    ids = (config.vision_start_token_id, config.image_token_id, config.vision_end_token_id)
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    picture = Medium("image", Grid(1, side, side), torch.zeros(side * side, values))
    # One merged token stands where a token of text would.
    prompt = Prompt(ids, torch.arange(3).expand(3, 3), spans=(Span("image", 1, 1),), media=(picture,))
    return Sample(prompt, torch.full((3,), IGNORED), "blank")


def _without_weights(model: nn.Module) -> nn.Module:
    """A copy whose parameters have shapes and nothing else, tied ones still tied."""
    known = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, known)
