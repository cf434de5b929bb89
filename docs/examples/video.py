"""A question about a video, one frame of every second.

python docs/examples/video.py [MODEL] [VIDEO]
"""

import sys

from qvl import AutoProcessor, Qwen2_5_VLForConditionalGeneration


def main(model: str = "Qwen/Qwen2.5-VL-7B-Instruct", video: str = "/path/to/video.mp4") -> list[str]:
    processor = AutoProcessor.from_pretrained(model)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(model, device_map="auto")
    conversation = [
        {
            "role": "user",
            "content": [
                {"type": "video", "path": video},
                {"type": "text", "text": "What happened in the video?"},
            ],
        }
    ]

    inputs = processor.apply_chat_template(
        conversation,
        fps=1,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device)

    # Inference: Generation of the output
    output_ids = model.generate(**inputs, max_new_tokens=128)
    generated_ids = [
        output_ids[len(input_ids) :]
        for input_ids, output_ids in zip(inputs.input_ids, output_ids, strict=True)
    ]
    return processor.batch_decode(generated_ids, skip_special_tokens=True, clean_up_tokenization_spaces=True)


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
