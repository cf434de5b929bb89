"""A stand-in for `qvl.network.vlm.CausalLM`: the few names that the engine uses, and a toy behind them.

One attention layer over real cached keys, whose output depends on every token before and on its position, so
a mistake in packing, caching or positions changes the ids. It counts what it is asked to do.

Legend: T packed tokens, D width, P patches, C patch values, N rows.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch

from qvl.config.text import Qwen2_5_VLTextConfig

HEADS, WIDTH, VOCAB, PATCH_VALUES = 2, 8, 24, 12


class _Config(SimpleNamespace):
    """Settings of a text decoder, and what the real ones derive from them."""

    most_positions = Qwen2_5_VLTextConfig.most_positions


class FakeNetwork:
    """``passes``: tokens of every pass of the decoder. ``encoded``: media of every call of the tower.
    ``stages``: stages run of every encoding that was begun."""

    def __init__(
        self, *, seed: int = 0, max_positions: int = 1000, follows_length: bool = False, window=None
    ):
        generator = torch.Generator().manual_seed(seed)

        def matrix(*shape):
            return torch.randn(*shape, generator=generator)

        self.table, self.q, self.k, self.v = matrix(VOCAB, WIDTH), *(matrix(WIDTH, WIDTH) for _ in range(3))
        self.head, self.tower = matrix(WIDTH, VOCAB), matrix(4 * PATCH_VALUES, WIDTH)
        self.passes: list[int] = []
        self.encoded: list[int] = []
        self.stages: list[int] = []
        self.extents: list[int] = []
        config = _Config(
            num_hidden_layers=1,
            num_key_value_heads=HEADS,
            head_dim=WIDTH // HEADS,
            vocab_size=VOCAB,
            max_position_embeddings=max_positions,
            rope_scaling=None,
        )
        self.model = SimpleNamespace(
            embed=self.embed,
            encode=self.encode,
            encoding=lambda patches_PC, grids: FakeEncoding(self, patches_PC, grids),
            checked=lambda embeds_ND: embeds_ND,
            visual=SimpleNamespace(device=torch.device("cpu"), spatial_merge_size=2),
            language_model=SimpleNamespace(
                config=config,
                attention_backend="eager",
                windows=[window],
                rotary=SimpleNamespace(follows_length=follows_length),
                embed_tokens=SimpleNamespace(weight=self.table),
                packed=self.packed,
            ),
        )

    def encode(self, patches_PC, grids):
        self.encoded.append(len(grids))
        assert len(patches_PC) == sum(g.patches for g in grids)
        return patches_PC.reshape(-1, 4 * PATCH_VALUES) @ self.tower

    def embed(self, ids_T, vision_ND=None, vision_mask_T=None):
        x_TD = self.table[ids_T]
        if vision_ND is not None:
            x_TD[vision_mask_T] = vision_ND
        return x_TD

    def packed(self, x_TD, positions_3T, attends, *, lengths, extents=None, hidden_states=None, rows_N=None):
        assert sum(lengths) == len(x_TD) == positions_3T.shape[1]
        self.passes.append(len(x_TD))
        self.extents = list(extents)
        angles_TD = positions_3T.sum(0)[:, None] * torch.arange(1, WIDTH + 1) * 0.1
        x_TD = x_TD + angles_TD.sin()
        q_THD, k_THD, v_THD = (
            (x_TD @ w).reshape(-1, HEADS, WIDTH // HEADS) for w in (self.q, self.k, self.v)
        )
        if rows_N is not None:
            x_TD, q_THD = x_TD[rows_N], q_THD[rows_N]
        return x_TD + attends[0](q_THD, k_THD, v_THD).flatten(1)

    def named_parameters(self):
        return [("head", self.head)]

    def logits(self, x_ND):
        return x_ND @ self.head


class FakeEncoding:
    """As `qvl.network.stages.Encoding`: ``STAGES`` stages, the last of which has the result."""

    STAGES = 3

    def __init__(self, network, patches_PC, grids):
        self.embeds_ND = None
        self._todo = (network, patches_PC, grids)
        self._left = self.STAGES
        network.stages.append(0)

    def advance(self):
        network, patches_PC, grids = self._todo
        network.stages[-1] += 1
        self._left -= 1
        if not self._left:
            self.embeds_ND = network.encode(patches_PC, grids)
