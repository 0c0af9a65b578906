"""Build the pair's modules and write them in diffusers' layout, readable by the stock pipelines."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import diffusers
import torch
from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaTransformer2DModel, SCMScheduler
from transformers import Gemma2Config, Gemma2Model

from sana_service.models.bundled.architecture import SCHEDULER_FLOW_SHIFT, Architecture

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

VOCABULARY_SIZE = 1232
_LIBRARIES = {
    "tokenizer": ["transformers", "GemmaTokenizer"],
    "text_encoder": ["transformers", "Gemma2Model"],
    "vae": ["diffusers", "AutoencoderDC"],
    "transformer": ["diffusers", "SanaTransformer2DModel"],
}


@dataclass(frozen=True, eq=False)
class Modules:
    """The three networks of a pipeline, float32."""

    text_encoder: Gemma2Model
    vae: AutoencoderDC
    transformer: SanaTransformer2DModel


def build(architecture: Architecture) -> Modules:
    """Modules with the classes' own random initialisation, from torch's global generator."""
    config = Gemma2Config(**architecture.text_encoder(VOCABULARY_SIZE))
    return Modules(
        text_encoder=Gemma2Model(config).eval(),
        vae=AutoencoderDC(**architecture.autoencoder()).eval(),
        transformer=SanaTransformer2DModel(**architecture.transformer()).eval(),
    )


def sprint_from_base(base: SanaTransformer2DModel, architecture: Architecture) -> SanaTransformer2DModel:
    """The base's weights under the sprint model's names; its guidance embedder starts without effect."""
    sprint = SanaTransformer2DModel(**architecture.transformer(sprint=True)).eval()
    renamed = {}
    for name, value in base.state_dict().items():
        renamed[name.replace("time_embed.emb.timestep_embedder", "time_embed.timestep_embedder")] = value
    missing, unexpected = sprint.load_state_dict(renamed, strict=False)
    if unexpected or any("guidance_embedder" not in name for name in missing):
        raise ValueError(f"base and sprint transformers do not fit: missing {missing}, unexpected {unexpected}")
    with torch.no_grad():
        for parameter in sprint.time_embed.guidance_embedder.linear_2.parameters():
            parameter.zero_()
    return sprint


def schedulers() -> tuple[DPMSolverMultistepScheduler, SCMScheduler]:
    """The two schedulers as the hub's checkpoints configure them."""
    base = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=2,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=SCHEDULER_FLOW_SHIFT,
    )
    return base, SCMScheduler(num_train_timesteps=1000, prediction_type="trigflow", sigma_data=0.5)


def write_pipeline(
    folder: Path,
    pipeline: str,
    transformer: SanaTransformer2DModel,
    scheduler: SchedulerMixin,
    *,
    shared: tuple[Path, Gemma2Model, AutoencoderDC] | None,
) -> None:
    """Write one pipeline's folder, weights in bfloat16.

    Args:
        folder: created if needed; components that stand there already are replaced.
        pipeline: class name for model_index.json.
        transformer: any dtype.
        scheduler: its configuration is saved.
        shared: tokenizer folder, text encoder and VAE; None where another folder holds them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_module(transformer, folder / "transformer")
    scheduler.save_pretrained(folder / "scheduler")
    if shared:
        tokenizer, text_encoder, vae = shared
        if tokenizer != folder / "tokenizer":
            shutil.copytree(tokenizer, folder / "tokenizer", dirs_exist_ok=True)
        save_module(text_encoder, folder / "text_encoder")
        save_module(vae, folder / "vae")
    index = {
        "_class_name": pipeline,
        "_diffusers_version": diffusers.__version__,
        **_LIBRARIES,
        "scheduler": ["diffusers", type(scheduler).__name__],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def save_module(module: Gemma2Model | AutoencoderDC | SanaTransformer2DModel, folder: Path) -> None:
    """Save a copy in bfloat16, so that the one in training keeps its precision."""
    with torch.random.fork_rng(devices=[]):  # a fresh module draws weights that nobody asked for
        if isinstance(module, Gemma2Model):
            copy = Gemma2Model(module.config)
        else:
            copy = type(module).from_config(module.config)
    copy.load_state_dict(module.state_dict())
    torch.nn.Module.to(copy, torch.bfloat16)  # diffusers' own `to` warns about casts that do not concern it here
    copy.save_pretrained(folder, safe_serialization=True)
