"""The files of a checkpoint: safetensors, one or several with an index, read memory-mapped, written atomically.

Knows files and stored tensors. Knows no modules but for collecting what is to be saved, and nothing of what the
tensors mean; renaming is ``names``'s business and matching is ``load``'s.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from qvl.config.base import read_json
from qvl.errors import CheckpointCorruptError, CheckpointNotFoundError, InputError
from qvl.weights.names import to_released

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_OWN_FILE = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BINARY_UNITS = {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_NUMPY_FREE_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
