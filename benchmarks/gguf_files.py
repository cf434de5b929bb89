"""A checkpoint as the two files that llama.cpp reads: the decoder, and the vision tower as ``mmproj``.

Tensor names and metadata keys are those of the GGUF conventions (the ``gguf`` package's lists); the values
come from config.json. Only what Qwen2.5-VL has: no other architecture is known here.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

DECODER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
VISION_NAMES = {
    "norm1": "ln1",
    "norm2": "ln2",
    "attn.proj": "attn_out",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
MERGER_NAMES = {"ln_q": "v.post_ln", "mlp.0": "mm.0", "mlp.2": "mm.2"}
NORMAL_TOKEN, CONTROL_TOKEN, UNUSED_TOKEN = 1, 3, 5  # the ``tokenizer.ggml.token_type`` of a vocabulary entry


def write_decoder(checkpoint: Path, target: Path) -> None:
    """The text decoder in float32, with the vocabulary of tokenizer.json.

    Quantized from here by llama.cpp.
    """
    import gguf

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(target, "qwen2vl")
    add_decoder_settings(writer, config["text_config"])
    add_vocabulary(writer, checkpoint, config["text_config"])
    for name, tensor in tensors_of(checkpoint):
        renamed = decoder_name(name)
        if renamed is not None:
            writer.add_tensor(renamed, as_array(tensor))
    finish(writer)


def write_vision(checkpoint: Path, target: Path, dtype: torch.dtype = torch.float32) -> None:
    """The vision tower and its merger.

    ``dtype``: of the matrices, float32 or float16; vectors are float32.
    """
    import gguf

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    image = json.loads((checkpoint / "preprocessor_config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(target, "clip")
    add_vision_settings(writer, config["vision_config"], image, half=dtype == torch.float16)
    for name, tensor in tensors_of(checkpoint):
        if ".visual." in f".{name}":
            for renamed, part in vision_tensors(name.split("visual.", 1)[1], tensor):
                matrix = part.ndim > 1 and ".patch_embd" not in renamed
                writer.add_tensor(renamed, as_array(part.to(dtype if matrix else torch.float32)))
    finish(writer)


def add_decoder_settings(writer: Any, text: dict[str, Any]) -> None:
    rope = text["rope_scaling"]
    writer.add_type("model")
    writer.add_file_type(0)
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(text["hidden_size"])
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(text["num_attention_heads"])
    writer.add_head_count_kv(text["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(text["rms_norm_eps"])
    writer.add_rope_freq_base(text["rope_theta"])
    writer.add_rope_dimension_sections([*rope["mrope_section"], 0])


def add_vocabulary(writer: Any, checkpoint: Path, text: dict[str, Any]) -> None:
    """Byte-level BPE.

    Rows of the embedding that the tokenizer has no token for are named and marked unused.
    """
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    rows = text["vocab_size"]
    tokens, kinds = [f"[PAD{i}]" for i in range(rows)], [UNUSED_TOKEN] * rows
    for token, i in tokenizer["model"]["vocab"].items():
        tokens[i], kinds[i] = token, NORMAL_TOKEN
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]], kinds[added["id"]] = added["content"], CONTROL_TOKEN
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(text["bos_token_id"])
    writer.add_eos_token_id(text["eos_token_id"])
    writer.add_add_bos_token(False)


def add_vision_settings(writer: Any, vision: dict[str, Any], image: dict[str, Any], *, half: bool) -> None:
    import gguf

    writer.add_type("mmproj")
    writer.add_file_type(1 if half else 0)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(gguf.VisionProjectorType.QWEN25VL)
    writer.add_vision_use_silu(True)
    writer.add_vision_image_size(560)
    writer.add_vision_patch_size(vision["patch_size"])
    writer.add_vision_spatial_merge_size(vision["spatial_merge_size"])
    writer.add_vision_embedding_length(vision["hidden_size"])
    writer.add_vision_feed_forward_length(vision["intermediate_size"])
    writer.add_vision_projection_dim(vision["out_hidden_size"])
    writer.add_vision_block_count(vision["depth"])
    writer.add_vision_head_count(vision["num_heads"])
    writer.add_vision_attention_layernorm_eps(1e-6)
    writer.add_vision_image_mean(image["image_mean"])
    writer.add_vision_image_std(image["image_std"])
    writer.add_vision_n_wa_pattern(window_pattern(vision["fullatt_block_indexes"]))


def window_pattern(full_attention: list[int]) -> int:
    """llama.cpp counts: every n-th block sees whole frames. Other arrangements can't be said there."""
    pattern = full_attention[0] + 1
    if any(index + 1 != pattern * (i + 1) for i, index in enumerate(full_attention)):
        raise ValueError(f"every n-th block must see whole frames, but the blocks are {full_attention}")
    return pattern


def decoder_name(name: str) -> str | None:
    """The GGUF name of a decoder tensor of either checkpoint layout; None for what isn't the decoder's."""
    name = name.removeprefix("model.").removeprefix("language_model.")
    outer = {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}
    outer["lm_head.weight"] = "output.weight"
    if name in outer:
        return outer[name]
    if not name.startswith("layers."):
        return None
    _, layer, rest = name.split(".", 2)
    module, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{DECODER_NAMES[module]}.{kind}"


def vision_tensors(name: str, tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """The GGUF tensors that one tensor of the tower becomes; ``name`` without the tower's prefix."""
    if name == "patch_embed.proj.weight":  # one kernel for each of the two frames
        return [("v.patch_embd.weight", tensor[:, :, 0]), ("v.patch_embd.weight.1", tensor[:, :, 1])]
    if name.startswith("merger."):
        module, kind = name.removeprefix("merger.").rsplit(".", 1)
        return [(f"{MERGER_NAMES[module]}.{kind}", tensor)]
    _, block, rest = name.split(".", 2)
    module, kind = rest.rsplit(".", 1)
    if module == "attn.qkv":
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return [(f"v.blk.{block}.attn_{letter}.{kind}", part) for letter, part in parts]
    return [(f"v.blk.{block}.{VISION_NAMES[module]}.{kind}", tensor)]


def tensors_of(checkpoint: Path) -> Any:
    """(name, tensor) of every safetensors file, one at a time."""
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 -- not a mapping
                yield name, file.get_tensor(name)


def as_array(tensor: torch.Tensor) -> np.ndarray:
    wide = tensor if tensor.dtype == torch.float16 else tensor.float()
    return wide.contiguous().numpy()


def finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize(source: Path, target: Path, kind: str, threads: int = 2) -> None:
    """llama.cpp's own quantizer, its own choice of types: what people download.

    ``kind``: "Q8_0", "Q4_K_M", ...
    """
    import ctypes

    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.nthread = threads
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    arguments = (os.fsencode(source), os.fsencode(target), ctypes.byref(settings))
    if llama_cpp.llama_model_quantize(*arguments) != 0:
        raise RuntimeError(f"llama.cpp could not quantize {source.name} to {kind}")
