"""BatchFeature: attribute access, tensors, moving and casting."""

import pickle

import numpy as np
import pytest
import torch

from qvl.errors import InputError, UnknownNameError
from qvl.processing.features import BatchFeature


def test_entries_are_attributes_and_a_mapping():
    features = BatchFeature({"input_ids": [[1, 2]], "note": "text"})
    assert features.input_ids == features["input_ids"] == [[1, 2]]
    assert dict(**features) == features.data == {"input_ids": [[1, 2]], "note": "text"}
    with pytest.raises(AttributeError, match="there are: input_ids, note"):
        features.pixel_values  # noqa: B018
    assert pickle.loads(pickle.dumps(features)) == features


def test_tensors_keep_integers_and_make_float32():
    features = BatchFeature(
        {"input_ids": [[1, 2]], "x": [0.5], "y": [np.ones(2), np.zeros(2)], "s": ["a"]}, "pt"
    )
    assert features.input_ids.dtype == torch.int64
    assert features.x.dtype == torch.float32
    assert features.y.shape == (2, 2)
    assert features.s == ["a"]
    assert isinstance(BatchFeature({"x": torch.ones(2)}, "np").x, np.ndarray)


def test_ragged_rows_say_what_to_do():
    with pytest.raises(InputError, match=r"input_ids has rows of different lengths \(1, 2\).*padding=True"):
        BatchFeature({"input_ids": [[1], [1, 2]]}, "pt")
    with pytest.raises(UnknownNameError, match="'jax'"):
        BatchFeature({"input_ids": [[1]]}, "jax")


def test_to_casts_floats_only_and_keeps_times_exact():
    features = BatchFeature(
        {"input_ids": [[1]], "pixel_values": [[0.1]], "second_per_grid_ts": [1 / 3]}, "pt"
    )
    same = features.to("cpu", torch.bfloat16)
    assert same is features
    assert features.pixel_values.dtype == torch.bfloat16
    assert features.input_ids.dtype == torch.int64
    assert features.second_per_grid_ts.tolist() == [1 / 3]
    assert features.to(dtype=torch.float16).pixel_values.dtype == torch.float16
    assert features.to("meta").pixel_values.device.type == "meta"
