"""The random pair that other tests build on."""

from __future__ import annotations

import pytest
import torch

from sana_service.models.bundled.random_pair import build_random_pair

# numpy 2 warns about what diffusers' schedulers do with a tensor.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def load(folder, name):
    import diffusers

    pipeline = getattr(diffusers, name).from_pretrained(folder, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline, prompt="a red circle", seed=0, **options):
    return pipeline(
        prompt, height=1024, width=1024, generator=torch.Generator().manual_seed(seed), output_type="np", **options
    ).images[0]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return build_random_pair(tmp_path_factory.mktemp("pair"))


def test_what_a_request_changes_shows_in_the_pixels(pair):
    base, sprint = load(pair[0], "SanaPipeline"), load(pair[1], "SanaSprintPipeline")
    for pipeline, steps in ((base, 3), (sprint, 2)):
        image = draw(pipeline, num_inference_steps=steps)
        assert 0.05 < image.std() < 0.4
        assert abs(image - draw(pipeline, num_inference_steps=steps)).max() == 0
        for change in ({"seed": 1}, {"prompt": "five blue stars"}, {"guidance_scale": 1.0}):
            assert abs(image - draw(pipeline, num_inference_steps=steps, **change)).mean() > 0.001


def test_the_two_vaes_agree_only_where_asked(pair, tmp_path):
    other = build_random_pair(tmp_path, shared_vae=False)

    def weights(folder):
        return (folder / "vae/diffusion_pytorch_model.safetensors").read_bytes()

    assert weights(pair[0]) == weights(pair[1])
    assert weights(other[0]) != weights(other[1])
    assert weights(other[0]) == weights(pair[0])


def test_the_seed_decides_the_weights_and_the_global_generator_stays(tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, _ = build_random_pair(tmp_path / "a", seed=1)
    assert torch.rand(1) == expected
    second, _ = build_random_pair(tmp_path / "b", seed=2)
    name = "transformer/diffusion_pytorch_model.safetensors"
    assert (first / name).read_bytes() != (second / name).read_bytes()
