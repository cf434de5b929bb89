"""The same mistake in both libraries: what catches transformers' error catches qvl's."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import video_utils

import qvl
from qvl.errors import QvlError
from qvl.processing.media.opening import load_image, open_video
from support.checkpoint import write_checkpoint

pytestmark = pytest.mark.oracle

BUILT_IN = (ValueError, TypeError, OSError, KeyError, ImportError, RuntimeError)
OURS = qvl.Qwen2_5_VLForConditionalGeneration
THEIRS = transformers.Qwen2_5_VLForConditionalGeneration


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("good"))


@pytest.fixture
def folder(good, tmp_path):
    return shutil.copytree(good, tmp_path / "copy")


def raised(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def assert_caught_alike(ours, theirs):
    """Ours is of qvl's tree and of every built-in type that theirs is of."""
    assert isinstance(ours, QvlError), repr(ours)
    expected = [kind for kind in BUILT_IN if isinstance(theirs, kind)]
    assert expected, f"transformers raised {theirs!r}, which says nothing"
    missing = [kind.__name__ for kind in expected if not isinstance(ours, kind)]
    assert not missing, f"{type(ours).__name__} is no {missing}; transformers: {theirs!r}"


def without_config(folder):
    (folder / "config.json").unlink()


def config_of_another_type(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))


def config_without_type(folder):
    (folder / "config.json").write_text("{}")


def config_that_is_no_json(folder):
    (folder / "config.json").write_text("{")


def without_weights(folder):
    (folder / "model.safetensors").unlink()


def without_a_shard(folder):
    OURS.from_pretrained(folder).save_pretrained(folder, max_shard_size="40KB")
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def of_another_shape(folder):
    stored = load_file(folder / "model.safetensors")
    save_file({**stored, "model.norm.weight": torch.ones(5)}, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    "spoil, name",
    [
        (config_that_is_no_json, "Qwen2_5_VLForConditionalGeneration"),
        (without_weights, "Qwen2_5_VLForConditionalGeneration"),
        (without_a_shard, "Qwen2_5_VLForConditionalGeneration"),
        (of_another_shape, "Qwen2_5_VLForConditionalGeneration"),
        (without_config, "AutoConfig"),
        (config_of_another_type, "AutoConfig"),
        (config_without_type, "AutoConfig"),
        (config_of_another_type, "AutoModel"),
        (config_of_another_type, "AutoModelForImageTextToText"),
    ],
)
def test_broken_checkpoints(folder, spoil, name):
    spoil(folder)
    ours, theirs = (raised(getattr(library, name).from_pretrained, folder) for library in (qvl, transformers))
    assert_caught_alike(ours, theirs)


@pytest.mark.parametrize("name", ["no/such/model", "./missing", "owner/name"])
@pytest.mark.parametrize("kind", ["AutoConfig", "AutoModel", "AutoTokenizer", "GenerationConfig"])
def test_what_is_nowhere(name, kind):
    ours, theirs = (raised(getattr(library, kind).from_pretrained, name) for library in (qvl, transformers))
    assert_caught_alike(ours, theirs)


@pytest.mark.parametrize(
    "options",
    [
        {"attn_implementation": "nonsense"},
        {"attn_implementation": "flash_attention_2"},
        {"device_map": "nonsense"},
        {"colour": "red"},
    ],
    ids=str,
)
def test_arguments_of_from_pretrained(good, options):
    assert_caught_alike(
        raised(OURS.from_pretrained, good, **options), raised(THEIRS.from_pretrained, good, **options)
    )


@pytest.mark.parametrize("name", ["AutoModel", "AutoModelForImageTextToText"])
def test_auto_classes_by_hand(good, name):
    ours, theirs = getattr(qvl, name), getattr(transformers, name)
    assert_caught_alike(raised(ours), raised(theirs))
    assert_caught_alike(raised(ours.from_config, {}), raised(theirs.from_config, {}))


def test_an_unknown_task():
    assert_caught_alike(*(raised(library.pipeline, "no-such-task") for library in (qvl, transformers)))


def test_a_quantization_type_of_the_wrong_kind():
    """transformers' other checks of these settings need an older torchao than the one here."""
    assert_caught_alike(raised(qvl.TorchAoConfig, 4), raised(transformers.TorchAoConfig, 4))


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": -1},
        {"max_new_tokens": 0},
        {"num_return_sequences": 2},
        {"temperature": -1.0, "do_sample": True},
        {"top_p": -1.0, "do_sample": True},
        {"stop_strings": "x"},
        {"no_such_setting": 1},
    ],
    ids=str,
)
def test_arguments_of_generate(good, settings):
    ids = torch.ones(1, 3, dtype=torch.long)
    ours, theirs = (raised(kind.from_pretrained(good).generate, ids, **settings) for kind in (OURS, THEIRS))
    assert_caught_alike(ours, theirs)


def test_pictures(tmp_path):
    (tmp_path / "notes.jpg").write_text("no picture")
    for name in ("missing.jpg", "notes.jpg"):
        path = str(tmp_path / name)
        assert_caught_alike(raised(load_image, path), raised(transformers.image_utils.load_image, path))
    line = Image.new("RGB", (5000, 1))
    ours, theirs = (raised(library.Qwen2VLImageProcessor(), line) for library in (qvl, transformers))
    assert_caught_alike(ours, theirs)
    assert_caught_alike(raised(load_image, 3), raised(transformers.image_utils.load_image, 3))


def test_videos(tmp_path):
    path = str(tmp_path / "missing.mp4")
    assert_caught_alike(raised(open_video, path), raised(video_utils.load_video, path, backend="pyav"))
    (tmp_path / "notes.mp4").write_text("no video")
    path = str(tmp_path / "notes.mp4")
    assert_caught_alike(raised(open_video, path), raised(video_utils.load_video, path, backend="pyav"))
