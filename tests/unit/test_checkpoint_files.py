"""Safetensors files: reading mapped, writing in shards and in one step, and what is broken."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from qvl.errors import CheckpointCorruptError, CheckpointError, CheckpointNotFoundError, InputError
from qvl.weights import files, mapped
from qvl.weights.files import INDEX, SINGLE, Checkpoint, parse_size, split, write_tensors


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {f"t{i}": torch.randn(10, 10, generator=generator) for i in range(5)}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_one_file(tmp_path, tensors):
    write_tensors(tmp_path, tensors, note="x")
    assert names(tmp_path) == [SINGLE]
    checkpoint = Checkpoint(tmp_path)
    assert set(checkpoint.files) == set(tensors)
    assert checkpoint.metadata == {"format": "pt", "note": "x"}
    assert checkpoint.shape("t0") == (10, 10)
    assert checkpoint.float_dtype() == torch.float32
    assert all(torch.equal(checkpoint.read(name), tensors[name]) for name in tensors)


def test_shards_hold_what_the_limit_allows(tmp_path, tensors):
    write_tensors(tmp_path, tensors, max_shard_size=800)  # two of 400 bytes each
    assert names(tmp_path) == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)] + [INDEX]
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == 2000
    assert index["weight_map"]["t4"] == "model-00003-of-00003.safetensors"
    checkpoint = Checkpoint(tmp_path)
    assert all(torch.equal(checkpoint.read(name), tensors[name]) for name in tensors)


def test_split_never_cuts_a_tensor(tensors):
    assert [list(shard) for shard in split(tensors, 1)] == [[name] for name in tensors]
    assert [list(shard) for shard in split({}, 1)] == [[]]


def test_saving_again_leaves_nothing_of_before(tmp_path, tensors):
    write_tensors(tmp_path, tensors, max_shard_size=400)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"somebody else's")
    write_tensors(tmp_path, {"t0": tensors["t0"]})
    assert names(tmp_path) == ["adapter_model.safetensors", SINGLE]
    write_tensors(tmp_path, tensors, max_shard_size=1000)
    assert SINGLE not in names(tmp_path)
    assert set(Checkpoint(tmp_path).files) == set(tensors)


def test_an_interrupted_save_leaves_the_old_weights(tmp_path, tensors, monkeypatch):
    write_tensors(tmp_path, tensors)
    written = []

    def full_disk(shard, path, metadata):
        if written:
            raise OSError("No space left on device")
        written.append(save_file(shard, path, metadata))

    monkeypatch.setattr(files, "save_aligned", full_disk)
    with pytest.raises(CheckpointError, match=r"cannot be written .* No space left"):
        write_tensors(tmp_path, {name: t + 1 for name, t in tensors.items()}, max_shard_size=400)
    assert len(written) == 1, "the first shard was there already"
    assert names(tmp_path) == [SINGLE]
    assert all(torch.equal(Checkpoint(tmp_path).read(name), tensors[name]) for name in tensors)


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.parametrize("limit", [400, "5GB"])
def test_weights_are_as_readable_as_any_new_file(tmp_path, tensors, limit):
    (tmp_path / "new").touch()
    write_tensors(tmp_path, tensors, max_shard_size=limit)
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_what_cannot_be_written(tmp_path, tensors):
    with pytest.raises(CheckpointError, match=r"1 tensors have no data to save .* first t9"):
        write_tensors(tmp_path, {**tensors, "t9": torch.empty(3, device="meta")})
    assert names(tmp_path) == []
    (tmp_path / SINGLE).mkdir()  # a folder in the way
    with pytest.raises(CheckpointError, match="cannot be written into"):
        write_tensors(tmp_path, tensors)
    assert names(tmp_path) == [SINGLE]


def test_mapped_tensors_survive_their_files_being_replaced(tmp_path, tensors):
    write_tensors(tmp_path, tensors)
    mapped = Checkpoint(tmp_path).read("t3")
    write_tensors(tmp_path, {name: tensor + 1 for name, tensor in tensors.items()})
    assert torch.equal(mapped, tensors["t3"])


def test_writing_into_a_mapped_tensor_leaves_the_file(tmp_path, tensors):
    write_tensors(tmp_path, tensors)
    Checkpoint(tmp_path).read("t0").zero_()
    assert torch.equal(Checkpoint(tmp_path).read("t0"), tensors["t0"])


def test_reading_casts_floats_only(tmp_path):
    write_tensors(tmp_path, {"f": torch.ones(2), "i": torch.ones(2, dtype=torch.int64)})
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.read("f", dtype=torch.bfloat16).dtype == torch.bfloat16
    assert checkpoint.read("i", dtype=torch.bfloat16).dtype == torch.int64
    assert checkpoint.read("f", device="meta").is_meta


@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (5, 3), (3, 2, 2)])
@pytest.mark.parametrize("piece", [8, 64, 10**6])  # bytes
def test_casting_in_pieces(tmp_path, monkeypatch, shape, piece):
    monkeypatch.setattr(mapped, "PIECE", piece)
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    write_tensors(tmp_path, {"a": tensor, "b": tensor + 1})
    for passing in (False, True):
        cast = Checkpoint(tmp_path).read("b", dtype=torch.bfloat16, passing=passing)
        assert cast.shape == shape and torch.equal(cast, (tensor + 1).bfloat16())
    assert torch.equal(Checkpoint(tmp_path).read("b", passing=True), tensor + 1)


def test_views_and_transposed_tensors_are_written_as_they_look(tmp_path, tensors):
    write_tensors(tmp_path, {"a": tensors["t0"].T, "b": tensors["t0"][2:5]})
    stored = load_file(tmp_path / SINGLE)
    assert torch.equal(stored["a"], tensors["t0"].T)
    assert torch.equal(stored["b"], tensors["t0"][2:5])


@pytest.mark.parametrize(
    "size, bytes_",
    [(7, 7), ("7", 7), ("5GB", 5 * 10**9), ("1.5 mb", 1_500_000), ("2KiB", 2048), ("1TB", 10**12)],
)
def test_sizes(size, bytes_):
    assert parse_size(size) == bytes_


@pytest.mark.parametrize("size", ["five", "5 XB", "", "-1", 0, -3, "0GB"])
def test_sizes_that_are_none(size):
    with pytest.raises(InputError, match="size"):
        parse_size(size)


def test_no_weights(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match=r"neither model\.safetensors nor.*are safetensors"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_pickled_weights(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointNotFoundError, match=r"pickled \.bin weights are never opened"):
        Checkpoint(tmp_path)


def test_a_missing_shard_is_named(tmp_path, tensors):
    write_tensors(tmp_path, tensors, max_shard_size=800)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"lacks model-00002-of-00003\.safetensors"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_truncated_files(tmp_path, tensors, length):
    write_tensors(tmp_path, tensors)
    size = (tmp_path / SINGLE).stat().st_size
    os.truncate(tmp_path / SINGLE, length if length >= 0 else size + length)
    with pytest.raises(CheckpointCorruptError, match=r"model\.safetensors is truncated"):
        Checkpoint(tmp_path)


def test_not_safetensors_at_all(tmp_path):
    (tmp_path / SINGLE).write_text("<html>404 not found</html>" * 20)
    with pytest.raises(CheckpointCorruptError, match="not a safetensors file"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    "index, message",
    [
        ("{", "not valid JSON"),
        ("{}", "has no weight_map"),
        ('{"weight_map": {"a": "../../secret"}}', "not a file of its folder"),
        ('{"weight_map": {"a": "shard.safetensors", "b": "shard.safetensors"}}', "do not hold, first b"),
    ],
)
def test_broken_indexes(tmp_path, index, message):
    save_file({"a": torch.ones(1)}, tmp_path / "shard.safetensors")
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(CheckpointCorruptError, match=message):
        Checkpoint(tmp_path)
