"""A full-size pair with random weights as the hub would hold it: both repositories and the safety model's."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import accelerate  # type: ignore[import-untyped]
import diffusers
import torch
import transformers

from sana_service.models.architecture import FULL_SIZE, Architecture
from sana_service.models.random import materialise, random_tokenizer

_PREPARATION = {
    "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    "image_processor_type": "ViTImageProcessor", "resample": 2, "rescale_factor": 1 / 255,
    "size": {"height": 224, "width": 224},
}  # fmt: skip


def write(folder: Path, device: str = "cuda:0", architecture: Architecture = FULL_SIZE) -> None:
    """Write `base`, `sprint` and `safety` into a folder, about 13 GB.

    Base and sprint have a VAE each, of equal weights; the text encoder is base's, as `sana download` leaves it.
    """
    library: Any = diffusers
    generator = torch.Generator(device).manual_seed(0)

    def filled(module: Any) -> Any:
        materialise(module, torch.device(device), torch.bfloat16, generator)
        return module.to(device)

    with accelerate.init_empty_weights(include_buffers=False):
        text_encoder: Any = transformers.Gemma2Model(transformers.Gemma2Config(**architecture.text_encoder))
        vae = library.AutoencoderDC(**architecture.vae)
        transformer = {
            "base": library.SanaTransformer2DModel(**architecture.base),
            "sprint": library.SanaTransformer2DModel(**architecture.sprint),
        }
    schedulers = {
        "base": library.DPMSolverMultistepScheduler(**architecture.base_scheduler),
        "sprint": library.SCMScheduler(**architecture.sprint_scheduler),
    }
    tokenizer: Any = random_tokenizer()
    filled(text_encoder)
    filled(vae)
    for name, kind in (("base", "SanaPipeline"), ("sprint", "SanaSprintPipeline")):
        place = folder / name
        filled(transformer[name]).save_pretrained(place / "transformer")
        del transformer[name]
        schedulers[name].save_pretrained(place / "scheduler")
        tokenizer.save_pretrained(place / "tokenizer")
        if name == "base":
            text_encoder.save_pretrained(place / "text_encoder")
        vae.save_pretrained(place / "vae")
        index = {
            "_class_name": kind,
            "_diffusers_version": diffusers.__version__,
            "scheduler": ["diffusers", type(schedulers[name]).__name__],
            "text_encoder": ["transformers", "Gemma2Model"],
            "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
            "transformer": ["diffusers", "SanaTransformer2DModel"],
            "vae": ["diffusers", "AutoencoderDC"],
        }
        (place / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    write_safety(folder / "safety")


def write_safety(folder: Path) -> None:
    """A vision transformer of the size of Falconsai/nsfw_image_detection."""
    labels = {"id2label": {0: "normal", 1: "nsfw"}, "label2id": {"normal": 0, "nsfw": 1}}
    torch.manual_seed(0)
    transformers.ViTForImageClassification(transformers.ViTConfig(**labels)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_PREPARATION))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
