"""NaN and infinity, caught at the first output that shows them, and traced to the weights that hold them.

Without this they would surface as nonsense text ("!!!!"), far from their cause.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qvl.errors import NonFiniteError

LISTED = 3  # names in a message


def require_finite(x: Tensor, source: nn.Module, name: str) -> None:
    """Raises NonFiniteError unless ``x``, the output of ``source``, is finite. ``name``: of the source."""
    # A sum makes no tensor of x's size. Where it is not finite, float32 may have overflowed: look closer.
    if not bool(torch.isfinite(x.sum(dtype=torch.float32))) and not bool(torch.isfinite(x).all()):
        cause = non_finite_cause(source)
        raise NonFiniteError(f"The {name} gave NaN or infinite values in {x.dtype}; {cause}.")


def non_finite_cause(source: nn.Module) -> str:
    """The end of a message about an output that is not finite: which weights are to blame, if any."""
    broken = [key for key, parameter in source.named_parameters() if _is_broken(parameter)]
    if not broken:
        return (
            "its weights are finite, so the numbers overflowed or the input holds such values already: "
            "load the model in bfloat16 or float32, and look at the input"
        )
    more = f" and {len(broken) - LISTED} more" if len(broken) > LISTED else ""
    return (
        f"its weights {', '.join(broken[:LISTED])}{more} hold such values: the checkpoint is broken, "
        "or was cast to a dtype that is too narrow for it"
    )


def _is_broken(parameter: Tensor) -> bool:
    if hasattr(parameter, "__tensor_flatten__"):  # quantized: not a plain tensor that could be looked at
        return False
    return parameter.is_floating_point() and not bool(torch.isfinite(parameter).all())
