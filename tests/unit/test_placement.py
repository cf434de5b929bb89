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
    Placement.read({"": "cpu", "1": "meta"}).dispatch(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)))
    assert calls == [{"0", "1"}]


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


@pytest.fixture
def empty_model():
    """A tied model without memory, and the bytes of its parts in float32."""
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(**tiny_settings(text={"num_hidden_layers": 6, "tie_word_embeddings": True}))
        )

    def size(name):
        return 4 * sum(p.numel() for p in model.get_submodule(name).parameters())

    return model, size


@pytest.fixture
def gpus(monkeypatch):
    """Pretends that there are GPUs with so much room each."""

    def pretend(*room):
        monkeypatch.setattr(placement, "best_device", lambda: torch.device("cuda", 0))
        monkeypatch.setattr(placement, "gpu_room", lambda: list(room))

    return pretend


def test_auto_uses_one_gpu_where_that_has_room(empty_model, gpus, monkeypatch):
    model, size = empty_model
    monkeypatch.setitem(sys.modules, "accelerate", None)
    gpus(size(""), 0)
    assert Placement.read("auto").fitted(model, torch.float32, {}).devices == {"": torch.device("cuda", 0)}
    gpus(size("") // 2)
    assert not Placement.read("auto").fitted(model, torch.bfloat16, {}).spans_devices


def test_auto_spreads_over_gpus_and_the_cpu_in_order(empty_model, gpus):
    model, size = empty_model
    layer = size("model.language_model.layers.0")
    gpus(size("model.visual") + size("model.language_model.embed_tokens") + layer + 8, 2 * layer)
    placed = Placement.read("auto").fitted(model, torch.float32, {})
    where = {name: str(placed.device_of(name)) for name in model.state_dict()}
    stack = "model.language_model.layers"
    assert {where[name] for name in where if name.startswith("model.visual.")} == {"cuda:0"}
    assert [where[f"{stack}.{i}.mlp.up_proj.weight"] for i in range(6)] == (
        ["cuda:0"] + ["cuda:1"] * 2 + ["cpu"] * 3
    )
    assert all(
        where[name] == where[f"{stack}.{i}.mlp.up_proj.weight"]
        for i in range(6)
        for name in where
        if name.startswith(f"{stack}.{i}.")
    ), "no layer is cut"
    assert where["model.language_model.norm.weight"] == "cpu"
    assert where["lm_head.weight"] == where["model.language_model.embed_tokens.weight"] == "cuda:0"


def test_auto_counts_quantized_weights_as_what_they_become(empty_model, gpus):
    model, size = empty_model
    gpus(size("") // 3)
    bits = dict.fromkeys(model.state_dict(), 8)
    assert "" not in Placement.read("auto").fitted(model, torch.float32, {}).devices
    assert "" in Placement.read("auto").fitted(model, torch.float32, bits).devices


def test_auto_that_has_to_spread_needs_accelerate(empty_model, gpus, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    gpus(1000)
    with pytest.raises(MissingDependencyError, match=r'room for 0.0 GB .*pip install "qvl\[dispatch\]"'):
        Placement.read("auto").fitted(empty_model[0], torch.float32, {})


def test_a_map_that_names_what_is_not_there(empty_model):
    with pytest.raises(InputError, match=r"names visual, model\.vision, which .* parts are model, lm_head"):
        Placement.read({"": "cpu", "visual": "cpu", "model.vision": "cpu"}).fitted(
            empty_model[0], torch.float32, {}
        )


def test_overlapping_entries_are_taken_apart(empty_model):
    placed = Placement.read({"": "cpu", "model.visual": "meta", "model.visual.blocks.1": "cpu"})
    found = placed.disjoint(empty_model[0])
    assert {name for name, device in found.items() if device == CPU} == {
        "model.visual.blocks.1",
        "model.language_model",
        "lm_head",
    }
    assert found["model.visual.merger"] == META and "model.visual" not in found
    assert Placement.read("cpu").disjoint(empty_model[0]) == {"": CPU}


def test_parts_on_the_cpu_compute_there(monkeypatch):
    accelerate = pytest.importorskip("accelerate")
    seen = []
    monkeypatch.setattr(accelerate, "dispatch_model", lambda module, places, **kw: seen.append((places, kw)))
    placement.spread(nn.Linear(1, 1), {"a": torch.device("cuda", 0), "b": CPU})
    placement.spread(nn.Linear(1, 1), {"a": torch.device("cuda", 0), "b": torch.device("cuda", 1)})
    assert seen[0] == ({"a": "cuda:0", "b": "cpu"}, {"main_device": "cpu", "force_hooks": True})
    assert seen[1][1]["main_device"] is None


def test_progress_shows_only_what_is_slow(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with SlowProgress("fast", 10) as progress:
        progress.advance(10)
        assert progress.bar is None
    with SlowProgress("slow", 10, patience=0.0) as progress:
        progress.advance(4)
        assert progress.bar.tasks[0].completed == 4
        progress.advance(6)
        assert progress.bar.finished
