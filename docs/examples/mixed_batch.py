"""Pictures, a video and text in one conversation, with and without labels; then a batch of mixed prompts.

    python docs/examples/mixed_batch.py [MODEL] [IMAGE] [VIDEO]

Without IMAGE and VIDEO only the two prompts are shown.
"""

import sys

import torch

from qvl import AutoProcessor, Qwen2_5_VLForConditionalGeneration

CONVERSATION = [
    {
        "role": "user",
        "content": [
            {"type": "image"},
            {"type": "text", "text": "Hello, how are you?"},
        ],
    },
    {
        "role": "assistant",
        "content": "I'm doing well, thank you for asking. How can I assist you today?",
    },
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "Can you describe these images and video?"},
            {"type": "image"},
            {"type": "image"},
            {"type": "video"},
            {"type": "text", "text": "These are from my vacation."},
        ],
    },
    {
        "role": "assistant",
        "content": "I'd be happy to describe the images and video for you. "
        "Could you please provide more context about your vacation?",
    },
    {
        "role": "user",
        "content": "It was a trip to the mountains. Can you see the details in the images and video?",
    },
]


def prompts(processor) -> tuple[str, str]:
    """The conversation as the model reads it: plain, and with ``Picture 1:``, ``Video 1:`` before media."""
    # default:
    prompt_without_id = processor.apply_chat_template(CONVERSATION, add_generation_prompt=True)
    # add ids
    prompt_with_id = processor.apply_chat_template(
        CONVERSATION, add_generation_prompt=True, add_vision_id=True
    )
    return prompt_without_id, prompt_with_id


def answers(model, processor, image: str, video: str) -> list[str]:
    """A batch of three prompts of different kinds; each gets the answer that it would get alone."""
    text = {"type": "text", "text": "What do you see?"}
    batch = [
        [{"role": "user", "content": [{"type": "image", "path": image}, text]}],
        [{"role": "user", "content": [{"type": "video", "path": video}, text]}],
        [{"role": "user", "content": "Hello, how are you?"}],
    ]
    inputs = processor.apply_chat_template(
        batch, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True
    ).to(model.device)
    output_ids = model.generate(**inputs, max_new_tokens=20)
    return processor.batch_decode(output_ids[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct", image: str | None = None, video: str | None = None
) -> tuple[str, ...]:
    processor = AutoProcessor.from_pretrained(model)
    if image is None or video is None:
        return prompts(processor)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        model, dtype=torch.float16, device_map="auto", attn_implementation="sdpa"
    )
    return (*prompts(processor), *answers(model, processor, image, video))


if __name__ == "__main__":
    print("\n\n".join(main(*sys.argv[1:])))
