"""How fast the hardware could be: the arithmetic of a picture, and the share of it that was reached.

Counts multiplications and additions (one multiply-add is two operations) of the text encoder, the
transformer and the decoder of Sana 1.6B, written out from the published architecture and equal to
torch's FlopCounterMode to four digits: transformer 2.967e12 for one row of 1024 latent tokens, decoder
8.369e12 at 1024x1024, text encoder 1.234e12 for 300 tokens. Everything else (resize, safety, files) is
left out, so the floor is a lower bound. The floor in seconds is the count over the matrix rate, given
(an H100's data sheet says 989e12 a second in bfloat16, dense) or measured on the machine.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

# Height and width of the bins at 1024 pixels, by height over width: the stock pipeline's table
# (diffusers, pipeline_pixart_alpha.py, ASPECT_RATIO_1024_BIN).
BINS = (
    *((512, 2048), (512, 1856), (576, 1792), (576, 1728), (576, 1664), (640, 1600), (640, 1536), (704, 1472)),
    *((704, 1408), (704, 1344), (768, 1344), (768, 1280), (832, 1216), (832, 1152), (896, 1152), (896, 1088)),
    *((960, 1088), (960, 1024), (1024, 1024), (1024, 960), (1088, 960), (1088, 896), (1152, 896), (1152, 832)),
    *((1216, 832), (1280, 768), (1344, 768), (1408, 704), (1472, 704), (1536, 640), (1600, 640), (1728, 576)),
    (2048, 512),
)

_TEXT_TOKENS = 300
_INSTRUCTED_TOKENS = 512
"""The base's prompt comes with its instruction; a negative prompt does not."""


@dataclass(frozen=True)
class Architecture:
    """What the count depends on.

    Args:
        name: of the checkpoints.
        width: of the transformer (heads times their size).
        head_width: of one head of the linear attention.
        layers: of the transformer.
        expansion: hidden width of the feed-forward part over the transformer's width.
        caption_width: of the text encoder's states.
        latent_channels: of the decoder's input.
        pixels_per_token: side of the square of pixels that is one token.
        text_parameters: of the text encoder, that each token is multiplied with.
        text_layers, text_attention_width: of the text encoder (heads times their size).
        decoder_per_pixel: operations of the decoder for one pixel of the bin.
    """

    name: str
    width: int
    head_width: int
    layers: int
    expansion: float
    caption_width: int
    latent_channels: int
    pixels_per_token: int
    text_parameters: float
    text_layers: int
    text_attention_width: int
    decoder_per_pixel: float

    def tokens(self, width: int, height: int) -> int:
        """Latent tokens of the bin at which a size is drawn."""
        bin_height, bin_width = nearest_bin(width, height)
        return bin_height * bin_width // self.pixels_per_token**2

    def transformer(self, tokens: int) -> float:
        """Operations of one forward of one row."""
        n, d, text = float(tokens), float(self.width), float(_TEXT_TOKENS)
        hidden = self.expansion * d
        heads = d / self.head_width
        block = (
            3 * 2 * n * d * d  # query, key and value
            + 2 * 2 * heads * n * self.head_width * (self.head_width + 1)  # linear attention
            + 2 * n * d * d  # its output
            + 2 * 2 * n * d * d  # cross-attention: query and output
            + 2 * 2 * text * d * d  # its keys and values
            + 2 * 2 * n * text * d  # its products
            + 2 * n * d * 2 * hidden  # feed-forward: inverted convolution
            + 2 * 9 * n * 2 * hidden  # depthwise convolution
            + 2 * n * hidden * d  # pointwise convolution
        )
        caption = 2 * text * (self.caption_width * d + d * d)
        patch = 2 * 2 * n * self.latent_channels * (self.pixels_per_token / 32) ** 2 * d
        return self.layers * block + caption + patch

    def text(self, tokens: int) -> float:
        """Operations of the text encoder for one prompt."""
        attention = 4.0 * tokens**2 * self.text_attention_width * self.text_layers
        return 2.0 * self.text_parameters * tokens + attention

    def decoder(self, width: int, height: int) -> float:
        """Operations of decoding one picture at the bin of a size."""
        bin_height, bin_width = nearest_bin(width, height)
        return self.decoder_per_pixel * bin_height * bin_width

    def picture(self, endpoint: str, width: int, height: int, steps: int, guided: bool = True) -> float:
        """Operations of one picture: text, all steps, decoder.

        Args:
            endpoint: "generate" runs two rows a step with guidance and encodes two texts, "sprint" one.
            width, height: as asked for.
            steps: of denoising.
            guided: whether the guidance scale is above 1.
        """
        rows = 2 if endpoint == "generate" and guided else 1
        text = self.text(_INSTRUCTED_TOKENS) + (self.text(_TEXT_TOKENS) if rows == 2 else 0.0)
        return text + steps * rows * self.transformer(self.tokens(width, height)) + self.decoder(width, height)


SANA = Architecture(
    name="Sana 1.6B at 1024 pixels",
    width=2240,
    head_width=32,
    layers=20,
    expansion=2.5,
    caption_width=2304,
    latent_channels=32,
    pixels_per_token=32,
    text_parameters=2024.5e6,
    text_layers=26,
    text_attention_width=2048,
    decoder_per_pixel=8.369e12 / 1024**2,
)

# The small pair in the package; decoder and text parameters counted with torch's FlopCounterMode.
BUNDLED = Architecture(
    name="the bundled model",
    width=160,
    head_width=32,
    layers=7,
    expansion=2.5,
    caption_width=128,
    latent_channels=32,
    pixels_per_token=64,
    text_parameters=517_760,
    text_layers=3,
    text_attention_width=128,
    decoder_per_pixel=18_792,
)
ARCHITECTURES = {"sana": SANA, "bundled": BUNDLED}


def nearest_bin(width: int, height: int) -> tuple[int, int]:
    """Height and width of the bin whose aspect ratio is nearest, as the stock pipeline chooses it."""
    ratio = height / width
    return min(BINS, key=lambda each: abs(round(each[0] / each[1], 2) - ratio))


def share_of_floor(operations: float, matrix_rate: float, images_per_second: float) -> float:
    """Share of the matrix rate that went into pictures: operations an image times images a second over it."""
    return operations * images_per_second / matrix_rate


def measured_matrix_rate(size: int = 8192, device: str = "cuda") -> float:
    """Operations a second of a bfloat16 matrix product on a GPU, or of a float32 one on the CPU.

    Needs torch, which the rest of the harness does without.
    """
    import torch

    on_gpu = device.startswith("cuda")
    left = torch.randn(size, size, device=device, dtype=torch.bfloat16 if on_gpu else torch.float32)
    best = float("inf")
    for _ in range(10):
        if on_gpu:
            torch.cuda.synchronize()
        started = time.perf_counter()
        left @ left
        if on_gpu:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best
