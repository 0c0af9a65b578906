"""Take a stage's output into the package: `python -m sana_service.models.bundled.training.release FOLDER`.

Copies the modules found there over the bundled ones, rewrites both pipelines' folders and the manifest. A sprint
transformer in FOLDER/sprint/transformer is taken, else the bundled one kept; where there is none yet it is the base's
under other names.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from diffusers import AutoencoderDC, SanaTransformer2DModel
from transformers import Gemma2Model

from sana_service.models.bundled import verify, write_manifest
from sana_service.models.bundled.architecture import Architecture
from sana_service.models.bundled.assemble import schedulers, sprint_from_base, write_pipeline


def release(output: Path, package: Path) -> None:
    """Write `package/base`, `package/sprint` and the manifest.

    Args:
        output: folder of a stage, with any of text_encoder, vae, transformer, sprint.
        package: folder of the bundled models; what the stage did not make stays as it is.
    """

    def newest(name: str) -> Path:
        return output / name if (output / name).is_dir() else package / "base" / name

    text_encoder = Gemma2Model.from_pretrained(newest("text_encoder"))
    vae = AutoencoderDC.from_pretrained(newest("vae"))
    transformer = SanaTransformer2DModel.from_pretrained(newest("transformer"))
    made = [folder / "sprint/transformer" for folder in (output, package)]
    found = [folder for folder in made if folder.is_dir()]
    sprint = (
        SanaTransformer2DModel.from_pretrained(found[0]) if found else sprint_from_base(transformer, Architecture())
    )
    base_scheduler, sprint_scheduler = schedulers()
    tokenizer = package / "base" / "tokenizer"
    write_pipeline(package / "base", "SanaPipeline", transformer, base_scheduler, shared=(tokenizer, text_encoder, vae))
    write_pipeline(package / "sprint", "SanaSprintPipeline", sprint, sprint_scheduler, shared=None)
    for path in package.rglob("config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None):  # where it lay when it was made
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_manifest(package)
    verify(package)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    release(parser.parse_args().folder, Path(__file__).parents[1])
