"""``qvl info``: what a checkpoint is and what media cost, without reading a weight.

The network is built on the meta device, where tensors have shapes but no storage, so a 72B model takes
seconds and a checkpoint whose weights were never downloaded will do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qvl.cli.options import DebugOption, FpsOption, MaxPixelsOption, MinPixelsOption
from qvl.cli.streams import harmless, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from qvl.config import Qwen2_5_VLConfig
    from qvl.weights.quantization.config import QuantizationConfig

BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
CONFIG_FILE = "config.json"
INT4_GROUP = 128
INT4_BYTES = 0.5 + 2 * 2 / INT4_GROUP  # half a byte, and a 2-byte scale and zero point per group

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="Folder, hub id or bundled name of a checkpoint.")
]
Media = Annotated[
    list[str] | None,
    typer.Argument(metavar="[MEDIA]...", help="Pictures, videos, PDF files or URLs.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def info(
    model: ModelName,
    media: Media = None,
    min_pixels: MinPixelsOption = None,
    max_pixels: MaxPixelsOption = None,
    fps: FpsOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show a model's architecture and memory, and the tokens that media will cost; no weights needed."""
    from qvl.cli.common import fetch
    from qvl.config import Qwen2_5_VLConfig

    facts = describe_model(Qwen2_5_VLConfig.from_pretrained(fetch(model, (CONFIG_FILE,))))
    costs = _media_costs(model, media or [], min_pixels, max_pixels, fps)
    if as_json:
        write_json({"model": model, **facts, "media": costs})
    else:
        _print_tables(model, facts, costs)


def describe_model(config: Qwen2_5_VLConfig) -> dict[str, Any]:
    """Architecture, parameter counts, bytes per number format, rope and vision geometry as plain values."""
    text, vision = config.text_config, config.vision_config
    kv_values = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    parameters = count_parameters(config)
    return {
        "architecture": {
            "layers": text.num_hidden_layers,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "key_value_heads": text.num_key_value_heads,
            "head_dim": text.head_dim,
            "intermediate_size": text.intermediate_size,
            "vocabulary": text.vocab_size,
            "tied_head": bool(config.tie_word_embeddings),
            "max_positions": text.max_position_embeddings,
            "sliding_window": text.sliding_window,
        },
        "rope": {
            "type": (text.rope_scaling or {}).get("rope_type", "default"),
            "theta": text.rope_theta,
            "sections": text.mrope_section,
            **{k: v for k, v in (text.rope_scaling or {}).items() if k in ("factor", "attention_factor")},
        },
        "vision": {
            "blocks": vision.depth,
            "width": vision.hidden_size,
            "heads": vision.num_heads,
            "patch_pixels": vision.patch_size,
            "token_pixels": vision.patch_size * vision.spatial_merge_size,
            "window_pixels": vision.window_size,
            "frames_per_step": vision.temporal_patch_size,
            "full_attention_blocks": list(vision.fullatt_block_indexes),
            "positions_per_second": vision.tokens_per_second,
        },
        "quantization": describe_quantization(config),
        "parameters": parameters,
        "memory_bytes": memory_bytes(parameters),
        "kv_bytes_per_token": {name: int(kv_values * size) for name, size in BYTES.items()},
    }


def describe_quantization(config: Qwen2_5_VLConfig) -> dict[str, Any] | None:
    """How the weights are stored; None: unquantized. ``bytes``: of all weights, where it is known."""
    values = getattr(config, "quantization_config", None)
    if values is None:
        return None
    from qvl.weights.quantization.config import QuantizationConfig, stored_quantization

    stored = stored_quantization(values)
    if not isinstance(stored, QuantizationConfig):
        bits = values.get("bits", values.get("w_bit"))
        return {"method": stored.quant_method, "bits": bits, "group_size": values.get("group_size")}
    parts = {"text decoder": True, "vision tower": stored.vision, "head": stored.head}
    return {
        "method": stored.quant_method,
        "bits": int(stored.weights.removeprefix("int")),
        "group_size": stored.group_size,
        "parts": [name for name, quantized in parts.items() if quantized],
        "in_int8": list(stored.modules_in_int8),
        "as_they_are": list(stored.modules_to_not_convert),
        "exact": stored.exact,
        "bytes": _stored_bytes(config, stored),
    }


def _stored_bytes(config: Qwen2_5_VLConfig, stored: QuantizationConfig) -> int:
    from math import prod

    from qvl.modeling import Qwen2_5_VLForConditionalGeneration
    from qvl.ops.quantized import packed_shapes
    from qvl.weights.quantization.install import quantizable
    from qvl.weights.skeleton import skeleton

    network = skeleton(Qwen2_5_VLForConditionalGeneration, config)
    total = sum(p.numel() for p in network.parameters()) * BYTES.get(config.dtype_name or "", 2.0)
    for name, scheme in quantizable(network, stored, ""):
        layer = network.get_submodule(name)
        forms = packed_shapes(scheme.bits, scheme.group, (layer.out_features, layer.in_features))
        total += sum(prod(shape) * dtype.itemsize for shape, dtype in forms.values())
        total -= layer.weight.numel() * BYTES.get(config.dtype_name or "", 2.0)
    return int(total)


