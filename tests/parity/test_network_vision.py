"""The vision tower against transformers', with the same random weights."""

import pytest
import torch

from qvl.network.vision import VisionTower
from support.tiny import random_patches, tiny_configs, tiny_oracle, tiny_pair

pytestmark = pytest.mark.oracle

GRIDS = {
    "odd": [(1, 6, 10)],
    "one window": [(1, 8, 8)],
    "small": [(1, 4, 4)],
    "one token": [(1, 2, 2)],
    "even multiples": [(1, 16, 16)],
    "large": [(1, 16, 18)],
    "line": [(1, 2, 30)],
    "video": [(3, 8, 6)],
    "several": [(1, 6, 10), (3, 8, 6), (1, 4, 4), (1, 16, 18), (2, 10, 22)],
}


@pytest.fixture(scope="module")
def towers():
    theirs, ours = tiny_pair(seed=1)
    return theirs.model.visual, ours.model.visual


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_embeddings(towers, name, backend):
    theirs, ours = towers
    ours.attention_backend = backend
    patches = random_patches(GRIDS[name])
    with torch.no_grad():
        expected = theirs(patches, torch.tensor(GRIDS[name]))
        found = ours(patches, torch.tensor(GRIDS[name]))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "vision",
    [
        {"spatial_merge_size": 3, "window_size": 84},
        {"window_size": 56},
        {"window_size": 150},
        {"patch_size": 4, "window_size": 40, "in_channels": 1, "temporal_patch_size": 1},
        {"hidden_act": "gelu_pytorch_tanh"},
        {"hidden_act": "quick_gelu"},
        {"hidden_act": "relu2", "fullatt_block_indexes": []},
        {"num_heads": 8, "depth": 2, "out_hidden_size": 32},
    ],
)
def test_other_settings(vision):
    theirs, ours = tiny_pair(vision=vision)
    grids = [(1, 12, 18), (2, 6, 12)]
    generator = torch.Generator().manual_seed(3)
    patches = torch.randn(
        12 * 18 + 2 * 72, ours.model.visual.patch_embed.proj.weight[0].numel(), generator=generator
    )
    with torch.no_grad():
        expected = theirs.model.visual(patches, torch.tensor(grids))
        found = ours.model.visual(patches, grids)
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_precise(dtype):
    theirs, ours = tiny_pair(seed=2)
    theirs, ours = theirs.model.visual, ours.model.visual
    grids = torch.tensor(GRIDS["several"])
    patches = random_patches(GRIDS["several"])
    with torch.no_grad():
        exact = theirs(patches, grids)
        expected, found = theirs.to(dtype)(patches, grids), ours.to(dtype)(patches, grids)
    assert found.dtype == dtype
    assert (found.float() - exact).abs().mean() < 1.2 * (expected.float() - exact).abs().mean()


def test_gradients_with_and_without_checkpointing():
    theirs, ours = tiny_pair(seed=4)
    theirs, ours = theirs.model.visual.train(), ours.model.visual.train()
    grids, patches = GRIDS["several"], random_patches(GRIDS["several"])
    theirs(patches, torch.tensor(grids)).square().mean().backward()
    expected = dict(theirs.named_parameters())
    for checkpointing in (False, True):
        ours.gradient_checkpointing = checkpointing
        ours.zero_grad()
        ours(patches, grids).square().mean().backward()
        for name, parameter in ours.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-4, rtol=1e-3, msg=name)


def test_initial_weights_are_spread_alike():
    theirs_config, ours_config = tiny_configs(vision={"initializer_range": 0.07})
    tower = VisionTower(ours_config.vision_config)
    tower.init_weights()
    for name, parameter in tower.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif "norm" in name or "ln_q" in name:
            assert (parameter == 1).all()
        else:
            assert abs(parameter.std() / 0.07 - 1) < 0.15, name
    assert set(tower.state_dict()) == set(tiny_oracle(theirs_config).model.visual.state_dict())
