"""The same as pipeline.py, with model and processor in your own hands.

python docs/examples/auto_model.py [MODEL] [IMAGE]
"""

import sys

import torch

from qvl import AutoModelForImageTextToText, AutoProcessor


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    image: str = "https://huggingface.co/datasets/huggingface/documentation-images/resolve/main/pipeline-cat-chonk.jpeg",
) -> list[str]:
    processor = AutoProcessor.from_pretrained(model)
    model = AutoModelForImageTextToText.from_pretrained(
        model, dtype=torch.bfloat16, device_map="auto", attn_implementation="sdpa"
    )
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image", "url": image},
                {"type": "text", "text": "Describe this image."},
            ],
        }
    ]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device)

    output_ids = model.generate(**inputs, max_new_tokens=20)
    generated_ids = [out[len(ids) :] for ids, out in zip(inputs.input_ids, output_ids, strict=True)]
    return processor.batch_decode(generated_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
