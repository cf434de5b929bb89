"""The vision tower and the text decoder together, and the head that turns hidden states into logits.

Packed entry points only: padded batches, caches and generation live above. The documented classes subclass
these and put themselves into ``tower_class``, ``decoder_class`` and ``backbone_class``.

Legend: T tokens, D width, P patches, C values in one patch, N merged vision tokens (or rows to score),
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from qvl.errors import ConfigError, PlaceholderMismatchError
from qvl.network.finite import require_finite
from qvl.network.layers import initialise
from qvl.network.stages import Encoding, Whole, encoding
from qvl.network.text import TextDecoder
from qvl.network.vision import VisionTower
from qvl.ops.linear import Linear
from qvl.types import Grid

if TYPE_CHECKING:
    from qvl.config import Qwen2_5_VLConfig


class VisionLanguageModel(nn.Module):
    """``visual`` and ``language_model`` under the names of the newer checkpoint layout."""

    tower_class: type[VisionTower] = VisionTower
    decoder_class: type[TextDecoder] = TextDecoder

    def __init__(self, config: Qwen2_5_VLConfig) -> None:
        super().__init__()
        self.config: Any = config
        self.visual = self.tower_class(config.vision_config)
        self.language_model = self.decoder_class(config.text_config)

    def init_weights(self) -> None:
        """Random weights for training from nothing, each part by its own config's ``initializer_range``."""
        self.visual.init_weights()
        self.language_model.init_weights()

    def encode(self, patches_PC: Tensor, grids: Tensor | Iterable[Grid] | Iterable[Sequence[int]]) -> Tensor:
        """Embeddings (N, D) of pictures or videos, checked to be finite.

        Raises NonFiniteError, naming the weights that are not, and ConfigError for a tower of another width.
        """
        return self.checked(self.visual(patches_PC, grids))

    def encoding(self, patches_PC: Tensor, grids: Iterable[Grid]) -> Encoding | Whole:
        """The same in short stages; the embeddings are to be handed to `checked`."""
        return encoding(self.visual, patches_PC, grids)

    def checked(self, embeds_ND: Tensor) -> Tensor:
        """Embeddings from the tower, if they are finite and fit the decoder. Raises what `encode` raises."""
        width = self.language_model.config.hidden_size
        if embeds_ND.shape[1] != width:
            raise ConfigError(
                f"vision_config.out_hidden_size is {embeds_ND.shape[1]} but the decoder is {width} wide: "
                "a picture's embeddings must be as wide as a token's"
            )
        require_finite(embeds_ND, self.visual, "vision tower")
        return embeds_ND

    def embed(
        self, ids_T: Tensor, vision_ND: Tensor | None = None, vision_mask_T: Tensor | None = None
    ) -> Tensor:
        """Embeddings (T, D): looked up by id, and in the masked places taken from ``vision_ND`` in order.

        Raises PlaceholderMismatchError if the mask does not have one place per vision embedding.
        """
        x_TD = self.language_model.embed_tokens(ids_T)
        if vision_ND is None or vision_mask_T is None:
            return x_TD
        places = int(vision_mask_T.sum())
        if places != len(vision_ND):
            raise PlaceholderMismatchError(
                f"The prompt has {places} placeholder tokens, but the media have {len(vision_ND)} "
                "embeddings; make both with the same processor call."
            )
        return x_TD.masked_scatter(vision_mask_T[:, None], vision_ND.to(x_TD))


class CausalLM(nn.Module):
    """The backbone under ``model``, and ``lm_head``, tied to the embeddings where the config says so."""

    backbone_class: type[VisionLanguageModel] = VisionLanguageModel

    def __init__(self, config: Qwen2_5_VLConfig) -> None:
        super().__init__()
        self.config: Any = config
        text = config.text_config
        self.model = self.backbone_class(config)
        self.lm_head: nn.Linear = Linear(text.hidden_size, text.vocab_size, bias=False)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Make head and embeddings one parameter, if tied: again after parameters have been replaced."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.language_model.embed_tokens.weight

    def init_weights(self) -> None:
        """Random weights for training from nothing."""
        self.model.init_weights()
        if not self.config.tie_word_embeddings:
            initialise(self.lm_head, self.config.text_config.initializer_range)

    def logits(self, x_ND: Tensor) -> Tensor:
        """Scores (N, V) of the token after each given hidden state."""
        return self.lm_head(x_ND)
