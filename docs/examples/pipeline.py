"""The pipeline: one call from a picture and a question to an answer.

python docs/examples/pipeline.py [MODEL] [IMAGE]
"""

import sys

import torch

from qvl import pipeline


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    image: str = "https://huggingface.co/datasets/huggingface/documentation-images/resolve/main/pipeline-cat-chonk.jpeg",
) -> list[dict]:
    pipe = pipeline(task="image-text-to-text", model=model, device=0, dtype=torch.bfloat16)
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image", "url": image},
                {"type": "text", "text": "Describe this image."},
            ],
        }
    ]
    return pipe(text=messages, max_new_tokens=20, return_full_text=False)


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
