"""A small tokenizer of Qwen2.5-VL's kind, trained in milliseconds, with the released special tokens."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, trainers
from tokenizers.pre_tokenizers import ByteLevel

from qvl.processing.text.files import byte_level_bpe

GOLDEN = Path(__file__).parents[1] / "golden"
VISION_TEMPLATE = (GOLDEN / "qwen2_5_vl_chat_template.jinja").read_text()
TOOLS_TEMPLATE = (GOLDEN / "qwen2_5_tools_chat_template.jinja").read_text()

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
ORDINARY = [
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
]
CORPUS = [
    "You are a helpful assistant. system user assistant image video picture",
    "What is shown in this image? The image shows a street scene with a red stop sign.",
    'Describe the video: {"bbox_2d": [10, 20, 30, 40], "label": "cat"} It\'s what we\'ll see, 1234567890.',
    "Größe, naïve, 你好世界, こんにちは, привет, مرحبا and 🙂 emoji\n\n\tdef f(x):\r\n    return x",
]


def tiny_backend() -> Tokenizer:
    """A trained backend of some 470 tokens."""
    backend = byte_level_bpe({}, [])
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=sorted(ByteLevel.alphabet()), show_progress=False
    )
    backend.train_from_iterator(CORPUS * 3, trainer)
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in ORDINARY])
    return backend


def tiny_config() -> dict:
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "additional_special_tokens": SPECIAL[1:],
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "errors": "replace",
        "add_prefix_space": False,
        "chat_template": TOOLS_TEMPLATE,
    }


def write_tiny_tokenizer(folder: Path) -> Path:
    """tokenizer.json and tokenizer_config.json in ``folder``, as released; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    backend = tiny_backend()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(tiny_config()))
    return folder
