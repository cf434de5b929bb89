"""Tiny random models, in transformers and in qvl with the same weights: seeded, no global state touched."""

from __future__ import annotations

from typing import Any

import torch

VOCAB = 200
VISION_START, VISION_END, IMAGE, VIDEO = 190, 191, 192, 193
PATCH_VALUES = 3 * 2 * 14 * 14

ROPE_SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 2.5},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.5, 2.0, 3.0, 4.0],
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


def tiny_settings(
    *, text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, **outer: Any
) -> dict[str, Any]:
    """Arguments of ``Qwen2_5_VLConfig`` (qvl's or transformers') for a model of some 50,000 parameters.

    ``text`` and ``vision`` override single settings; ``text["rope_scaling"]`` needs no ``mrope_section``.
    """
    text_settings = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "rope_scaling": {"rope_type": "default"},
        "bos_token_id": 194,
        "eos_token_id": 195,
        "pad_token_id": None,
        **(text or {}),
    }
    text_settings["rope_scaling"] = {"mrope_section": [2, 1, 1], **text_settings["rope_scaling"]}
    vision_settings = {
        "depth": 4,
        "hidden_size": 32,
        "intermediate_size": 44,
        "num_heads": 2,
        "out_hidden_size": text_settings["hidden_size"],
        "fullatt_block_indexes": [1, 3],
        "tokens_per_second": 2,
        **(vision or {}),
    }
    return {
        "text_config": text_settings,
        "vision_config": vision_settings,
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": VISION_START,
        "vision_end_token_id": VISION_END,
        **outer,
    }


def tiny_configs(**settings: Any) -> tuple[Any, Any]:
    """(transformers config, qvl config) from the same settings; see ``tiny_settings``."""
    from transformers import Qwen2_5_VLConfig as Theirs

    from qvl.config import Qwen2_5_VLConfig as Ours

    return Theirs(**tiny_settings(**settings)), Ours(**tiny_settings(**settings))


def tiny_oracle(config: Any, *, seed: int = 0, attention: str = "eager") -> Any:
    """transformers' model for generation, randomly initialised with biases and norms that are not trivial."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config._attn_implementation = attention
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation=attention)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name or "ln_q" in name:
                    parameter.uniform_(0.5, 1.5)
                else:  # large enough that attention and rotary embedding matter to the outcome
                    parameter.normal_(0.0, 0.5 if "embed_tokens" in name else 0.15)
    return model.eval()


def tiny_pair(*, seed: int = 0, attention: str = "eager", **settings: Any) -> tuple[Any, Any]:
    """(transformers model, qvl CausalLM) with the same random weights, float32, in evaluation mode."""
    from qvl.network.vlm import CausalLM

    theirs_config, ours_config = tiny_configs(**settings)
    theirs = tiny_oracle(theirs_config, seed=seed, attention=attention)
    ours = CausalLM(ours_config)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours.eval()


def tiny_models(*, seed: int = 0, **settings: Any) -> tuple[Any, Any]:
    """(transformers, qvl) as the documented class, with the same random weights, in evaluation mode."""
    from qvl.modeling import Qwen2_5_VLForConditionalGeneration

    theirs_config, ours_config = tiny_configs(**settings)
    theirs = tiny_oracle(theirs_config, seed=seed)
    ours = Qwen2_5_VLForConditionalGeneration(ours_config).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def random_patches(grids: list[tuple[int, int, int]], seed: int = 0) -> torch.Tensor:
    """Pixel values for grids of (t, h, w): (patches, 1176) float32, roughly normalised."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(t * h * w for t, h, w in grids), PATCH_VALUES, generator=generator)


def random_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    """Ordinary token ids, none of the special ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VISION_START, shape, generator=generator)
