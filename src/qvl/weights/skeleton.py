"""A module without its weights: names and shapes on the meta device, which cost neither memory nor time."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class _NothingToFill(TorchFunctionMode):
    """Makes the functions of ``torch.nn.init`` hand their tensor back untouched.

    There is nothing to fill on the meta device, but to find that out torch imports its compiler: 0.7 s.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def skeleton(model_class: Any, config: Any) -> Any:
    """``model_class(config)`` with every parameter on the meta device."""
    with torch.device("meta"), _NothingToFill():
        return model_class(config)
