"""Checkpoint files that need no copy when they are mapped, and that safetensors itself reads."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from qvl.errors import UnsupportedError
from qvl.weights.aligned import LINE, save_aligned
from qvl.weights.files import Checkpoint

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
DTYPES += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    found = {f"odd.{dtype}": torch.randint(0, 2, (3, 7), generator=generator).to(dtype) for dtype in DTYPES}
    found |= {
        f"even.{dtype}": torch.randint(0, 2, (8, 64), generator=generator).to(dtype) for dtype in DTYPES
    }
    return found | {"scalar": torch.tensor(3.5), "empty": torch.ones(0, 4), "turned": torch.randn(5, 9).T}


def test_safetensors_reads_what_was_written(tmp_path, tensors):
    save_aligned(tensors, tmp_path / "model.safetensors", {"format": "pt", "more": "ü"})
    read = load_file(tmp_path / "model.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name].double(), tensor.double()), name
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "more": "ü"}


@pytest.mark.parametrize("length", range(0, 130, 13))
def test_whole_lines_start_at_one(tmp_path, tensors, length):
    """Whatever the length of the header; the mapping itself starts at a page."""
    save_aligned(tensors, tmp_path / "model.safetensors", {"padding": "x" * length})
    source = Checkpoint(tmp_path)
    lines = [name for name, tensor in tensors.items() if tensor.nbytes and tensor.nbytes % LINE == 0]
    assert len(lines) >= len(DTYPES)
    for name in lines:
        assert source.read(name).data_ptr() % LINE == 0, name


def test_a_dtype_that_the_format_does_not_have(tmp_path):
    with pytest.raises(UnsupportedError, match=r"hold no torch\.complex64, as odd has it"):
        save_aligned({"odd": torch.zeros(2, dtype=torch.complex64)}, tmp_path / "file", {})
