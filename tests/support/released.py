"""The released sizes of Qwen2.5-VL: what their config.json says about the shape of the network."""

from __future__ import annotations

from typing import Any

# hidden, layers, heads, key/value heads, inner width, vocabulary, inner width of the tower, tied, parameters
_SIZES = {
    "3B": (2048, 36, 16, 2, 11008, 151936, 3420, True, 3_754_622_976),
    "7B": (3584, 28, 28, 4, 18944, 152064, 3420, False, 8_292_166_656),
    "32B": (5120, 64, 40, 8, 27648, 152064, 3456, False, 33_452_718_336),
    "72B": (8192, 80, 64, 8, 29568, 152064, 3456, False, 73_410_777_344),
}
RELEASED = tuple(_SIZES)


def released_settings(size: str) -> dict[str, Any]:
    """Arguments of ``Qwen2_5_VLConfig`` (qvl's or transformers')."""
    hidden, layers, heads, kv_heads, inner, vocab, vision_inner, tied, _ = _SIZES[size]
    text = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 128_000,
        "max_window_layers": layers,
        "sliding_window": 32_768,
        "use_sliding_window": False,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "tie_word_embeddings": tied,
    }
    vision = {
        "hidden_size": 1280,
        "intermediate_size": vision_inner,
        "out_hidden_size": hidden,
        "tokens_per_second": 2,
    }
    return {"text_config": text, "vision_config": vision, "tie_word_embeddings": tied}


def released_parameters(size: str) -> int:
    """The number of parameters that the hub shows for the checkpoint; a tied head counts once."""
    return _SIZES[size][-1]
