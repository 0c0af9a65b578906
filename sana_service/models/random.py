"""The full-size architecture with random weights, for timing: its pictures are noise.

Weights are made where they will live, in their final precision, so that a device takes what the real
checkpoints take and the host nothing. They are seeded and scaled by fan-in, so that activations stay
finite and near the size of one. The tokenizer knows the human instruction's words alone, which makes
the instruction about as long as Gemma's does; other words are split into bytes.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import accelerate  # type: ignore[import-untyped]
import diffusers
import tokenizers
import torch
import transformers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from sana_service.models.architecture import FULL_SIZE, Architecture
from sana_service.models.checkpoint import Checkpoint, Models, Tokenizer
from sana_service.models.instruction import human_instruction

if TYPE_CHECKING:
    from torch import nn

_LOG = logging.getLogger("sana.models")

_SPECIAL_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>"]


def random_models(
    device: torch.device, dtype: torch.dtype, *, seed: int = 0, architecture: Architecture = FULL_SIZE
) -> Models:
    """Build base and sprint with one text encoder and one VAE."""
    _LOG.warning("RANDOM WEIGHTS: every picture is noise; SANA_MODELS=random is for timing only")
    generator = torch.Generator(device).manual_seed(seed)

    def fill(module: Any) -> Any:
        materialise(module, device, dtype, generator)
        return module.to(device).eval().requires_grad_(False)

    library: Any = diffusers
    with accelerate.init_empty_weights(include_buffers=False):
        text_encoder: Any = transformers.Gemma2Model(transformers.Gemma2Config(**architecture.text_encoder))
        vae = library.AutoencoderDC(**architecture.vae)
        base = library.SanaTransformer2DModel(**architecture.base)
        sprint = library.SanaTransformer2DModel(**architecture.sprint)
    del vae.encoder
    fill(text_encoder)
    fill(vae)
    base_scheduler = library.DPMSolverMultistepScheduler(**architecture.base_scheduler)
    sprint_scheduler = library.SCMScheduler(**architecture.sprint_scheduler)
    return Models(
        random_tokenizer(),
        text_encoder,
        {
            "base": Checkpoint("random", None, fill(base), vae, base_scheduler),
            "sprint": Checkpoint("random", None, fill(sprint), vae, sprint_scheduler),
        },
        device,
        dtype,
    )


def random_tokenizer() -> Tokenizer:
    """A byte-fallback BPE over the human instruction, with Gemma's special tokens and their ids."""
    tokenizer: Any = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("▁", "merged_with_next"), pre_tokenizers.Punctuation()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", _SPECIAL_TOKENS.index("<bos>"))]
    )
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(special_tokens=_SPECIAL_TOKENS + alphabet, show_progress=False)
    tokenizer.train_from_iterator([human_instruction()], trainer)
    library: Any = transformers
    return library.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        padding_side="right",
    )


def materialise(module: nn.Module, device: torch.device, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Give every parameter of a module without data its place and its values; buffers are real already."""
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            values = torch.empty(parameter.shape, dtype=dtype, device=device)
            _initialise(owner, name, values, generator)
            setattr(owner, name, torch.nn.Parameter(values, requires_grad=False))


def _initialise(owner: nn.Module, name: str, values: torch.Tensor, generator: torch.Generator) -> None:
    if name == "bias":
        values.zero_()
    elif values.dim() == 1:
        # A norm's gain; Gemma's adds one to it.
        values.fill_(0.0 if type(owner).__name__.startswith("Gemma") else 1.0)
    elif isinstance(owner, torch.nn.Embedding):
        # Gemma multiplies embeddings with the root of their width.
        values.normal_(0.0, 1 / math.sqrt(values.shape[1]), generator=generator)
    else:
        fan_in = values[0].numel()
        values.normal_(0.0, 1 / math.sqrt(fan_in), generator=generator)
