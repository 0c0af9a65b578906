"""The bundled pair as the service uses it: whole, small, loadable by the stock pipelines, and it draws."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sana_service.models import bundled

# numpy 2 warns about what diffusers' schedulers do with a tensor.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
PACKAGE = Path(bundled.__file__).parent


@pytest.fixture(scope="module")
def base():
    """The stock base pipeline, float32."""
    from diffusers import SanaPipeline

    pipeline = SanaPipeline.from_pretrained(bundled.base_folder(), use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def sprint(base):
    """The stock sprint pipeline over the base's shared parts."""
    from diffusers import SanaSprintPipeline

    pipeline = SanaSprintPipeline.from_pretrained(
        bundled.sprint_folder(), use_safetensors=True,
        tokenizer=base.tokenizer, text_encoder=base.text_encoder, vae=base.vae,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def copy(tmp_path):
    """The data files and the manifest, free to be damaged."""
    for name in ("base", "sprint"):
        shutil.copytree(PACKAGE / name, tmp_path / name)
    shutil.copy(PACKAGE / bundled.MANIFEST, tmp_path)
    return tmp_path


def test_the_committed_files_are_those_of_the_manifest():
    bundled.verify()
    folder = bundled.base_folder().parent
    lines = [line.split("  ", 1) for line in (folder / bundled.MANIFEST).read_text().splitlines()]
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for _, name in lines}
    assert digests == {name: digest for digest, name in lines}


def test_an_altered_file_is_named(copy):
    path = copy / "base/vae/diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"base/vae/diffusion_pytorch_model\.safetensors differs"):
        bundled.verify(copy)


def test_a_missing_file_is_named(copy):
    (copy / "sprint/transformer/config.json").unlink()
    with pytest.raises(ValueError, match=r"sprint/transformer/config\.json is missing"):
        bundled.verify(copy)


def test_a_file_that_nobody_listed_is_named(copy):
    (copy / "base/extra.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"base/extra\.bin is not in the manifest"):
        bundled.verify(copy)


def test_the_pair_is_at_most_20_megabytes_without_pickles_or_links():
    files = bundled.data_files(PACKAGE)
    assert sum(path.stat().st_size for path in files) <= 20_000_000
    assert not any(path.is_symlink() for path in files)
    assert {path.suffix for path in files} == {".json", ".safetensors"}


def test_asking_for_the_folders_does_not_import_torch():
    code = "import sys, sana_service.models.bundled as b; b.verify(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_stock_classes_and_what_the_pair_shares(base, sprint):
    assert type(base.transformer).__name__ == type(sprint.transformer).__name__ == "SanaTransformer2DModel"
    assert type(base.vae).__name__ == "AutoencoderDC"
    assert type(base.text_encoder).__name__ == "Gemma2Model"
    assert type(base.scheduler).__name__ == "DPMSolverMultistepScheduler"
    assert type(sprint.scheduler).__name__ == "SCMScheduler"
    assert sprint.vae is base.vae
    assert base.vae_scale_factor == 32
    assert base.transformer.config.sample_size == sprint.transformer.config.sample_size == 32


@pytest.mark.parametrize("text", ["", "two red stars", "Ünïcode 漢字 🎨", "a\n\tb  c"])
def test_the_tokenizer_loses_nothing_and_the_instruction_leaves_a_prompt_its_tokens(base, text):
    import inspect

    from diffusers import SanaPipeline

    ids = base.tokenizer.encode(text)
    assert ids[0] == base.tokenizer.bos_token_id
    assert base.tokenizer.decode(ids[1:]) == text
    lines = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    instruction = base.tokenizer.encode("\n".join(lines))
    assert len(instruction) == 9
    assert base.tokenizer.encode("\n".join(lines) + text) == instruction + ids[1:]


def test_every_bin_gives_finite_latents(base, sprint):
    from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import ASPECT_RATIO_1024_BIN

    for height, width in ASPECT_RATIO_1024_BIN.values():
        size = {"height": int(height), "width": int(width), "output_type": "latent"}
        drawn = (
            base("a red circle", num_inference_steps=1, **size).images,
            sprint("a red circle", num_inference_steps=1, intermediate_timesteps=None, **size).images,
        )
        for latents in drawn:
            assert latents.shape == (1, 32, int(height) // 32, int(width) // 32)
            assert latents.isfinite().all()


@pytest.mark.parametrize(
    ("prompt", "object_colour", "background", "width", "height"),
    [
        ("a red circle on a white background", "red", "white", 1024, 1024),
        ("Draw a BIG yellow square on blue.", "yellow", "blue", 1024, 1024),
        ("a green triangle, black background", "green", "black", 2048, 512),
        ("an orange heart on a gray background", "orange", "gray", 512, 2048),
    ],
)
def test_the_base_draws_the_colours_that_the_prompt_names(base, prompt, object_colour, background, width, height):
    import torch

    from sana_service.models.bundled.training import pixels

    image = base(
        prompt, height=height, width=width, num_inference_steps=18, guidance_scale=5.0,
        generator=torch.Generator().manual_seed(1), output_type="np",
    ).images[0]  # fmt: skip
    image = (image * 255).round().astype(np.uint8)
    found = pixels.find_objects(image)
    assert pixels.nearest_colour(pixels.background_rgb(image)) == background
    assert [item.colour for item in found] == [object_colour]
