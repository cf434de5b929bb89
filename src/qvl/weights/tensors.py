"""The tensors of a module, each with every name it goes by: tied weights are one tensor with several."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Group:
    """One tensor of a module and its names, the one that it is stored under first."""

    names: tuple[str, ...]
    tensor: Tensor

    def assign(self, module: nn.Module, tensor: Tensor, *, trainable: bool) -> None:
        """Put ``tensor`` in the place of the old one, under all its names."""
        if isinstance(self.tensor, nn.Parameter) and not isinstance(tensor, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=trainable)
        for name in self.names:
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, tensor)


def groups_of(module: nn.Module) -> list[Group]:
    """What a checkpoint of ``module`` holds: parameters and persistent buffers."""
    tensors = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers())
    names_by_tensor: dict[int, list[str]] = {}
    for name in module.state_dict():
        names_by_tensor.setdefault(id(tensors[name]), []).append(name)
    return [Group(tuple(names), tensors[names[0]]) for names in names_by_tensor.values()]


def repeated_names(module: nn.Module) -> set[str]:
    """Names of tensors that already go by another name in ``module`` (a tied head)."""
    return {name for group in groups_of(module) for name in group.names[1:]}
