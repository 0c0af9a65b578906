"""`Gemma2Model` on an accelerator, for one text at a time that may continue a known prefix.

The prefix's keys and values are made once, and a text's own are written behind a copy of them. Texts are padded on the
right to one of a few lengths, so that few graphs serve all; the model is causal, so padding changes no word. Same
arithmetic as the eager implementation with capped scores; texts longer than its sliding window are not meant.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from sana_service.cuda_graph import Pool
from sana_service.engine.fused.packing import packed
from sana_service.engine.graphs import Capturer, GraphSet
from sana_service.engine.kernels.norms import add_rms_norms, rms_norm
from sana_service.engine.kernels.text import capped_softmax_, gated_gelu, rotate

LENGTHS = (16, 32, 64, 128, 304)
"""Words that a captured text is padded to."""

_MOST_POSITIONS = 1024


def can_fuse(text_encoder: Any) -> bool:
    """Whether the kernels fit."""
    config = text_encoder.config
    return (
        config.model_type in ("gemma2", "gemma2_text")
        and config.attn_logit_softcapping is not None
        and config.hidden_activation == "gelu_pytorch_tanh"
        and not config.attention_bias
        and config.head_dim & (config.head_dim - 1) == 0
    )


class _Layer:
    """One decoder layer's weights as the kernels want them."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv, _ = packed([attention.q_proj, attention.k_proj, attention.v_proj])
        self.out = attention.o_proj.weight
        self.gate_up, _ = packed([mlp.gate_proj, mlp.up_proj])
        self.down = mlp.down_proj.weight
        self.before_attention = layer.input_layernorm.weight
        self.after_attention = layer.post_attention_layernorm.weight
        self.before_mlp = layer.pre_feedforward_layernorm.weight
        self.after_mlp = layer.post_feedforward_layernorm.weight


class FusedTextEncoder:
    """Runs one text encoder; used by one thread.

    Args:
        text_encoder: a stock `Gemma2Model` on its device, for which `can_fuse` holds.
        capturer: of the device; None to launch each kernel by itself.
        pool: of the graphs.
    """

    def __init__(self, text_encoder: Any, capturer: Capturer | None = None, pool: Pool | None = None) -> None:
        config = text_encoder.config
        self._module = text_encoder
        self.device: torch.device = text_encoder.device
        self._layers = [_Layer(layer) for layer in text_encoder.layers]
        self._heads, self._key_heads, self._dim = (
            config.num_attention_heads, config.num_key_value_heads, config.head_dim,
        )  # fmt: skip
        self._scale, self._cap = config.query_pre_attn_scalar**-0.5, config.attn_logit_softcapping
        self._eps = config.rms_norm_eps
        empty = (len(self._layers), 2, self._key_heads, 0, self._dim)
        self._nothing = torch.empty(empty, dtype=text_encoder.dtype, device=self.device)
        self._prefix = self._nothing
        self._angles: tuple[torch.Tensor, torch.Tensor] | None = None
        self._graphs = GraphSet(self._run, capturer, pool) if capturer is not None and pool is not None else None

    def set_prefix(self, ids: list[int]) -> torch.Tensor:
        """Make a prefix's keys and values; the states of its tokens, (tokens, hidden). Once only."""
        states, self._prefix = self._encode(torch.tensor(ids, device=self.device), *self._fixed(False, len(ids)))
        return states

    def capture(self) -> None:
        """Capture all lengths, alone and after the prefix, and wait for it."""
        if self._graphs is None:
            return
        waiting = []
        for after_prefix in (False, True):
            for length in LENGTHS:
                ids = torch.zeros(length, dtype=torch.int64, device=self.device)
                fixed = self._fixed(after_prefix, length)
                waiting.append(self._graphs.capture((after_prefix, length), (ids,), fixed))
        for one in waiting:
            if one is not None:
                one.result()

    def states(self, ids: list[int], *, after_prefix: bool = False) -> torch.Tensor:
        """The last hidden states of a text, (tokens, hidden).

        Args:
            ids: its tokens, without those of the prefix.
            after_prefix: whether the prefix stands before them.
        """
        length = next((length for length in LENGTHS if length >= len(ids)), len(ids))
        padded = torch.tensor(ids + [0] * (length - len(ids))).to(self.device, non_blocking=True)
        fixed = self._fixed(after_prefix, length)
        if self._graphs is None or length not in LENGTHS:
            states = self._run(padded, *fixed)
        else:
            states = self._graphs((after_prefix, length), (padded,), fixed)
        return states[: len(ids)]

    def _fixed(self, after_prefix: bool, length: int) -> tuple[torch.Tensor, ...]:
        """What stands before a text, and cosines and sines of all positions."""
        before = self._prefix if after_prefix else self._nothing
        positions = before.shape[3] + length
        if self._angles is None or len(self._angles[0]) < positions:
            # Room for the longest that is captured, so that its place does not change.
            places = torch.arange(max(positions, _MOST_POSITIONS), device=self.device)[None]
            like = torch.empty(0, dtype=torch.float32, device=self.device)
            cosines, sines = self._module.rotary_emb(like, places)
            half = self._dim // 2
            self._angles = cosines[0, :, :half].contiguous(), sines[0, :, :half].contiguous()
        return before, *self._angles

    def _run(self, ids: torch.Tensor, prefix: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
        return self._encode(ids, prefix, cosines, sines)[0]

    def _encode(
        self, ids: torch.Tensor, prefix: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """States, and keys and values of prefix and text: (layers, 2, key heads, tokens, dim)."""
        module = self._module
        before = prefix.shape[3]
        total = before + len(ids)
        store = torch.empty(*prefix.shape[:3], total, self._dim, dtype=prefix.dtype, device=prefix.device)
        store[:, :, :, :before].copy_(prefix)
        x = module.embed_tokens(ids)
        normed = rms_norm(x, self._layers[0].before_attention, None, self._eps, one_plus=True)
        for number, layer in enumerate(self._layers):
            keys, values = store[number, 0], store[number, 1]
            query = rotate(functional.linear(normed, layer.qkv), cosines, sines, keys, values, before)
            # The queries of one key head below each other.
            grouped = query.view(self._key_heads, -1, self._dim)
            scores = torch.bmm(grouped, keys.transpose(1, 2))
            weights = capped_softmax_(scores.view(self._heads, len(ids), total), before, self._scale, self._cap)
            seen = torch.bmm(weights.view(self._key_heads, -1, total), values)
            seen = seen.view(self._heads, len(ids), self._dim).transpose(0, 1).reshape(len(ids), -1)
            delta = functional.linear(seen, layer.out)
            x, normed = add_rms_norms(x, delta, layer.after_attention, layer.before_mlp, self._eps)
            delta = functional.linear(gated_gelu(functional.linear(normed, layer.gate_up)), layer.down)
            last = number + 1 == len(self._layers)
            following = module.norm.weight if last else self._layers[number + 1].before_attention
            x, normed = add_rms_norms(x, delta, layer.after_mlp, following, self._eps)
        return normed, store
