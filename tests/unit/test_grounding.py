"""Boxes and points are read from every form of answer and mapped to the original picture."""

import pytest

from qvl.errors import InputError
from qvl.processing.grounding import Box, Point, find_shapes, ground, to_original
from qvl.types import Grid

FENCED = """Here they are:
```json
[
\t{"bbox_2d": [10, 20, 110, 220], "label": "cat"},
\t{"point_2d": [5.5, 6], "label": "nose"}
]
```"""


def test_fenced_json():
    assert find_shapes(FENCED) == (Box(10, 20, 110, 220, "cat"), Point(5.5, 6, "nose"))


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ('{"bbox_2d": [1, 2, 3, 4]}', (Box(1, 2, 3, 4),)),
        ('{"objects": [{"bbox_2d": [3, 4, 1, 2], "label": "a"}]}', (Box(1, 2, 3, 4, "a"),)),
        ('{"label": "", "bbox_2d": [[1, 2, 3, 4], [5, 6, 7, 8]]}', (Box(1, 2, 3, 4), Box(5, 6, 7, 8))),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "a"}, {"bbox_2d": [5, 6, 7, 8], "la',
         (Box(1, 2, 3, 4, "a"), Box(5, 6, 7, 8))),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "a"}, {"bbox_2d": [5, 6, 7', (Box(1, 2, 3, 4, "a"),)),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "a \\"b\\"",}]', (Box(1, 2, 3, 4, 'a "b"'),)),
        ('{"bbox_2d": [1, 2, 3, 4], "label": "a\\q",}', (Box(1, 2, 3, 4),)),
        ('{"bbox_2d": [1, 2, 3], "point_2d": ["1", 2]} {"bbox_2d": [1, 2, 3, NaN]}', ()),
        ("no boxes { at all } [1, 2, 3, 4]", ()),
        ("", ()),
        ("<|object_ref_start|>the cat<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>"
         "<|box_start|>(5,6)<|box_end|>",
         (Box(1, 2, 3, 4, "the cat"), Point(5, 6, "the cat"))),
        ('<|box_start|>(1, 2), (3, 4)<|box_end|> then {"point_2d": [7, 8]}', (Box(1, 2, 3, 4), Point(7, 8))),
        ("<|box_start|>(1,2),(3,", ()),
    ],
)  # fmt: skip
def test_forms(text, shapes):
    assert find_shapes(text) == shapes


def test_answers_of_any_length_are_read_in_time():
    assert len(find_shapes('{"bbox_2d": [1, 2, 3, 4]},' * 20_000)) == 20_000
    assert find_shapes('{"a":' * 3000) == ()
    assert find_shapes("<|box_start|>(1,2)" * 20_000) == ()


def test_original_pixels_are_clipped():
    grid = Grid(1, 10, 20)  # 140 high, 280 wide
    shapes = (Box(0, 14, 280, 150, "a"), Point(-3, 70, "b"))
    assert to_original(shapes, grid, 560, 70) == (Box(0, 7, 560, 70, "a"), Point(0, 35, "b"))
    assert ground('{"point_2d": [140, 70]}', grid, 280, 140) == (Point(140, 70),)
    assert Box(1, 2, 3, 4).xyxy == (1, 2, 3, 4)
    with pytest.raises(InputError, match="0 x 10 pixels"):
        to_original((), grid, 0, 10)
