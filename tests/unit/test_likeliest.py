"""The place of the largest score is argmax's, wherever it stands."""

import pytest
import torch

from qvl.ops.likeliest import BLOCK, likeliest


@pytest.mark.parametrize("size", [1, 600, 4 * BLOCK, 4 * BLOCK + 1, 9 * BLOCK - 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_it_is_argmax(size, dtype):
    scores = torch.randn(50, size, generator=torch.Generator().manual_seed(0)).to(dtype)
    scores[0] = -torch.inf
    scores[1, -1] = scores[2, 0] = torch.inf
    assert likeliest(scores).tolist() == scores.float().argmax(-1).tolist()


def test_the_first_of_equal_ones():
    scores = torch.zeros(4, 5 * BLOCK + 7)
    for row, places in enumerate(((3, 9), (3, 4 * BLOCK), (5, 5 * BLOCK + 1), (BLOCK, 2 * BLOCK))):
        scores[row, list(places)] = 1.0
        assert int(likeliest(scores)[row]) == places[0]
