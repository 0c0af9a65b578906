"""Prompts to text embeddings, as the stock pipelines' `encode_prompt` makes them.

The positive prompt follows the "complex human instruction" (Sana, arXiv 2410.10629, section 3.1)
and keeps the instruction's first token and its own 299; the negative prompt stands alone. Base and
sprint read the same embeddings, which depend on the text alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sana_service.models.instruction import human_instruction

if TYPE_CHECKING:
    from sana_service.models.checkpoint import Gemma2Model, Tokenizer

MAX_TOKENS = 300
"""Embeddings handed to the transformer for each prompt."""


@dataclass(frozen=True, eq=False)
class Embedding:
    """One prompt.

    Args:
        states: (1, 300, hidden) in the text encoder's dtype.
        mask: (1, 300) int64, one where a token stands.
    """

    states: torch.Tensor
    mask: torch.Tensor


class PromptEncoder:
    """Encodes prompts with a shared tokenizer and text encoder.

    Used by one thread: fast tokenizers keep padding and truncation as state.
    """

    def __init__(self, tokenizer: Tokenizer, text_encoder: Gemma2Model) -> None:
        self._tokenizer = tokenizer
        self._text_encoder = text_encoder
        self._instruction = human_instruction()
        self._instruction_tokens = len(tokenizer.encode(self._instruction))

    def positive(self, prompt: str) -> Embedding:
        """What to draw; the case of letters and outer blanks do not count."""
        # The instruction's first token is the prompt's too: minus one for it, and one for <bos>.
        length = self._instruction_tokens + MAX_TOKENS - 2
        full = self._encode(self._instruction + _normalise(prompt), length)
        kept = [0, *range(length - MAX_TOKENS + 1, length)]
        return Embedding(full.states[:, kept], full.mask[:, kept])

    def negative(self, prompt: str) -> Embedding:
        """What to avoid."""
        return self._encode(_normalise(prompt), MAX_TOKENS)

    def _encode(self, text: str, length: int) -> Embedding:
        device = self._text_encoder.device
        tokens = self._tokenizer(
            [text],
            padding="max_length",
            max_length=length,
            truncation=True,
            add_special_tokens=True,
            return_tensors="pt",
        )
        mask = tokens["attention_mask"].to(device)
        states = self._text_encoder(tokens["input_ids"].to(device), attention_mask=mask)[0]
        return Embedding(states.to(self._text_encoder.dtype), mask)


def _normalise(prompt: str) -> str:
    return prompt.lower().strip()
