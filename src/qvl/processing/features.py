"""The container that processors and tokenizers return: a dict whose entries are attributes too.

It knows tensors and lists, not what the entries mean; the one exception is named in ``EXACT_NAMES``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from qvl.errors import InputError, UnknownNameError

# Read as Python floats when positions are computed: half precision would move a video's frames in time, and
# a copy on an accelerator would only have to come back. So `.to()` leaves it alone and it stays float64.
EXACT_NAMES = frozenset({"second_per_grid_ts"})


class BatchFeature(dict):
    """Model inputs by name: ``features["input_ids"]``, ``features.input_ids`` and ``model(**features)``.

    ``data`` is any mapping. ``tensor_type`` "pt" makes torch tensors of all numbers, "np" NumPy arrays, None
    leaves all as it is. Raises InputError where rows of different lengths cannot become a tensor.
    """

    def __init__(self, data: Mapping[str, Any] | None = None, tensor_type: str | None = None):
        super().__init__(data or {})
        self.convert_to_tensors(tensor_type)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"No entry {name!r} here; there are: {', '.join(self) or 'none'}") from None

    @property
    def data(self) -> dict[str, Any]:
        """The entries as a plain dict."""
        return dict(self)

    def convert_to_tensors(self, tensor_type: str | None = None) -> BatchFeature:
        """Converts all entries in place; returns itself."""
        if tensor_type is None:
            return self
        kind = getattr(
            tensor_type, "value", tensor_type
        )  # transformers' TensorType is an enum of these strings
        if kind not in ("pt", "np"):
            raise UnknownNameError(f"return_tensors must be 'pt', 'np' or None, not {tensor_type!r}")
        for name, value in self.items():
            self[name] = _tensor(name, value) if kind == "pt" else _array(name, value)
        return self

    def to(
        self, *args: Any, device: Any = None, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Moves tensors to a device and casts the floating ones to a dtype, in place; returns itself.

        Takes what ``torch.Tensor.to`` takes: a device, a dtype or both, by place or by name.
        """
        for argument in args:
            if isinstance(argument, torch.dtype):
                dtype = argument
            else:
                device = argument
        for name, value in self.items():
            if name not in EXACT_NAMES:
                self[name] = _moved(value, device, dtype, kwargs)
        return self


def _moved(value: Any, device: Any, dtype: torch.dtype | None, options: dict[str, Any]) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_moved(item, device, dtype, options) for item in value)
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(device=device, dtype=dtype if value.is_floating_point() else None, **options)


def _tensor(name: str, value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value
    array = _array(name, value)
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else array


def _array(name: str, value: Any) -> Any:
    """A NumPy array of ``value``; values that are no numbers (texts, metadata) stay what they are."""
    if isinstance(value, torch.Tensor):
        return value.numpy(force=True)
    if isinstance(value, np.ndarray) or not isinstance(value, Sequence) or isinstance(value, str):
        return value
    try:
        array = np.asarray(
            [item.numpy(force=True) if isinstance(item, torch.Tensor) else item for item in value]
        )
    except ValueError:
        raise InputError(
            f"{name} has rows of different lengths{_lengths(value)} and cannot become one tensor: "
            "use padding=True (and truncation=True for a maximum), or return_tensors=None"
        ) from None
    if array.dtype.kind not in "biuf":
        return value
    if array.dtype == np.float64 and name not in EXACT_NAMES:
        return array.astype(np.float32)
    return array


def _lengths(rows: Sequence[Any]) -> str:
    lengths = [str(len(row)) for row in rows[:8] if hasattr(row, "__len__")]
    return f" ({', '.join(lengths)}{', ...' if len(rows) > 8 else ''})" if lengths else ""
