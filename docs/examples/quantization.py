"""Weights in 4 bits, on a GPU or a CPU. Needs torchao: pip install "qvl[quant]"

python docs/examples/quantization.py [MODEL] [IMAGE]
"""

import sys

import torch

from qvl import AutoProcessor, Qwen2_5_VLForConditionalGeneration, TorchAoConfig


def main(model: str = "Qwen/Qwen2.5-VL-7B-Instruct", image: str | None = None) -> str:
    quantization_config = TorchAoConfig("int4_weight_only", group_size=128)
    processor = AutoProcessor.from_pretrained(model)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        model, dtype=torch.bfloat16, device_map="auto", quantization_config=quantization_config
    )

    picture = [] if image is None else [{"type": "image", "path": image}]
    question = {"type": "text", "text": "Describe this image." if image else "Who are you?"}
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": [*picture, question]}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device)
    output_ids = model.generate(**inputs, max_new_tokens=20)
    return processor.decode(output_ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
