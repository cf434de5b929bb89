"""Where the parts of a model are to live: the answer to ``device_map``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qvl.errors import InputError, InputTypeError, missing_dependency

DeviceMap = str | int | torch.device | Mapping[str, Any] | None


@dataclass(frozen=True)
class Placement:
    """``devices``: module name -> device; "" stands for everything that no longer name covers."""

    devices: Mapping[str, torch.device]

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
        return cls({"": best_device() if device_map == "auto" else _device(device_map)})

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
            try:
                import accelerate  # noqa: F401
            except ImportError as error:
                raise missing_dependency(
                    "accelerate", "dispatch", "a device_map over several devices"
                ) from error

    def dispatch(self, module: nn.Module) -> None:
        """Let inputs follow the parts of ``module``, which lie on their devices already, across devices."""
        if self.spans_devices:
            spread(module, self.devices)


def spread(module: nn.Module, devices: Mapping[str, torch.device]) -> None:
    """Hooks of accelerate that move the inputs of every part to its device."""
    from accelerate import dispatch_model
    from accelerate.hooks import remove_hook_from_module

    dispatch_model(module, {name: str(device) for name, device in devices.items()}, force_hooks=True)
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
