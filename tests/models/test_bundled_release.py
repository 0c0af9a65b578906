"""A stage's weights become the package's: what it made is taken, all else stays, byte for byte."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import SanaTransformer2DModel

from sana_service.models.bundled import base_folder, verify
from sana_service.models.bundled.training.release import release


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return Path(shutil.copytree(base_folder().parent, tmp_path / "package", ignore=shutil.ignore_patterns("*.py")))


def hashes(folder: Path) -> dict[str, str]:
    """Of every weight file, by its path in the package."""
    paths = sorted(folder.rglob("*.safetensors"))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.parametrize(("made", "name"), [("transformer", "base"), ("sprint/transformer", "sprint")])
def test_only_what_a_stage_made_is_replaced(made: str, name: str, package: Path, tmp_path: Path):
    before = hashes(package)
    transformer = SanaTransformer2DModel.from_pretrained(package / name / "transformer")
    with torch.no_grad():
        transformer.proj_out.bias += 1
    transformer.save_pretrained(tmp_path / "stage" / made)
    release(tmp_path / "stage", package)
    after = hashes(package)
    assert {path for path in after if after[path] != before.get(path)} == {
        f"{name}/transformer/diffusion_pytorch_model.safetensors"
    }
    assert before.keys() == after.keys()
    verify(package)
    kept = SanaTransformer2DModel.from_pretrained(package / name / "transformer")
    # 16 bits of each weight are kept
    assert torch.equal(kept.proj_out.bias, transformer.proj_out.bias.bfloat16().float())
