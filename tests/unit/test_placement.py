"""Where parts of a model go: every form of device_map, and what needs accelerate."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from qvl.config import Qwen2_5_VLConfig
from qvl.errors import InputError, InputTypeError, MissingDependencyError
from qvl.modeling import Qwen2_5_VLForConditionalGeneration
from qvl.weights import placement
from qvl.weights.placement import Placement, best_device
from qvl.weights.progress import SlowProgress
from support.tiny import IMAGE, VISION_END, VISION_START, random_patches, tiny_settings

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.mark.parametrize("device_map", [None, "cpu", CPU, torch.device("cpu", 0), {"": "cpu"}])
def test_one_device(device_map):
    placed = Placement.read(device_map)
    assert placed.device_of("model.visual.x") == CPU
    assert not placed.spans_devices


def test_auto_is_the_first_accelerator_or_the_cpu():
    assert Placement.read("auto").device_of("x") == best_device()


def test_a_number_is_the_accelerators(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Placement.read(1).device_of("x") == torch.device("cuda", 1)
    assert Placement.read("auto").device_of("x") == torch.device("cuda", 0)


def test_the_longest_entry_counts():
    placed = Placement.read({"": "cpu", "model.visual": "meta", "model.visual.blocks.1": "cpu"})
    assert placed.device_of("model.visual.merger.x") == META
    assert placed.device_of("model.visual.blocks.1.x") == CPU
    assert placed.device_of("model.visual.blocks.10.x") == META, "names are not cut in the middle"
    assert placed.device_of("model.visuals") == CPU
    assert placed.spans_devices


@pytest.mark.parametrize(
    "device_map, error, message",
    [
        ("tpu9", InputError, "no device 'tpu9'"),
        ({}, InputError, "empty dict"),
        (1.5, InputTypeError, "got 1.5"),
        (True, InputTypeError, "got True"),
        ({"": "disk"}, InputError, "no device 'disk'"),
    ],
)
def test_what_is_no_device(device_map, error, message):
    with pytest.raises(error, match=message):
        Placement.read(device_map)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_absent_gpu():
    with pytest.raises(InputError, match="sees no CUDA GPU"):
        Placement.read("cuda:0")


def test_a_map_that_covers_not_everything():
    with pytest.raises(InputError, match=r"says nothing about lm_head\.weight"):
        Placement.read({"model": "cpu"}).device_of("lm_head.weight")


def test_spreading_needs_accelerate(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    Placement.read({"a": "cpu", "b": "cpu"}).require()
    with pytest.raises(MissingDependencyError, match=r'pip install "qvl\[dispatch\]"'):
        Placement.read({"a": "cpu", "b": "meta"}).require()


def test_only_several_devices_are_spread(monkeypatch):
    calls = []
    monkeypatch.setattr(placement, "spread", lambda module, devices: calls.append(set(devices)))
    Placement.read("cpu").dispatch(nn.Linear(1, 1))
    assert calls == []
    Placement.read({"": "cpu", "b": "meta"}).dispatch(nn.Linear(1, 1))
    assert calls == [{"", "b"}]


def test_a_spread_model_answers_the_same():
    pytest.importorskip("accelerate")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**tiny_settings())).eval()
    ids = torch.tensor([[1, 2, VISION_START, *[IMAGE] * 4, VISION_END, 5]])
    inputs = {"input_ids": ids, "pixel_values": random_patches([(1, 4, 4)])}
    inputs["image_grid_thw"] = torch.tensor([[1, 4, 4]])
    before = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    with torch.no_grad():
        logits = model(**inputs).logits
        placement.spread(model, {"model.visual": CPU, "model.language_model": CPU, "lm_head": CPU})
        assert torch.equal(model(**inputs).logits, logits)
    assert hasattr(model.lm_head, "_hf_hook")
    assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), before)


def test_progress_shows_only_what_is_slow():
    with SlowProgress("fast", 10) as progress:
        progress.advance(10)
        assert progress.bar is None
    with SlowProgress("slow", 10, patience=0.0) as progress:
        progress.advance(4)
        assert progress.bar.tasks[0].completed == 4
        progress.advance(6)
        assert progress.bar.finished
