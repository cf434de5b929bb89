"""Where the parts of a model are to live: the answer to ``device_map``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qvl.errors import InputError, InputTypeError, missing_dependency

DeviceMap = str | int | torch.device | Mapping[str, Any] | None


ROOM = 0.9  # of a GPU's free memory is for weights; activations and keys and values need the rest


@dataclass(frozen=True)
class Placement:
    """``devices``: module name -> device; "" stands for everything that no longer name covers.

    ``automatic``: chosen here, so it may be spread out where one device has no room.
    """

    devices: Mapping[str, torch.device]
    automatic: bool = False

    @classmethod
    def read(cls, device_map: DeviceMap) -> Placement:
        """From what ``from_pretrained(device_map=...)`` takes: None, "auto", a device, its index, or a
        dict.
        """
        if device_map is None:
            return cls({"": torch.device("cpu")})
        if isinstance(device_map, Mapping):
            if not device_map:
                raise InputError("device_map is an empty dict; name at least '' (the whole model)")
            return cls({name: _device(device) for name, device in device_map.items()})
        if device_map == "auto":
            return cls({"": best_device()}, automatic=True)
        return cls({"": _device(device_map)})

    @property
    def spans_devices(self) -> bool:
        return len(set(self.devices.values())) > 1

    def device_of(self, name: str) -> torch.device:
        """The device of the parameter or module ``name``: that of the longest entry it lies under."""
        under = [key for key in self.devices if key == "" or name == key or name.startswith(key + ".")]
        if not under:
            raise InputError(f"device_map says nothing about {name}; add an entry for it or for ''")
        return self.devices[max(under, key=len)]

    def require(self) -> None:
        """Raise before anything is read if what spreading needs is not installed."""
        if self.spans_devices:
            _require_accelerate("a device_map over several devices")

    def fitted(self, module: nn.Module, dtype: torch.dtype, bits: Mapping[str, int]) -> Placement:
        """This placement, checked against ``module`` (still without memory), which will have ``dtype``.

        An automatic one is spread over all GPUs, and what they have no room for over the CPU, if the first
        GPU has no room for everything. ``bits``: of the parameters that will have fewer than ``dtype``.
        Raises InputError for entries that name no part of the module.
        """
        parts = {name for name, _ in module.named_modules()} | set(module.state_dict())
        unknown = [name for name in self.devices if name not in parts]
        if unknown:
            raise InputError(
                f"device_map names {', '.join(unknown)}, which {type(module).__name__} does not have; its "
                f"parts are {', '.join(name for name, _ in module.named_children())} and those below"
            )
        if not self.automatic or self.devices[""].type != "cuda":
            return self
        room = gpu_room()
        bits_of = {
            tensor: tensor.numel() * bits.get(name, 8 * dtype.itemsize)
            if isinstance(tensor, nn.Parameter)
            else 8 * tensor.nbytes
            for name, tensor in held_tensors(module)
        }
        needed = sum(bits_of.values())
        if needed <= 8 * room[0]:
            return self
        _require_accelerate(f"a model of {needed / 8e9:.1f} GB on a GPU with room for {room[0] / 1e9:.1f} GB")
        return Placement(_spread_map(module, bits_of, room))

    def dispatch(self, module: nn.Module) -> None:
        """Let inputs follow the parts of ``module``, which lie on their devices already, across devices."""
        if self.spans_devices:
            spread(module, self.disjoint(module))

    def disjoint(self, module: nn.Module, name: str = "") -> dict[str, torch.device]:
        """The same as entries none of which lies under another: accelerate lets the outer one win."""
        inside = f"{name}." if name else ""
        if not any(key != name and key.startswith(inside) for key in self.devices):
            return {name: self.device_of(name)}
        found = {
            inside + leaf: self.device_of(inside + leaf) for leaf, _ in module.named_parameters(recurse=False)
        }
        for child, part in module.named_children():
            found |= self.disjoint(part, inside + child)
        return found


def _require_accelerate(purpose: str) -> None:
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise missing_dependency("accelerate", "dispatch", purpose) from error


def gpu_room() -> list[int]:
    """Bytes of weights that each CUDA GPU can take."""
    return [int(ROOM * torch.cuda.mem_get_info(i)[0]) for i in range(torch.cuda.device_count())]


def _spread_map(module: nn.Module, bits_of: Mapping[Tensor, int], room: list[int]) -> dict[str, torch.device]:
    """Parts of ``module`` in their order, as many as fit on each GPU in turn, then on the CPU.

    ``bits_of``: each tensor's size. A part whose tensors are all placed (a tied head) stays with them.
    """
    gpu, left = 0, 8 * room[0]
    devices: dict[str, torch.device] = {}
    placed: dict[Tensor, torch.device] = {}
    for name, part in _uncut(module):
        own = [tensor for _, tensor in held_tensors(part)]
        needed = sum(bits_of[tensor] for tensor in own if tensor not in placed)
        while gpu < len(room) and needed > left:
            gpu += 1
            left = 8 * room[gpu] if gpu < len(room) else 0
        here = torch.device("cuda", gpu) if gpu < len(room) else torch.device("cpu")
        devices[name] = here if needed else placed.get(own[0], here)
        left -= needed
        placed |= {tensor: devices[name] for tensor in own if tensor not in placed}
    return devices


def held_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What takes memory: parameters, tied ones once, and the buffers of quantized layers."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def _uncut(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The parts that stay on one device: whole blocks, the vision tower, and modules with tensors of their
    own."""
    for child, part in module.named_children():
        inner = f"{name}.{child}" if name else child
        leaf = any("." not in leaf_name for leaf_name, _ in held_tensors(part))
        if leaf or child == "visual" or isinstance(module, nn.ModuleList):
            yield inner, part
        else:
            yield from _uncut(part, inner)


def spread(module: nn.Module, devices: Mapping[str, torch.device]) -> None:
    """Hooks of accelerate that move the inputs of every part to its device.

    Parts on the CPU compute there: every step would otherwise bring their weights to a GPU and drop them.
    """
    from accelerate import dispatch_model
    from accelerate.hooks import remove_hook_from_module

    places = {name: str(device) for name, device in devices.items()}
    dispatch_model(module, places, main_device="cpu" if "cpu" in places.values() else None, force_hooks=True)
    # The outermost hook would send results back to the device of the inputs, and takes outputs apart for it.
    remove_hook_from_module(module)


def best_device() -> torch.device:
    """The first accelerator that torch can use here, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def _device(value: Any) -> torch.device:
    if isinstance(value, bool) or not isinstance(value, str | int | torch.device):
        raise InputTypeError(f"a device is a name, an index or a torch.device, got {value!r}")
    try:
        device = (
            torch.device(value) if not isinstance(value, int) else torch.device(best_device().type, value)
        )
    except RuntimeError as error:
        raise InputError(f'there is no device {value!r}; use "cpu", "cuda:0", "auto" ...') from error
    if device.type == "cpu":
        return torch.device("cpu")  # an index means nothing there
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {value!r} was asked for, but this torch sees no CUDA GPU")
    return device
