"""The published architectures of Sana 1.6B and SANA-Sprint 1.6B at 1024 pixels, as configurations.

Pure data. Sources: diffusers' `scripts/convert_sana_to_diffusers.py` and `convert_dcae_to_diffusers.py`
for transformers, VAE and schedulers; google/gemma-2-2b-it for the text encoder. The parameter counts
that follow from them are in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_TRANSFORMER: dict[str, Any] = {
    "in_channels": 32,
    "out_channels": 32,
    "num_attention_heads": 70,
    "attention_head_dim": 32,
    "num_layers": 20,
    "num_cross_attention_heads": 20,
    "cross_attention_head_dim": 112,
    "cross_attention_dim": 2240,
    "caption_channels": 2304,
    "mlp_ratio": 2.5,
    "attention_bias": False,
    "sample_size": 32,
    "patch_size": 1,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "interpolation_scale": None,
}

_VAE: dict[str, Any] = {
    "in_channels": 3,
    "latent_channels": 32,
    "attention_head_dim": 32,
    "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
    "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
    "encoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "upsample_block_type": "interpolate",
    "downsample_block_type": "Conv",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "scaling_factor": 0.41407,
}

_TEXT_ENCODER: dict[str, Any] = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}


@dataclass(frozen=True)
class Architecture:
    """Constructor arguments of each module.

    Args:
        base, sprint: of `SanaTransformer2DModel`.
        vae: of `AutoencoderDC`.
        text_encoder: of `Gemma2Config`.
        base_scheduler: of `DPMSolverMultistepScheduler`.
        sprint_scheduler: of `SCMScheduler`.
    """

    base: Mapping[str, Any]
    sprint: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    base_scheduler: Mapping[str, Any]
    sprint_scheduler: Mapping[str, Any]


FULL_SIZE = Architecture(
    base=_TRANSFORMER,
    sprint={
        **_TRANSFORMER,
        "qk_norm": "rms_norm_across_heads",
        "guidance_embeds": True,
        "guidance_embeds_scale": 0.1,
    },
    vae=_VAE,
    text_encoder=_TEXT_ENCODER,
    base_scheduler={
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": 3.0,
        "final_sigmas_type": "zero",
    },
    sprint_scheduler={"prediction_type": "trigflow", "sigma_data": 0.5},
)
