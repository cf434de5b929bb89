"""How many pixels, and so how many tokens, a picture may have.

python docs/examples/pixels.py [MODEL] [IMAGE]
"""

import sys

from qvl import AutoProcessor


def tokens(processor, image) -> int:
    grid = processor.image_processor(images=[image], return_tensors="pt")["image_grid_thw"]
    return int(grid.prod()) // processor.image_processor.merge_size**2


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    image: str = "https://huggingface.co/datasets/huggingface/documentation-images/resolve/main/pipeline-cat-chonk.jpeg",
) -> tuple[int, int]:
    min_pixels = 224 * 224
    max_pixels = 2048 * 2048
    processor = AutoProcessor.from_pretrained(model, min_pixels=min_pixels, max_pixels=max_pixels)
    high = tokens(processor, image)

    # Higher resolution can require more compute whereas reducing the resolution can save memory:
    min_pixels = 256 * 28 * 28
    max_pixels = 1024 * 28 * 28
    processor = AutoProcessor.from_pretrained(model, min_pixels=min_pixels, max_pixels=max_pixels)
    low = tokens(processor, image)
    return high, low


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
