"""The transformers' training set: latents of fresh scenes and their captions, on the device, renewed as it runs."""

from __future__ import annotations

import random
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import ASPECT_RATIO_1024_BIN
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sana_service.models.bundled.training.captions import describe
from sana_service.models.bundled.training.fast import PATCH_VALUES, TOKENS, pack
from sana_service.models.bundled.training.language import HARD_MIX, sample_scene
from sana_service.models.bundled.training.scenes import (
    Painter,
    SceneTable,
    paint_object,
    render,
    sample_sizes,
    tabulate,
)
from sana_service.models.bundled.training.tokenizer import instruction_lines

BINS = [(int(height), int(width)) for height, width in ASPECT_RATIO_1024_BIN.values()]
TOKEN_GRIDS = [(height // 64, width // 64) for height, width in BINS]
PIXELS = 1024 * 1024  # no bin has more
CAPTIONS, WORDS, GROUP = 3, 30, 16
PLAIN_WEIGHT = 0.5  # of a token without an outline, beside one with


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch.

    Args:
        tokens: (batch, 256, 128) float32, packed latents times the scaling factor.
        bins: (batch,) index into `BINS`.
        ids: (batch, 39) what the text encoder reads.
        select: (batch, 32) which of its positions the transformer sees, as the pipelines select them.
        mask: (batch, 32) 1 for a real word.
        weight: (batch, 256) of each token in the loss; 0 for padding, mean 1 over a picture's own.
    """

    tokens: Tensor
    bins: Tensor
    ids: Tensor
    select: Tensor
    mask: Tensor
    weight: Tensor


@dataclass(frozen=True, eq=False)
class Drafts:
    """Scenes and captions that wait to be drawn, on the CPU."""

    table: SceneTable
    sizes: list[tuple[int, int]]
    words: Tensor
    lengths: Tensor


class LatentBank:
    """Room for a fixed number of scenes; `renew` fills it and then replaces the oldest, in place.

    Batches are drawn from what is there, on the device, so that a captured graph sees the new scenes. Scenes and
    captions are made up in a thread, one renewal ahead.
    """

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
        self.weight = torch.zeros(size, TOKENS, device=where)
        self.filled = torch.zeros((), device=where)
        instruction = tokenizer.encode("".join(instruction_lines()))
        self.instruction = torch.tensor(instruction, device=where)
        self._next = 0
        self._thread = ThreadPoolExecutor(1)
        self._drafts: dict[tuple[int, int], Future[Drafts]] = {}

    def draft(self, count: int, seed: int) -> None:
        """Make the scenes of a later `renew(count, seed)` up in the meantime."""
        self._drafts[count, seed] = self._thread.submit(self._draft, count, seed)

    def _draft(self, count: int, seed: int) -> Drafts:
        rng = random.Random(seed)
        scenes = [sample_scene(rng, mix=HARD_MIX) for _ in range(count)]
        sizes = sample_sizes(count, rng, group=self.group)
        captions = [describe(scene, rng).lower().strip() for scene in scenes for _ in range(CAPTIONS)]
        rows = [ids[1 : 1 + WORDS] for ids in self.tokenizer(captions, padding=False)["input_ids"]]
        padded = torch.tensor([row + [0] * (WORDS - len(row)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        shape = count, CAPTIONS
        return Drafts(tabulate(scenes, sizes, seed=seed), sizes, padded.view(*shape, WORDS), lengths.view(shape))

    @torch.no_grad()
    def renew(self, count: int, seed: int) -> None:
        """Draw, encode and caption `count` new scenes (a multiple of the group, a divisor of the size)."""
        if (count, seed) not in self._drafts:
            self.draft(count, seed)
        drafts = self._drafts.pop((count, seed)).result()
        where, sizes = self.tokens.device, drafts.sizes
        table = drafts.table.to(where)
        start = self._next
        self._next = (start + count) % self.size
        for first in range(0, count, self.group):
            width, height = sizes[first]
            images = render(table.rows(slice(first, first + self.group)), PIXELS, painter=self.painter)
            images = images[:, :, : width * height].unflatten(2, (height, width))
            with torch.autocast(where.type, torch.bfloat16, enabled=where.type == "cuda"):
                latents = self.vae.encode(images.contiguous(memory_format=torch.channels_last)).latent
            slots = slice(start + first, start + first + self.group)
            latents = latents.float() * self.vae.config.scaling_factor
            self.tokens[slots] = pack(latents).to(torch.bfloat16)
            self.weight[slots] = outline_weight(latents)
            self.bins[slots] = BINS.index((height, width))
        slots = slice(start, start + count)
        self.words[slots] = drafts.words.to(where)
        self.lengths[slots] = drafts.lengths.to(where)
        self.filled.fill_(max(start + count, int(self.filled)))

    def batch(self, count: int, *, dropout: float = 0.1, instructed: float = 0.7) -> Batch:
        """Random scenes, one caption each.

        Args:
            count: of the batch.
            dropout: share of empty captions, for classifier-free guidance.
            instructed: share of captions after the pipelines' instruction; negative prompts come without it.
        """
        where = self.tokens.device
        row = (torch.rand(count, device=where) * self.filled).long()
        caption = torch.randint(CAPTIONS, (count,), device=where)
        empty = torch.rand(count, device=where) < dropout
        after = (torch.rand(count, device=where) < instructed) & ~empty
        lengths = torch.where(empty, 0, self.lengths[row, caption])
        ids, select, mask = arrange(self.words[row, caption], lengths, after, self.instruction)
        return Batch(self.tokens[row].float(), self.bins[row], ids, select, mask, self.weight[row])


def outline_weight(latents: Tensor) -> Tensor:
    """How much each token counts: those that an outline crosses, much; plain ones, little.

    Args:
        latents: (batch, 32, height, width) of deviation 1. A cell that differs from the mean of its 3x3 window has an
            outline near it.

    Returns:
        (batch, 256), mean 1 over each picture's tokens, so that no picture counts more than another.
    """
    local = (latents - F.avg_pool2d(latents, 3, 1, 1, count_include_pad=False)).square().mean(dim=1, keepdim=True)
    weight = PLAIN_WEIGHT + (1 - PLAIN_WEIGHT) * ((F.avg_pool2d(local, 2) - 0.35) / 0.5).clamp(0, 1).flatten(1)
    return F.pad(weight / weight.mean(dim=1, keepdim=True), (0, TOKENS - weight.shape[1]))


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
