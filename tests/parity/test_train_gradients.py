"""Training's loss and every gradient, from packed samples, against transformers on the padded batch."""

from __future__ import annotations

import pytest
import torch

from qvl.train.objective import answer_loss
from qvl.train.packing import groups, pack
from support.batches import MIXED, batch, prompt_row
from support.tiny import tiny_models
from support.training import labels_of, samples_of

pytestmark = pytest.mark.oracle
# Text alone, pictures of several windows, a video, both, several pictures. transformers truncates seconds
# between frames to whole ones (0.5 becomes 0), so the videos have 1 s.
ROWS = (
    *MIXED,
    prompt_row(4, ("image", (1, 16, 18)), 9, seed=6),
    prompt_row(6, ("video", (3, 8, 10)), 5, seed=7),
    prompt_row(9, seed=8),
)
TIED = {"text": {"tie_word_embeddings": True}, "tie_word_embeddings": True}
SLIDING = {"text": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}}
SETTINGS = {"plain": {}, "tied": TIED, "sliding": SLIDING}


def padded(side):
    arguments = batch(*ROWS, side=side, seconds=1.0)
    return arguments, labels_of(arguments)


def gradients(model):
    """By name; those of parameters that no path leads to are None."""
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def theirs_of(theirs, side="right"):
    """transformers' loss, the mean over all labelled tokens, and its gradients."""
    arguments, labels = padded(side)
    theirs.model.rope_deltas = None
    theirs.zero_grad(set_to_none=True)
    loss = theirs(**arguments, labels=labels).loss
    loss.backward()
    return loss.item(), gradients(theirs)


def ours_of(ours, parts):
    """The same by qvl's objective, one pass for every part of the samples."""
    ours.zero_grad(set_to_none=True)
    batches = [pack(part) for part in parts]
    learned = sum(own.learned for own in batches)
    value = 0.0
    for own in batches:
        mean = answer_loss(ours, own).total / learned
        mean.backward()
        value += mean.item()
    return value, gradients(ours)


def samples(ours, side="right"):
    return samples_of(*padded(side), ours.config)


def assert_gradients_equal(found, expected, *, atol=1e-4, of_norm=1e-4):
    """Every value within ``atol``, and every parameter's difference within a share of its gradient's norm."""
    assert found.keys() == expected.keys()
    for name, grad in found.items():
        torch.testing.assert_close(grad, expected[name], atol=atol, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
        error = (grad - expected[name]).norm() / expected[name].norm()
        assert error < of_norm, f"{name}: differs by {error:.1e} of its norm"


@pytest.fixture(scope="module", params=SETTINGS.values(), ids=SETTINGS)
def models(request):
    return tiny_models(**request.param)


@pytest.mark.parametrize("side", ["left", "right"])
def test_packed_equals_padded(models, side):
    theirs, ours = models
    expected, want = theirs_of(theirs, side)
    found, have = ours_of(ours, [samples(ours, side)])
    assert abs(found - expected) < 1e-5
    assert all(grad is not None and grad.norm() > 0 for grad in want.values())
    assert_gradients_equal(have, want)


def test_accumulated_passes_equal_one(models):
    """Passes of very different numbers of learned tokens: a mean of means would be another loss."""
    theirs, ours = models
    expected, want = theirs_of(theirs)
    whole = samples(ours)
    parts = [[whole[i] for i in part] for part in groups(map(len, whole), 60)]
    assert len(parts) > 2
    assert len({pack(part).learned for part in parts}) > 1
    found, have = ours_of(ours, parts)
    assert abs(found - expected) < 1e-5
    assert_gradients_equal(have, want)


def test_gradient_checkpointing_changes_nothing(models):
    _, ours = models
    results = []
    ours.train()
    for enabled in (False, True):
        (ours.gradient_checkpointing_enable if enabled else ours.gradient_checkpointing_disable)()
        results.append(ours_of(ours, [samples(ours)]))
    ours.gradient_checkpointing_disable()
    ours.eval()
    (expected, want), (found, have) = results
    assert found == expected
    assert_gradients_equal(have, want, atol=1e-6, of_norm=1e-6)


def test_a_frozen_tower_changes_no_other_gradient(models):
    theirs, ours = models
    _, want = theirs_of(theirs)
    ours.model.visual.requires_grad_(False)
    _, have = ours_of(ours, [samples(ours)])
    ours.model.visual.requires_grad_(True)
    frozen = [name for name in have if name.startswith("model.visual.")]
    assert frozen
    assert all(have.pop(name) is None for name in frozen)
    assert_gradients_equal(have, {name: want[name] for name in have})


def test_the_order_of_samples_changes_nothing(models):
    _, ours = models
    whole = samples(ours)
    expected, want = ours_of(ours, [whole])
    found, have = ours_of(ours, [whole[::-1]])
    assert abs(found - expected) < 1e-6
    assert_gradients_equal(have, want, atol=1e-5, of_norm=1e-5)


def test_right_tokens_are_those_of_greedy_decoding(models):
    theirs, ours = models
    arguments, labels = padded("right")
    theirs.model.rope_deltas = None
    with torch.no_grad():
        said = theirs(**arguments).logits.argmax(-1)[:, :-1]
        learned = labels[:, 1:] != -100
        # Half of the labels are what the model would say, so that the count is a count of something.
        told = torch.where(torch.arange(labels.shape[1] - 1) % 2 == 0, said, labels[:, 1:])
        labels = torch.cat([labels[:, :1], torch.where(learned, told, -100)], dim=1)
        loss = answer_loss(ours, pack(samples_of(arguments, labels, ours.config)))
    assert int(loss.right) == int((said == labels[:, 1:]).sum()) > 10
