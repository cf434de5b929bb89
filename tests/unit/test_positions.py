"""Placeholder runs are found and checked; positions follow the formula, with its known pitfalls."""

import pytest
import torch

from qvl.errors import InputError, PlaceholderMismatchError
from qvl.processing.positions import find_spans, multimodal_positions, place_media
from qvl.types import Grid, Span

IMAGE, VIDEO = 90, 91
IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "merge_size": 2}


def test_spans_of_mixed_media_in_reading_order():
    ids = [1, *[IMAGE] * 4, 2, *[VIDEO] * 8, *[IMAGE] * 2, 3]
    spans = find_spans(ids, [Grid(1, 4, 4), Grid(1, 2, 4)], [Grid(2, 4, 4)], **IDS)
    assert spans == (Span("image", 1, 4), Span("video", 6, 8), Span("image", 14, 2))


def test_touching_runs_are_parted_by_their_grids():
    assert find_spans(torch.tensor([IMAGE] * 6), [Grid(1, 4, 4), Grid(1, 2, 4)], **IDS) == (
        Span("image", 0, 4),
        Span("image", 4, 2),
    )


def test_a_batch_takes_grids_row_after_row():
    rows = [[1, VIDEO, VIDEO], [5], [IMAGE, 2, VIDEO]]
    placed = place_media(rows, [Grid(1, 2, 2)], [Grid(2, 2, 2), Grid(1, 2, 2)], **IDS)
    assert [[(p.span.kind, p.span.start, p.index) for p in row] for row in placed] == [
        [("video", 1, 0)],
        [],
        [("image", 0, 0), ("video", 2, 1)],
    ]


@pytest.mark.parametrize(
    ("ids", "grids", "said"),
    [
        (
            [1, IMAGE, 2, IMAGE],
            [Grid(1, 2, 2)],
            "2 image placeholder run(s) of 2 tokens in all, but 1 image(s)",
        ),
        ([1, IMAGE], [Grid(1, 2, 2)] * 2, "1 image placeholder run(s) of 1 tokens in all, but 2 image(s)"),
        ([1], [Grid(1, 2, 2)], "0 image placeholder run(s) of 0 tokens"),
        ([IMAGE, 1, IMAGE, IMAGE, IMAGE], [Grid(1, 2, 4)] * 2, "Image 0 takes 2 tokens (1 x 2 x 4 patches)"),
    ],
)
def test_mismatch_says_both_counts(ids, grids, said):
    with pytest.raises(PlaceholderMismatchError) as caught:
        find_spans(ids, grids, **IDS)
    assert said in str(caught.value)


def test_text_alone_counts_up():
    positions, delta = multimodal_positions(3, (), ())
    assert positions.tolist() == [[0, 1, 2]] * 3
    assert delta == 0
    assert multimodal_positions(0, (), ())[0].shape == (3, 0)


def test_a_picture_shares_one_time_and_text_follows_the_largest_axis():
    positions, delta = multimodal_positions(10, [Span("image", 2, 6)], [Grid(1, 4, 6)])
    assert positions[0].tolist() == [0, 1, 2, 2, 2, 2, 2, 2, 5, 6]
    assert positions[1].tolist() == [0, 1, 2, 2, 2, 3, 3, 3, 5, 6]
    assert positions[2].tolist() == [0, 1, 2, 3, 4, 2, 3, 4, 5, 6]
    assert delta == 7 - 10
    assert positions.dtype == torch.int64


def test_time_is_truncated_last():
    """0.7 s per step: 7/5 per step at 2 tokens a second; truncating 0.7 first would give 0 throughout."""
    positions, delta = multimodal_positions(6, [Span("video", 0, 6)], [Grid(6, 2, 2)], [0.7], 2, 2)
    assert positions[0].tolist() == [0, 1, 2, 4, 5, 7]
    assert delta == 8 - 6


def test_time_can_be_the_largest_axis():
    positions, _ = multimodal_positions(3, [Span("video", 0, 2)], [Grid(2, 2, 2)], [10.0], 2, 2)
    assert positions[:, 2].tolist() == [21, 21, 21]


def test_a_video_needs_its_seconds():
    with pytest.raises(InputError, match="seconds_per_grid"):
        multimodal_positions(1, [Span("video", 0, 1)], [Grid(1, 2, 2)])
    with pytest.raises(InputError, match="1 spans need as many grids"):
        multimodal_positions(1, [Span("image", 0, 1)], [])
