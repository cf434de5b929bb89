"""The small tokenizer of the bundled model: byte-level BPE of Qwen2's kind, with the same special tokens.

Same normalisation, same way of cutting text before merging (every decimal digit stands alone), same special
tokens in the same order; only the vocabulary is small: the 256 bytes and the words of WORDS, each grown
letter by letter. Nearly all of those begin with a space, as words inside a sentence do: what is read off a
picture begins an answer, so it is spelled letter by letter, and a letter is always the same token. Any text
can be written, as every byte has a token.

    python -m examples.tiny.tokenizer [FOLDER]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from examples.tiny.vocabulary import WORDS
from qvl.processing.text.files import QWEN2_WORDS

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


def build() -> Tokenizer:
    """The tokenizer. The same tokens come out every time."""
    vocabulary, merges = grown(WORDS)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
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
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS]
    )
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in PLAIN_ADDED_TOKENS])
    return tokenizer


def grown(words: tuple[str, ...]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Ids by token, and the merges that make each word: its first two bytes, those and the third, ..."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {byte: i for i, byte in enumerate(alphabet)}
    bytelevel = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    merges = []
    for word in words:
        ((spelled, _),) = bytelevel.pre_tokenize_str(word)
        for end in range(2, len(spelled) + 1):
            if spelled[:end] not in vocabulary:
                vocabulary[spelled[:end]] = len(vocabulary)
                merges.append((spelled[: end - 1], spelled[end - 1]))
    return vocabulary, merges


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
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "src/qvl/assets/tiny")
    print(f"{save(target).get_vocab_size()} tokens written to {target}")
