"""Reads and writes the files of a tokenizer; the tokenizer class itself knows no file names.

``tokenizer.json`` is used as it is where it exists; older folders have ``vocab.json`` and ``merges.txt``,
from which the same byte-level BPE is built (GPT-2's scheme with Qwen2's pre-tokenizing expression and NFC).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from qvl.config.base import read_json
from qvl.errors import CheckpointCorruptError, CheckpointNotFoundError

VOCABULARY_FILES = ("tokenizer.json", "vocab.json")  # a folder with neither has no tokenizer

# Contractions, words, single digits, punctuation, line ends, spaces: as in Qwen2's tokenizer.json.
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def read_backend(
    tokenizer_file: str | Path | None = None,
    vocab_file: str | Path | None = None,
    merges_file: str | Path | None = None,
) -> Tokenizer:
    """The ``tokenizers`` object of a tokenizer.json, or else of a vocabulary with its merges."""
    if tokenizer_file is not None:
        path = _existing(tokenizer_file)
        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise CheckpointCorruptError(f"{path} cannot be read as a tokenizer ({error})") from None
    if vocab_file is None or merges_file is None:
        raise CheckpointNotFoundError(
            "A tokenizer needs tokenizer.json, or vocab.json together with merges.txt"
        )
    return byte_level_bpe(read_json(_existing(vocab_file)), _merges(_existing(merges_file)))


def byte_level_bpe(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """A tokenizer of Qwen2's kind with the given vocabulary and merges, without added tokens."""
    model = BPE(
        vocab,
        merges,
        continuing_subword_prefix="",
        end_of_word_suffix="",
        fuse_unk=False,
        byte_fallback=False,
    )
    backend = Tokenizer(model)
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    backend.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    return backend


def read_settings(folder: Path) -> dict[str, Any]:
    """Constructor arguments from tokenizer_config.json, or from the older files where it says less."""
    path = folder / "tokenizer_config.json"
    settings: dict[str, Any] = read_json(path) if path.is_file() else {}
    if "added_tokens_decoder" not in settings:
        settings = {**_legacy_settings(folder, settings), **settings}
    for argument, name in (
        ("tokenizer_file", "tokenizer.json"),
        ("vocab_file", "vocab.json"),
        ("merges_file", "merges.txt"),
    ):
        settings[argument] = str(folder / name) if (folder / name).is_file() else None
    return settings


def parse_added_tokens(table: Mapping[Any, Any]) -> list[AddedToken]:
    """The tokens of an ``added_tokens_decoder`` table, in the order of their ids."""
    fields = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return [
        token
        if isinstance(token, AddedToken)
        else AddedToken(**{k: v for k, v in token.items() if k in fields})
        for _, token in sorted(table.items(), key=lambda item: int(item[0]))
    ]


def dump_added_tokens(backend: Tokenizer) -> dict[str, dict[str, Any]]:
    """The ``added_tokens_decoder`` table of a backend."""
    return {
        str(index): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for index, token in sorted(backend.get_added_tokens_decoder().items())
    }


def write(
    folder: Path, backend: Tokenizer, config: Mapping[str, Any], special: Mapping[str, Any]
) -> list[str]:
    """Writes tokenizer.json, vocab.json, merges.txt and the three small tables; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    added = dump_added_tokens(backend)
    write_json(folder / "tokenizer_config.json", {**config, "added_tokens_decoder": added})
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "added_tokens.json", {token["content"]: int(index) for index, token in added.items()})
    backend.save(str(folder / "tokenizer.json"))
    written = backend.model.save(str(folder))
    names = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json")
    return [*(str(folder / name) for name in names), *written]


def _legacy_settings(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What special_tokens_map.json and added_tokens.json add to a config without ``added_tokens_decoder``."""
    found: dict[str, Any] = {}
    if (path := folder / "special_tokens_map.json").is_file():
        found.update({name: _content(value) for name, value in read_json(path).items()})
    if (path := folder / "added_tokens.json").is_file():
        special = {text for value in {**found, **settings}.values() for text in _texts(value)}
        found["added_tokens_decoder"] = {
            index: {"content": text, "special": text in special, "normalized": text not in special}
            for text, index in read_json(path).items()
        }
    return found


def _texts(value: Any) -> list[str]:
    items = value if isinstance(value, list) else [value]
    return [item for item in map(_content, items) if isinstance(item, str)]


def _content(value: Any) -> Any:
    """A token may be written as its text or as a table with a ``content``."""
    if isinstance(value, list):
        return [_content(item) for item in value]
    return value["content"] if isinstance(value, dict) and "content" in value else value


def _merges(path: Path) -> list[tuple[str, str]]:
    lines = path.read_text(encoding="utf-8").split("\n")
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in pairs):
        raise CheckpointCorruptError(f"{path} has a line that is not a pair of tokens")
    return [(pair[0], pair[1]) for pair in pairs]


def _existing(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise CheckpointNotFoundError(f"No tokenizer file at {path}")
    return Path(path)
