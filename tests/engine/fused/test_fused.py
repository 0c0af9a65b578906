"""Each fused module against the stock one, tiny and in float32: what differs is the order of sums."""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC, SanaTransformer2DModel
from transformers import Gemma2Config, Gemma2Model

from sana_service.engine.transformer import SanaForward
from sana_service.models.bundled import base_folder
from tests.engine.kernels import DEVICE, ROUNDING, distance

decoder = pytest.importorskip("sana_service.engine.fused.decoder")
text = pytest.importorskip("sana_service.engine.fused.text")
products = pytest.importorskip("sana_service.engine.fused.products")
transformer = pytest.importorskip("sana_service.engine.fused.transformer")

# SiLU of large negative numbers: a GPU takes the exponential for infinity without a word, numpy warns.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")


def filled(module: Any, scale: float) -> Any:
    """On the device, with weights that leave no part without effect."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn_like(parameter) * (scale if parameter.dim() > 1 else 1)
    return module.to(DEVICE).eval().requires_grad_(False)


def tiny_transformer(**options: Any) -> Any:
    return SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=3, attention_head_dim=16, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=24, cross_attention_dim=48, caption_channels=20,
        sample_size=8, **options,
    )  # fmt: skip


LAYOUTS: dict[str, dict[str, Any]] = {
    "base": {},
    "sprint": {"qk_norm": "rms_norm_across_heads", "guidance_embeds": True},
    "patches and positions": {"patch_size": 2, "interpolation_scale": 1},
    "bias": {"attention_bias": True},
}


@torch.inference_mode()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_transformer(layout: str):
    module = filled(tiny_transformer(**LAYOUTS[layout]), 0.3)
    assert transformer.can_fuse(module)
    states = [torch.randn(tokens, 20, device=DEVICE) for tokens in (3, 7)]
    latents = torch.randn(2, 4, 4, 6, device=DEVICE)
    timesteps = torch.tensor([900.0, 20.0], device=DEVICE)
    guidance = torch.tensor([4.0, 2.0], device=DEVICE) if module.config.guidance_embeds else None
    results = []
    # The plain one first: the fused one takes the weights' memory over.
    for forward in (SanaForward(module), transformer.FusedForward(module)):
        contexts = forward.stack([forward.context(state) for state in states])
        results.append(forward.forward(latents, timesteps, guidance, contexts))
    assert distance(results[1], results[0]) < ROUNDING
    again = SanaForward(module)
    contexts = again.stack([again.context(state) for state in states])
    assert torch.equal(again.forward(latents, timesteps, guidance, contexts), results[0])


@torch.inference_mode()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_transformer_in_8_bits(layout: str):
    # In float32, since the interpreter cannot multiply matrices in bfloat16.
    module = filled(tiny_transformer(**LAYOUTS[layout]), 0.3)
    states = [torch.randn(tokens, 20, device=DEVICE) for tokens in (3, 7)]
    latents = torch.randn(2, 4, 4, 6, device=DEVICE)
    timesteps = torch.tensor([900.0, 20.0], device=DEVICE)
    guidance = torch.tensor([4.0, 2.0], device=DEVICE) if module.config.guidance_embeds else None
    results = []
    for precision in ("exact", "fp8"):
        forward = transformer.FusedForward(module, precision=precision)
        contexts = forward.stack([forward.context(state) for state in states])
        results.append(forward.forward(latents, timesteps, guidance, contexts))
    # The interpreter rounds some numbers to half of what they are (tests/engine/kernels/test_quantize.py).
    assert 1e-3 < distance(results[1], results[0]) < 0.2


@torch.inference_mode()
@pytest.mark.parametrize("bias", [False, True])
def test_a_product_of_numbers_that_8_bits_hold(bias: bool):
    torch.manual_seed(0)
    x = torch.randint(-14, 15, (2, 3, 32), device=DEVICE).bfloat16()
    weight = torch.randint(-14, 15, (48, 32), device=DEVICE).bfloat16()
    x[..., 0] = weight[:, 0] = 14
    added = torch.randn(48, device=DEVICE, dtype=torch.bfloat16) if bias else None
    exact, coarse = (products.product(weight, added, precision) for precision in ("exact", "fp8"))
    assert isinstance(coarse, products.Fp8Product)
    assert distance(coarse(x), exact(x)) < 1e-2
    narrow = products.product(weight[:, :20], added, "fp8")
    assert not isinstance(narrow, products.Fp8Product), "20 is no multiple of 16"


@pytest.mark.parametrize("options", [{"qk_norm": "rms_norm"}, {"norm_elementwise_affine": True}])
def test_what_the_kernels_do_not_fit_is_not_fused(options: dict[str, Any]):
    with torch.device("meta"):
        module = SanaTransformer2DModel(num_layers=1, **options)
    assert not transformer.can_fuse(module)


@torch.inference_mode()
def test_decoder_with_every_kind_of_layer():
    blocks = ("ResBlock", "ResBlock", "EfficientViTBlock")
    vae = filled(
        AutoencoderDC(
            latent_channels=4, attention_head_dim=16, encoder_block_types=blocks, decoder_block_types=blocks,
            encoder_block_out_channels=(16, 32, 64), decoder_block_out_channels=(16, 32, 64),
            encoder_layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 2, 2),
            encoder_qkv_multiscales=((), (), (5,)), decoder_qkv_multiscales=((), (), (5,)),
            upsample_block_type="interpolate", downsample_block_type="Conv",
        ),
        0.2,
    )  # fmt: skip
    latents = torch.randn(1, 4, 3, 4, device=DEVICE)
    expected = vae.decode(latents, return_dict=False)[0]
    assert distance(decoder.FusedDecoder(vae)(latents), expected) < ROUNDING


@torch.inference_mode()
def test_bundled_decoder():
    vae = AutoencoderDC.from_pretrained(base_folder() / "vae", torch_dtype=torch.float32).to(DEVICE).eval()
    latents = torch.randn(1, 32, 2, 2, device=DEVICE)
    expected = vae.decode(latents, return_dict=False)[0]
    assert distance(decoder.FusedDecoder(vae)(latents), expected) < ROUNDING


@torch.inference_mode()
def test_text_encoder_alone_and_behind_a_prefix():
    config = Gemma2Config(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=16, attn_implementation="eager",
    )  # fmt: skip
    module = filled(Gemma2Model(config), 0.3)
    assert text.can_fuse(module)
    ids = [2, 5, 9, 11, 4, 30, 31, 32, 33]
    expected = module(torch.tensor([ids], device=DEVICE)).last_hidden_state[0]
    encoder = text.FusedTextEncoder(module)
    assert distance(encoder.states(ids), expected) < ROUNDING
    assert distance(encoder.set_prefix(ids[:5]), expected[:5]) < ROUNDING
    assert distance(encoder.states(ids[5:], after_prefix=True), expected[5:]) < ROUNDING
    assert distance(encoder.states(ids), expected) < ROUNDING
