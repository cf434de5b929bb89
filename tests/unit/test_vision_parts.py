"""Large pictures go through the tower in parts: same embeddings, each block called once, little memory."""

import subprocess
import sys

import pytest
import torch

from qvl.config import Qwen2_5_VLVisionConfig
from qvl.network import layers, stages, vision

GRIDS = [(1, 18, 10), (2, 8, 12), (1, 4, 4)]  # edge windows, a video, one window


@pytest.fixture
def tower():
    torch.manual_seed(0)
    config = Qwen2_5_VLVisionConfig(
        depth=3,
        hidden_size=32,
        intermediate_size=44,
        num_heads=4,
        out_hidden_size=24,
        fullatt_block_indexes=[1],
        window_size=56,
    )
    return vision.VisionTower(config).eval()


@pytest.mark.parametrize("setting", ["", "off"], ids=["kernels", "torch"])
def test_parts_give_what_the_whole_gives(tower, monkeypatch, setting):
    monkeypatch.setenv("QVL_KERNELS", setting)
    patches = torch.randn(sum(t * h * w for t, h, w in GRIDS), 1176)
    with torch.inference_mode():
        whole = tower(patches, GRIDS)
    monkeypatch.setattr(stages, "PART_ROWS", 40)
    monkeypatch.setattr(stages, "PART_KEYS", 90)
    monkeypatch.setattr(layers, "MLP_VALUES", 44 * 50)
    calls = {"block": [], "qkv": [], "gate": []}
    tower.blocks[0].register_forward_pre_hook(lambda _, inputs: calls["block"].append(len(inputs[0])))
    tower.blocks[1].attn.qkv.register_forward_pre_hook(lambda _, inputs: calls["qkv"].append(len(inputs[0])))
    tower.blocks[1].mlp.gate_proj.register_forward_pre_hook(
        lambda _, inputs: calls["gate"].append(len(inputs[0]))
    )
    with torch.inference_mode():
        parts = tower(patches, GRIDS)
    assert calls["block"] == [len(patches)]
    # Each frame by itself: one of 180 patches, two of 96, and one that is small enough for one stage.
    assert calls["qkv"] == [36] * 5 + [32] * 6 + [16] and max(calls["gate"]) <= 40
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
    calls["qkv"].clear()
    torch.testing.assert_close(tower(patches, GRIDS), whole, rtol=1e-5, atol=1e-6)  # with a graph: at once
    assert calls["qkv"] == [len(patches)]


def test_windows_are_grouped_whole(monkeypatch):
    monkeypatch.setattr(stages, "PART_ROWS", 30)
    assert stages.grouped([16, 16, 8, 4, 16]) == [[16, 16], [8, 4, 16]]
    assert stages.grouped([50, 1]) == [[50], [1]]
    assert stages.grouped([5]) == [[5]]


MEASURE = """
import torch
from qvl.config import Qwen2_5_VLVisionConfig
from qvl.network.vision import VisionTower

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

config = Qwen2_5_VLVisionConfig(
    depth=2,
    hidden_size=1280,
    intermediate_size=3420,
    num_heads=16,
    out_hidden_size=2048,
    fullatt_block_indexes=[1],
)
with torch.inference_mode():
    tower = VisionTower(config).eval()
    tower.init_weights()
    tower(torch.randn(4096, 1176), [(4, 32, 32)])  # all that is kept from call to call
    before = peak()
    tower(torch.randn(12288, 1176), [(12, 32, 32)])
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_65536_patches_fit_in_4_gigabytes():
    """Memory grows by at most 4 GB / 65,536 with each patch of the released tower, pixels and fp32 included.

    Frames of 1,024 patches, 4,096 of them and 12,288: what grows is what is as long as the picture.
    """
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert int(done.stdout) / 8192 <= 4e9 / 65536
