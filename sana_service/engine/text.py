"""Prompts to text embeddings, as the stock pipelines' `encode_prompt` makes them but for their padding.

The positive prompt follows the "complex human instruction" (Sana, arXiv 2410.10629, section 3.1) and keeps the
instruction's first token and its own 299; the negative prompt stands alone. Base and sprint read the same embeddings,
which depend on the text alone, so they are kept. The instruction is the same every time and the encoder is causal, so
its keys and values are made once; of each prompt only its own tokens are encoded, without padding.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from sana_service.models.instruction import human_instruction

if TYPE_CHECKING:
    from sana_service.engine.fused.text import FusedTextEncoder
    from sana_service.models.checkpoint import Gemma2Model, Tokenizer

MAX_TOKENS = 300
"""Most embeddings of a prompt that the transformer sees."""

CACHE_BYTES = 256 * 2**20
"""Embeddings kept on the device."""


@dataclass(frozen=True, eq=False)
class _Prefix:
    """The instruction's tokens that no prompt can change, and what the encoder made of them."""

    ids: list[int]
    first_state: torch.Tensor
    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]


class PromptEncoder:
    """Encodes prompts with a shared tokenizer and text encoder; used by one thread.

    An embedding is (tokens, hidden), 1 to 300 tokens, in the text encoder's dtype.

    Args:
        tokenizer: Gemma's; fast tokenizers keep truncation as state, hence the one thread.
        text_encoder: on its device.
        cache_bytes: budget for kept embeddings; the least recently used go first.
        fused: runs the text encoder where there is a faster way than its own.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        text_encoder: Gemma2Model,
        cache_bytes: int = CACHE_BYTES,
        fused: FusedTextEncoder | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._text_encoder = text_encoder
        self._device, self._dtype = text_encoder.device, text_encoder.dtype
        self._fused = fused
        self._instruction = human_instruction()
        self._instruction_tokens = len(tokenizer.encode(self._instruction))
        self._prefix: _Prefix | None = None
        self._cache: OrderedDict[tuple[str, str], torch.Tensor] = OrderedDict()
        self._cache_bytes = cache_bytes
        self._cached_bytes = 0

    def positive(self, prompt: str) -> torch.Tensor:
        """What to draw; the case of letters and outer blanks do not count."""
        return self._cached("positive", _normalise(prompt))

    def negative(self, prompt: str) -> torch.Tensor:
        """What to avoid."""
        return self._cached("negative", _normalise(prompt))

    def prepare(self) -> None:
        """Make what every prompt needs."""
        self._instruction_prefix()

    def _cached(self, kind: Literal["positive", "negative"], text: str) -> torch.Tensor:
        key = (kind, text)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        embedding = self._encode_positive(text) if kind == "positive" else self._encode_negative(text)
        self._cache[key] = embedding
        self._cached_bytes += embedding.nbytes
        while self._cached_bytes > self._cache_bytes and len(self._cache) > 1:
            _, oldest = self._cache.popitem(last=False)
            self._cached_bytes -= oldest.nbytes
        return embedding

    def _encode_positive(self, text: str) -> torch.Tensor:
        # The instruction's first token is the prompt's too: minus one for it, and one for <bos>.
        ids = self._tokens(self._instruction + text, self._instruction_tokens + MAX_TOKENS - 2)
        kept = self._instruction_tokens - 1
        prefix = self._instruction_prefix()
        reused = len(prefix.ids)
        if ids[:reused] != prefix.ids or len(ids) <= reused:
            states = self._states(ids)
            return torch.cat([states[:1], states[kept:]])
        states = self._states(ids[reused:], prefix)
        return torch.cat([prefix.first_state, states[kept - reused :]])

    def _encode_negative(self, text: str) -> torch.Tensor:
        return self._states(self._tokens(text, MAX_TOKENS))

    def _tokens(self, text: str, most: int) -> list[int]:
        ids: list[int] = self._tokenizer(text, max_length=most, truncation=True, add_special_tokens=True)["input_ids"]
        return ids

    def _states(self, ids: list[int], prefix: _Prefix | None = None) -> torch.Tensor:
        """(tokens, hidden) of one text, which may continue the prefix."""
        if self._fused is not None:
            # The caller keeps it, and what it is a part of is the graph's padded result.
            return self._fused.states(ids, after_prefix=prefix is not None).clone()
        from transformers import DynamicCache

        encoder: Any = self._text_encoder
        past = None if prefix is None else DynamicCache(prefix.layers)
        output = encoder(torch.tensor([ids], device=self._device), past_key_values=past, use_cache=prefix is not None)
        states: torch.Tensor = output.last_hidden_state[0]
        return states.to(self._dtype)

    def _instruction_prefix(self) -> _Prefix:
        """Made at the first prompt. A prompt can only change the tokens at its border with the instruction."""
        if self._prefix is None:
            alone, followed = (self._tokenizer.encode(self._instruction + text) for text in ("", "a"))
            same = next((i for i, (one, other) in enumerate(zip(alone, followed, strict=False)) if one != other), None)
            ids = alone[: min(len(alone) - 1 if same is None else same, self._instruction_tokens - 1)]
            if self._fused is not None:
                self._prefix = _Prefix(ids, self._fused.set_prefix(ids)[:1].clone(), ())
                return self._prefix
            from transformers import DynamicCache

            cache = DynamicCache()
            encoder: Any = self._text_encoder
            states = encoder(torch.tensor([ids], device=self._device), past_key_values=cache, use_cache=True)
            layers = tuple((layer.keys, layer.values) for layer in cache.layers)
            self._prefix = _Prefix(ids, states.last_hidden_state[0, :1].to(self._dtype), layers)
        return self._prefix


def _normalise(prompt: str) -> str:
    return prompt.lower().strip()
