"""The bundled pair's architecture: the classes of the real checkpoints, made small.

What differs in kind, and why (docs/bundled-model.md has the measurements):
  * patch_size 2: 256 tokens at 1024x1024, what a CPU can do; every bin of the 1024 set is a multiple of 64.
  * interpolation_scale 1: a sincos position embedding, without which one step cannot know left from right.
  * timestep_scale 0.001: the base then sees t in [0, 1] as the sprint pipeline gives it, and with qk-norm in both the
    sprint model starts from the base's weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

LATENT_CHANNELS = 32
SCHEDULER_FLOW_SHIFT = 3.0


@dataclass(frozen=True)
class Architecture:
    """Sizes of one pair; the defaults are the trained pair's.

    Args:
        heads: self-attention heads of 32 channels; the width is their product.
        layers: transformer blocks.
        cross_heads: softmax cross-attention heads over the same width.
        mlp_ratio: of GLUMBConv.
        text: keyword arguments of `Gemma2Config` that set its size.
        encoder_channels: of the autoencoder's encoder, finest first; neighbours must divide.
        decoder_channels: of its decoder; the first is unused while its layer count is 0.
        encoder_layers: residual blocks a resolution; 0 at the finest makes that one a strided convolution.
        decoder_layers: likewise.
    """

    heads: int = 5
    layers: int = 7
    cross_heads: int = 5
    mlp_ratio: float = 2.5
    text: dict[str, int] = field(
        default_factory=lambda: {
            "hidden_size": 128,
            "intermediate_size": 320,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
        }
    )
    encoder_channels: tuple[int, ...] = (16, 16, 32, 64, 64, 128)
    decoder_channels: tuple[int, ...] = (16, 16, 32, 64, 64, 128)
    encoder_layers: tuple[int, ...] = (0, 1, 1, 1, 1, 1)
    decoder_layers: tuple[int, ...] = (0, 1, 1, 2, 2, 2)

    def transformer(self, *, sprint: bool = False) -> dict[str, Any]:
        """Keyword arguments of `SanaTransformer2DModel`."""
        width = 32 * self.heads
        return {
            "in_channels": LATENT_CHANNELS,
            "out_channels": LATENT_CHANNELS,
            "num_attention_heads": self.heads,
            "attention_head_dim": 32,
            "num_layers": self.layers,
            "num_cross_attention_heads": self.cross_heads,
            "cross_attention_head_dim": width // self.cross_heads,
            "cross_attention_dim": width,
            "caption_channels": self.text["hidden_size"],
            "mlp_ratio": self.mlp_ratio,
            "attention_bias": False,
            "sample_size": 32,
            "patch_size": 2,
            "norm_elementwise_affine": False,
            "norm_eps": 1e-6,
            "interpolation_scale": 1,
            "qk_norm": "rms_norm_across_heads",
            "timestep_scale": 0.001,
            "guidance_embeds": sprint,
            "guidance_embeds_scale": 0.1,
        }

    def autoencoder(self) -> dict[str, Any]:
        """Keyword arguments of `AutoencoderDC`; all residual blocks, so that it stays local and trains on crops."""
        return {
            "in_channels": 3,
            "latent_channels": LATENT_CHANNELS,
            "encoder_block_types": "ResBlock",
            "decoder_block_types": "ResBlock",
            "encoder_block_out_channels": self.encoder_channels,
            "decoder_block_out_channels": self.decoder_channels,
            "encoder_layers_per_block": self.encoder_layers,
            "decoder_layers_per_block": self.decoder_layers,
            "encoder_qkv_multiscales": ((),) * 6,
            "decoder_qkv_multiscales": ((),) * 6,
            "upsample_block_type": "pixel_shuffle",
            "downsample_block_type": "pixel_unshuffle",
            "decoder_norm_types": "rms_norm",
            "decoder_act_fns": "silu",
            "scaling_factor": 1.0,
        }

    def text_encoder(self, vocab_size: int) -> dict[str, Any]:
        """Keyword arguments of `Gemma2Config`; no softcap, so that every attention kernel gives the same numbers."""
        return {
            **self.text,
            "vocab_size": vocab_size,
            "max_position_embeddings": 512,
            "sliding_window": 512,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "bos_token_id": 2,
        }
