"""The transformers' training set: latents of fresh scenes and their captions, on the device, renewed as it runs."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from diffusers import AutoencoderDC
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import ASPECT_RATIO_1024_BIN
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sana_service.models.bundled.training.captions import describe
from sana_service.models.bundled.training.fast import PATCH_VALUES, TOKENS, pack
from sana_service.models.bundled.training.language import sample_scene
from sana_service.models.bundled.training.scenes import Painter, paint_object, render, sample_sizes, tabulate
from sana_service.models.bundled.training.tokenizer import instruction_lines

BINS = [(int(height), int(width)) for height, width in ASPECT_RATIO_1024_BIN.values()]
TOKEN_GRIDS = [(height // 64, width // 64) for height, width in BINS]
PIXELS = 1024 * 1024  # no bin has more
CAPTIONS, WORDS, GROUP = 3, 30, 16
BOS = 2


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch.

    Args:
        tokens: (batch, 256, 128) float32, packed latents times the scaling factor.
        bins: (batch,) index into `BINS`.
        ids: (batch, 39) what the text encoder reads.
        select: (batch, 32) which of its positions the transformer sees, as the pipelines select them.
        mask: (batch, 32) 1 for a real word.
    """

    tokens: Tensor
    bins: Tensor
    ids: Tensor
    select: Tensor
    mask: Tensor


class LatentBank:
    """A fixed number of scenes; `renew` replaces the oldest in place, so that a captured graph sees the new ones."""

    def __init__(
        self,
        vae: AutoencoderDC,
        tokenizer: PreTrainedTokenizerBase,
        size: int,
        *,
        painter: Painter = paint_object,
        group: int = GROUP,
    ) -> None:
        """`group` neighbouring scenes share a bin and are encoded together; it must divide `size`."""
        where = vae.device
        self.vae, self.tokenizer, self.painter, self.size = vae, tokenizer, painter, size
        self.group = group
        self.tokens = torch.zeros(size, TOKENS, PATCH_VALUES, dtype=torch.bfloat16, device=where)
        self.bins = torch.zeros(size, dtype=torch.int64, device=where)
        self.words = torch.zeros(size, CAPTIONS, WORDS, dtype=torch.int64, device=where)
        self.lengths = torch.zeros(size, CAPTIONS, dtype=torch.int64, device=where)
        instruction = tokenizer.encode("".join(instruction_lines()))
        self.instruction = torch.tensor(instruction, device=where)
        self._next = 0

    @torch.no_grad()
    def renew(self, count: int, seed: int) -> None:
        """Draw, encode and caption `count` new scenes (a multiple of the group) in place of the oldest."""
        rng = random.Random(seed)
        scenes = [sample_scene(rng) for _ in range(count)]
        sizes = sample_sizes(count, rng, group=self.group)
        where = self.tokens.device
        table = tabulate(scenes, sizes, seed=seed).to(where)
        start = self._next
        self._next = (start + count) % self.size
        for first in range(0, count, self.group):
            width, height = sizes[first]
            images = render(table.rows(slice(first, first + self.group)), PIXELS, painter=self.painter)
            images = images[:, :, : width * height].unflatten(2, (height, width))
            with torch.autocast(where.type, torch.bfloat16, enabled=where.type == "cuda"):
                latents = self.vae.encode(images.contiguous(memory_format=torch.channels_last)).latent
            slots = slice(start + first, start + first + self.group)
            self.tokens[slots] = pack(latents.float() * self.vae.config.scaling_factor).to(torch.bfloat16)
            self.bins[slots] = BINS.index((height, width))
        captions = [describe(scene, rng).lower().strip() for scene in scenes for _ in range(CAPTIONS)]
        rows = [ids[1 : 1 + WORDS] for ids in self.tokenizer(captions, padding=False)["input_ids"]]
        padded = torch.tensor([row + [0] * (WORDS - len(row)) for row in rows])
        slots = slice(start, start + count)
        self.words[slots] = padded.view(count, CAPTIONS, WORDS).to(where)
        self.lengths[slots] = torch.tensor([len(row) for row in rows]).view(count, CAPTIONS).to(where)

    def batch(self, count: int, *, dropout: float = 0.1, instructed: float = 0.7) -> Batch:
        """Random scenes, one caption each.

        Args:
            count: of the batch.
            dropout: share of empty captions, for classifier-free guidance.
            instructed: share of captions after the pipelines' instruction; negative prompts come without it.
        """
        where = self.tokens.device
        row = torch.randint(self.size, (count,), device=where)
        caption = torch.randint(CAPTIONS, (count,), device=where)
        empty = torch.rand(count, device=where) < dropout
        after = (torch.rand(count, device=where) < instructed) & ~empty
        lengths = torch.where(empty, 0, self.lengths[row, caption])
        ids, select, mask = arrange(self.words[row, caption], lengths, after, self.instruction)
        return Batch(self.tokens[row].float(), self.bins[row], ids, select, mask)


def arrange(words: Tensor, lengths: Tensor, after: Tensor, instruction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the text encoder reads and the transformer sees.

    Mirrors `SanaPipeline._get_gemma_prompt_embeds`: after an instruction of n tokens (its <bos> counted), positions 0
    and n - 1 onwards are selected, so that the instruction's last token is seen too.

    Args:
        words: (batch, 30) a prompt's tokens without <bos>, padded.
        lengths: (batch,) how many are real.
        after: (batch,) whether the instruction comes first.
        instruction: (n,) its tokens with <bos>.

    Returns:
        ids (batch, n + 30), select and mask (batch, 32).
    """
    batch, room = words.shape
    prefix = len(instruction)
    words = torch.where(torch.arange(room, device=words.device)[None] < lengths[:, None], words, 0)
    plain = torch.cat((instruction[:1].expand(batch, 1), words, words.new_zeros(batch, prefix - 1)), dim=1)
    long = torch.cat((instruction.expand(batch, prefix), words), dim=1)
    ids = torch.where(after[:, None], long, plain)
    position = torch.arange(room + 2, device=words.device)[None].expand(batch, -1)
    shifted = torch.where(position == 0, 0, position + prefix - 2).clamp(max=room + prefix - 1)
    select = torch.where(after[:, None], shifted, position)
    mask = position < (lengths + torch.where(after, 2, 1))[:, None]
    return ids, select, mask.long()
