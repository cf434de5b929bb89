"""The small tokenizer of the digits model: byte-level BPE of Qwen2's kind, with the same special tokens.

Same normalisation, same way of cutting text before merging (every decimal digit stands alone), same special
tokens in the same order; only the vocabulary is small: the 256 bytes and the merges that the training
questions and a few plain sentences ask for. Any text can be written with it, as every byte has a token.

    python -m examples.digits.tokenizer [FOLDER]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from examples.digits.data import QUESTIONS, SINGLE_DIGIT_QUESTIONS
from qvl.processing.text.files import QWEN2_WORDS

ORDINARY_TOKENS = 480  # and 22 added ones; the embedding has 512 rows
SPECIAL_TOKENS = (
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
)
# Known to the tokenizer as whole tokens, but shown when special tokens are skipped, as in the released one.
PLAIN_ADDED_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
SENTENCES = (
    "system\nYou are a helpful assistant.",
    "user\n",
    "assistant\n",
    "Picture 1: Picture 2: Video 1: Video 2: ",
    "Hello, how are you? I am fine, thank you.",
    "What is in this video? What happens in these two pictures?",
    "What are the differences between the first image and the second image?",
    "This is a picture of a person with a dog in front of the house.",
    "The number that you see here is not the one which I have written before.",
    "Please answer in one word, or say that there is no text in it.",
    "zero one two three four five six seven eight nine ten hundred and",
)


def build() -> Tokenizer:
    """The tokenizer, trained on the questions and a few sentences. The same tokens come out every time."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(
        add_prefix_space=False, trim_offsets=False, use_regex=False
    )
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=ORDINARY_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*QUESTIONS, *SINGLE_DIGIT_QUESTIONS, *SENTENCES], trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS]
    )
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in PLAIN_ADDED_TOKENS])
    return tokenizer


def settings(tokenizer: Tokenizer) -> dict[str, object]:
    """What ``tokenizer_config.json`` holds, in the released one's words."""
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token in SPECIAL_TOKENS,
        }
        for token in (*SPECIAL_TOKENS, *PLAIN_ADDED_TOKENS)
    }
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 4096,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def save(folder: Path) -> Tokenizer:
    """Writes ``tokenizer.json`` and ``tokenizer_config.json`` into ``folder``."""
    tokenizer = build()
    tokenizer.save(str(folder / "tokenizer.json"), pretty=True)
    text = json.dumps(settings(tokenizer), indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    return tokenizer


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "src/qvl/assets/digits")
    print(f"{save(target).get_vocab_size()} tokens written to {target}")
