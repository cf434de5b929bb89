"""A safetensors file whose tensors start at whole cache lines once it is mapped, so that none is copied.

The format (https://github.com/huggingface/safetensors, "Format") leaves it to the writer: the header may end
in spaces, and the order of the tensors is free. safetensors' own writer only aligns to what a value needs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from qvl.errors import UnsupportedError

LINE = 64  # bytes of a cache line, and of the widest vector register

_NAMES = MappingProxyType(
    {
        torch.float64: "F64",
        torch.float32: "F32",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.float8_e4m3fn: "F8_E4M3",
        torch.float8_e5m2: "F8_E5M2",
        torch.int64: "I64",
        torch.int32: "I32",
        torch.int16: "I16",
        torch.int8: "I8",
        torch.uint8: "U8",
        torch.bool: "BOOL",
    }
)


def save_aligned(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write ``tensors`` into the file ``path``, one after the other: no second copy of them all is made.

    Those whose bytes fill whole lines come first, so that they and the first of the others start at one; the
    others follow from wide values to narrow ones. Raises UnsupportedError for a dtype that the format does
    not have, OSError as writing does.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise UnsupportedError(f"safetensors files hold no {tensor.dtype}, as {name} has it")
    ordered = sorted(tensors.items(), key=lambda item: (item[1].nbytes % LINE != 0, -item[1].itemsize))
    with path.open("wb") as file:
        file.write(_header(ordered, metadata))
        for _, tensor in ordered:
            plain = tensor.detach().to("cpu").contiguous().reshape(-1)
            plain.view(torch.uint8).numpy().tofile(file)


def _header(ordered: list[tuple[str, Tensor]], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    start = 0
    for name, tensor in ordered:
        end = start + tensor.nbytes
        entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % LINE)
    return len(text).to_bytes(8, "little") + text
