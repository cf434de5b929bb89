"""From a prompt string and a picture to an answer, step by step.

    python docs/examples/forward_example.py [MODEL] [IMAGE]

The documentation page's example under ``forward`` cannot run as it is printed, so here the processor returns
tensors (``return_tensors="pt"``), ``generate`` gets the pixels as well as the ids and a number of new tokens
(the picture alone is longer than ``max_length=30``), and ``vision_infos``, which nothing reads, is left out.
"""

import sys

from qvl import AutoProcessor, Qwen2_5_VLForConditionalGeneration


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    image: str = "https://huggingface.co/datasets/huggingface/documentation-images/resolve/main/pipeline-cat-chonk.jpeg",
) -> str:
    name = model
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(name)
    processor = AutoProcessor.from_pretrained(name)

    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image"},
                {"type": "text", "text": "What is shown in this image?"},
            ],
        },
    ]

    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[text], images=[image], return_tensors="pt")

    # One forward pass: the scores of the token after the prompt
    logits = model(**inputs, logits_to_keep=1).logits
    print("the likeliest first token is", repr(processor.decode(logits[0, -1].argmax()[None])))

    # Generate
    generate_ids = model.generate(**inputs, max_new_tokens=30)
    return processor.batch_decode(
        generate_ids[:, inputs.input_ids.shape[1] :],
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )[0]


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
