"""The training code on a CPU, a few steps long, and its parts against independent answers."""

from __future__ import annotations

import inspect
import random
import re

import numpy as np
import pytest
import torch

from sana_service.models.bundled import base_folder
from sana_service.models.bundled.architecture import Architecture
from sana_service.models.bundled.training import autoencoder, base, fast, pixels, scenes
from sana_service.models.bundled.training.bank import Batch, arrange
from sana_service.models.bundled.training.captions import describe
from sana_service.models.bundled.training.language import Background, Scene, Thing, sample_scene
from sana_service.models.bundled.training.loop import Plan
from sana_service.models.bundled.training.tokenizer import instruction_lines

# numpy 2 warns about what diffusers' schedulers do with a tensor.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
WHITE = Background("solid", "white", "white")


def rendered(scene, width=1024, height=1024):
    image = scenes.pictures(scenes.tabulate([scene], [(width, height)], seed=3))[0]
    return ((image.permute(1, 2, 0) + 1) * 127.5).clamp(0, 255).round().byte().numpy()


@pytest.mark.parametrize("grid", [(16, 16), (8, 32), (21, 12)])
def test_the_packed_forward_is_the_stock_forward(grid):
    from diffusers import SanaTransformer2DModel

    torch.manual_seed(0)
    model = SanaTransformer2DModel(**Architecture(layers=2).transformer()).eval()
    tall, wide = grid
    latents, text = torch.randn(2, 32, 2 * tall, 2 * wide), torch.randn(2, 7, 128)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    time = torch.tensor([0.3, 0.9])
    gradient = torch.randn_like(latents)
    stock = model(latents, text, time, encoder_attention_mask=mask).sample
    (stock * gradient).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    tables = fast.grids(model, [(16, 16), grid])
    packed = fast.forward(model, tables, fast.pack(latents), torch.tensor([1, 1]), time, text, mask)
    ours = fast.unpack(packed, 2 * tall, 2 * wide)
    torch.testing.assert_close(ours, stock, atol=1e-5, rtol=1e-4)
    (ours * gradient).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-3, rtol=1e-3, msg=name)


@pytest.mark.parametrize("after", [True, False])
def test_text_is_read_as_the_stock_pipeline_reads_it(after):
    from diffusers import SanaPipeline
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_folder() / "tokenizer")
    text_encoder, _ = base.fresh_modules(0)
    text_encoder.eval()
    pipeline = SanaPipeline(tokenizer, text_encoder, None, None, None)
    prompts = ["a red circle on white", "", "two blue stars"]
    rows = [tokenizer.encode(prompt)[1:] for prompt in prompts]
    words = torch.tensor([row + [0] * (30 - len(row)) for row in rows])
    instruction = torch.tensor(tokenizer.encode("".join(instruction_lines())))
    lengths = torch.tensor([len(row) for row in rows])
    ids, select, mask = arrange(words, lengths, torch.full((3,), after), instruction)
    with torch.no_grad():
        ours = base.encode_text(text_encoder, Batch(ids, ids, ids, select, mask, mask))
        lines = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
        stock, stock_mask, *_ = pipeline.encode_prompt(
            prompts, do_classifier_free_guidance=False, device=torch.device("cpu"),
            complex_human_instruction=lines if after else None,
        )  # fmt: skip
    assert torch.equal(mask, stock_mask[:, :32])
    assert not stock_mask[:, 32:].any()
    torch.testing.assert_close(ours * mask[..., None], stock[:, :32] * mask[..., None])


def test_the_autoencoder_stage_lowers_its_loss(tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path))
    plan = Plan(seconds=60, learning_rate=2e-3, max_steps=14, warmup_steps=2, ema_decay=0.5)
    model, card = autoencoder.train(plan, batch=2, scenes=8, fresh=1, side=64)
    image = scenes.pictures(scenes.tabulate([Scene("single", (Thing("star", "red"),), WHITE)], [(512, 512)], seed=0))
    with torch.no_grad():
        decoded = model.decode(model.encode(image).latent).sample
    assert card.steps == 14
    assert decoded.isfinite().all()
    assert float(str(card.results["latent_deviation"])) > 0
    assert (tmp_path / "vae/diffusion_pytorch_model.safetensors").stat().st_size > 3_000_000


def test_the_base_stage_runs_and_moves_its_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path))
    modules = base.fresh_modules(0)
    before = modules[1].proj_out.weight.clone()
    plan = Plan(seconds=60, learning_rate=1e-3, max_steps=2, warmup_steps=1, ema_decay=0.5)
    _, transformer, card = base.train(plan, batch=2, scenes=2, seed=0, modules=modules)
    assert card.steps == 2
    assert not torch.equal(transformer.proj_out.weight, before)
    assert all(parameter.isfinite().all() for parameter in transformer.parameters())
    assert (tmp_path / "base.json").exists()