def count_parameters(config: Qwen2_5_VLConfig) -> dict[str, int]:
    """Parameters by part, tied ones once; ``linear``: those that weight-only quantization makes smaller."""
    from torch import nn

    from qvl.modeling import Qwen2_5_VLForConditionalGeneration
    from qvl.weights.skeleton import skeleton

    network = skeleton(Qwen2_5_VLForConditionalGeneration, config)
    decoder = network.language_model
    linear = sum(m.weight.numel() for m in decoder.modules() if isinstance(m, nn.Linear))
    return {
        "total": network.num_parameters(),
        "vision": sum(p.numel() for p in network.visual.parameters()),
        "decoder": sum(p.numel() for p in decoder.layers.parameters()),
        "embeddings": decoder.embed_tokens.weight.numel(),
        "linear": linear,
    }


def memory_bytes(parameters: dict[str, int]) -> dict[str, int]:
    """Bytes of the weights alone. int8 and int4: the decoder's matrices so, everything else bfloat16."""
    total, linear = parameters["total"], parameters["linear"]
    sizes = {name: int(total * size) for name, size in BYTES.items()}
    rest = (total - linear) * BYTES["bfloat16"]
    return {**sizes, "int8": int(rest + linear), "int4": int(rest + linear * INT4_BYTES)}


def _media_costs(
    model: str, sources: list[str], min_pixels: int | None, max_pixels: int | None, fps: float | None
) -> list[dict[str, Any]]:
    if not sources:
        return []
    from qvl.cli.common import Loading, load_processor
    from qvl.cli.media import cost, open_media

    media = open_media(sources)
    processor = load_processor(Loading(model, min_pixels=min_pixels, max_pixels=max_pixels))
    return [cost(medium, processor, fps) for medium in media]


def _print_tables(model: str, facts: dict[str, Any], costs: list[dict[str, Any]]) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)  # file names are no markup
    with console.capture() as shown:  # printed below, because rich leaves the program on a broken pipe
        console.print(_model_table(model, facts))
        if costs:
            console.print(_media_table(costs))
            console.print(f"{sum(row['tokens'] for row in costs):,} tokens in all, before text and markers")
    print(shown.get(), end="", flush=True)


def _model_table(model: str, facts: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table("", "", title=harmless(model), show_header=False, title_justify="left")
    for name, value in _rows(facts):
        table.add_row(name, value)
    return table


def _media_table(costs: list[dict[str, Any]]) -> Table:
    from rich.table import Column, Table

    names = ("medium", "kind", "size", "resized to", "grid (t, h, w)", "tokens")
    table = Table(*(Column(name, overflow="fold") for name in names))
    for row in costs:
        size = f"{row['width']} x {row['height']}"
        if row["kind"] == "video":
            size += f", {row['seconds']:.1f} s at {row['fps']:.3g} fps"
        resized = f"{row['resized_width']} x {row['resized_height']}"
        if row["kind"] == "video":
            resized += f", {row['frames']} frames at {row['sampled_fps']:.3g} fps"
        grid = " x ".join(map(str, row["grid"]))
        name = harmless(row["source"].rstrip("/").rpartition("/")[2])
        table.add_row(name, row["kind"], size, resized, grid, f"{row['tokens']:,}")
    return table


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    shape, vision, rope, count = (facts[part] for part in ("architecture", "vision", "rope", "parameters"))
    head = "tied to the embedding" if shape["tied_head"] else "of its own"
    groups = f"{shape['key_value_heads']} key/value heads"
    window = f", sliding window {shape['sliding_window']:,}" if shape["sliding_window"] else ""
    kv = facts["kv_bytes_per_token"]["bfloat16"]
    return [
        ("parameters", f"{count['total']:,} (vision {count['vision']:,}, decoder {count['decoder']:,})"),
        ("decoder", f"{shape['layers']} layers, width {shape['width']}, MLP {shape['intermediate_size']}"),
        (
            "attention",
            f"{shape['heads']} heads, {groups}, head size {shape['head_dim']}{window}",
        ),
        ("vocabulary", f"{shape['vocabulary']:,} tokens, head {head}"),
        ("positions", f"{shape['max_positions']:,}"),
        (
            "rope",
            f"{rope['type']}, theta {rope['theta']:,.0f}, sections {rope['sections']}"
            + "".join(f", {name} {rope[name]}" for name in ("factor", "attention_factor") if name in rope),
        ),
        ("vision tower", f"{vision['blocks']} blocks, width {vision['width']}, {vision['heads']} heads"),
        (
            "vision geometry",
            f"patches of {vision['patch_pixels']} px, tokens of {vision['token_pixels']} px, windows of "
            f"{vision['window_pixels']} px, {vision['frames_per_step']} frames per step",
        ),
        ("full attention in blocks", ", ".join(map(str, vision["full_attention_blocks"]))),
        *_quantization_rows(facts["quantization"]),
        ("weights in memory", ", ".join(f"{k} {_size(v)}" for k, v in facts["memory_bytes"].items())),
        ("keys and values", f"{_size(kv)} per token in bfloat16"),
    ]


def _quantization_rows(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    what = [f"{found['method']}"]
    if found["bits"]:
        what.append(f"int{found['bits']}")
    if found["group_size"]:
        what.append(f"groups of {found['group_size']}")
    if "parts" in found:
        what.append(" and ".join(found["parts"]))
        for key, name in (("in_int8", "in int8"), ("as_they_are", "as they are")):
            if found[key]:
                what.append(f"{name}: {len(found[key])} named in config.json")
        what += ["exact products"] if found["exact"] else []
        what.append(_size(found["bytes"]))
    return [("quantized weights", ", ".join(what))]


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
