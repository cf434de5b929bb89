"""One table of names for every layout in which Qwen2.5-VL tensors are stored.

Inside qvl a tensor has its newer name (``model.visual.*``, ``model.language_model.*``, ``lm_head.*``),
which is also its module's. Files have those, or the released names of 2025-02 (``visual.*``, ``model.*``),
or bare ones where somebody saved one part alone. Files are written with the released names: every tool
reads those.
"""

from __future__ import annotations

VISION = "model.visual."
TEXT = "model.language_model."
HEAD = "lm_head."

# How a stored name begins -> how it begins here. The first that fits counts, so longer ones stand first.
_RENAMES = (
    ("model.visual.", VISION),
    ("model.language_model.", TEXT),
    ("lm_head.", HEAD),
    # released
    ("visual.", VISION),
    ("model.", TEXT),
    # one part saved alone: the model without its head, the decoder, the tower
    ("language_model.", TEXT),
    ("embed_tokens.", TEXT + "embed_tokens."),
    ("layers.", TEXT + "layers."),
    ("norm.", TEXT + "norm."),
    ("patch_embed.", VISION + "patch_embed."),
    ("blocks.", VISION + "blocks."),
    ("merger.", VISION + "merger."),
)
_RELEASED = ((VISION, "visual."), (TEXT, "model."))

# Tables of angles that early checkpoints carry along; they are computed here.
_DERIVED = (".inv_freq", ".rotary_pos_emb", ".masked_bias")


def to_internal(stored: str) -> str | None:
    """The internal name of a stored tensor; None for one that is computed rather than read.

    A name that fits no layout comes back as it is, to be reported as unexpected.
    """
    if stored.endswith(_DERIVED):
        return None
    return _replaced(stored, _RENAMES)


def to_released(internal: str) -> str:
    """The name under which an internal tensor is saved."""
    return _replaced(internal, _RELEASED)


def _replaced(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for old, new in table:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