def test_the_guided_stage_trains_the_transformer_and_leaves_the_text_encoder(tmp_path, monkeypatch):
    """From the same seeds as the plain stage, so that what differs is the guided prediction."""
    ends = {}
    for guidance in (1.0, 3.0):
        monkeypatch.setenv("OUT", str(tmp_path / str(guidance)))
        modules = base.bundled_modules(base_folder())
        before = {name: weight.clone() for name, weight in modules[0].named_parameters()}
        plan = Plan(seconds=60, learning_rate=1e-3, max_steps=2, warmup_steps=1, ema_decay=0.5)
        text_encoder, transformer, _ = base.train(plan, batch=2, scenes=2, seed=0, modules=modules, guidance=guidance)
        moved = [name for name, weight in text_encoder.named_parameters() if not torch.equal(weight, before[name])]
        assert bool(moved) == (guidance == 1), moved
        ends[guidance] = transformer.proj_out.weight.detach().clone()
    assert ends[3.0].isfinite().all()
    assert not torch.equal(ends[1.0], ends[3.0])


def test_noise_levels_lean_towards_noise():
    torch.manual_seed(0)
    sigma = base.sample_sigma(40_000, torch.device("cpu"))
    # Of a logit-normal shifted by 8 the median is 8/9; the uniform 12 % pull it down a little.
    assert sigma.median() == pytest.approx(8 / 9, abs=0.03)
    assert (sigma < 0.25).float().mean() == pytest.approx(0.12 * 0.25, abs=0.01)


def test_training_never_sees_a_held_out_composition():
    rng = random.Random(0)
    seen = {sample_scene(rng).composition for _ in range(5000)}
    held_out = {sample_scene(rng, held_out=True).composition for _ in range(500)}
    assert not seen & held_out


def test_a_plain_caption_says_every_colour_and_the_background():
    rng = random.Random(1)
    for _ in range(500):
        scene = sample_scene(rng)
        text = describe(scene, rng, plain=True).replace("grey", "gray").replace("violet", "purple")
        said = set(re.findall(r"[a-z]+", text))
        assert {scene.background.first, *(thing.colour for thing in scene.things)} <= said, text


@pytest.mark.parametrize("size", [(1024, 1024), (2048, 512), (512, 2048)])
def test_the_scorer_passes_true_renderings(size):
    pair = Scene("pair", (Thing("heart", "red"), Thing("ring", "blue")), WHITE, place="right")
    row = Scene("count", (Thing("cross", "black"),), WHITE, count=4)
    for scene in (pair, row):
        assert pixels.score(rendered(scene, *size), scene).everything


@pytest.mark.parametrize(
    ("drawn", "wrong"),
    [
        (Scene("single", (Thing("star", "blue"),), WHITE), "colour"),
        (Scene("single", (Thing("circle", "red"),), WHITE), "shape"),
        (Scene("count", (Thing("star", "red"),), WHITE, count=2), "count"),
        (Scene("single", (Thing("star", "red"),), WHITE, place="bottom left"), "position"),
        (Scene("single", (Thing("star", "red"),), Background("solid", "green", "green")), "background"),
    ],
)
def test_the_scorer_sees_what_is_wrong(drawn, wrong):
    asked = Scene("single", (Thing("star", "red"),), WHITE)
    assert not getattr(pixels.score(rendered(drawn), asked), wrong)


def test_a_blob_is_no_shape():
    asked = Scene("single", (Thing("star", "red"),), WHITE)
    image = rendered(Scene("single", (Thing("cross", "red"),), WHITE)).copy()
    rng = np.random.default_rng(0)
    for _ in range(60):
        y, x = rng.integers(330, 640, 2)
        image[y : y + 60, x : x + 60] = image[512, 512]
    assert not pixels.score(image, asked).shape


def test_sharpness_is_one_for_a_true_rendering_and_falls_with_blur():
    scene = Scene("pair", (Thing("heart", "red"), Thing("ring", "blue")), WHITE, place="right")
    image = rendered(scene)  # with jitter
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    blurred = torch.nn.functional.avg_pool2d(planes, 5, 1, 2)[0].permute(1, 2, 0).byte().numpy()
    assert pixels.sharpness(image, scene) == pytest.approx(1, abs=0.05)
    # An upright edge that rose over one pixel or two rises over five or six.
    assert 0.15 < pixels.sharpness(blurred, scene) < 0.45
    assert pixels.sharpness(np.full_like(image, 248), scene) == 0
