"""Latents to pixels: decode at the bin's size, then crop, resize and quantise to the size asked for.

One image at a time: the decoder needs the most memory, and only one picture's floats exist at once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from sana_service.engine.errors import NotFinite

if TYPE_CHECKING:
    from sana_service.engine.backend import Decode
    from sana_service.engine.bins import Box, Size
    from sana_service.models.checkpoint import AutoencoderDC

TILE_PIXELS = 512
"""Side of a tile of a picture that cannot be decoded whole; a quarter of it overlaps the next one."""


class LatentDecoder:
    """Decodes one checkpoint's latents; used by one thread.

    Args:
        vae: on its device, in the dtype that it keeps.
        whole: runs its decoder, whole.
    """

    def __init__(self, vae: AutoencoderDC, whole: Decode) -> None:
        self._vae, self._whole = vae, whole
        # The module's own property looks at all of its parameters, each time.
        self._dtype: torch.dtype = vae.dtype
        self._scaling_factor: float = vae.config.scaling_factor

    def __call__(self, latents: torch.Tensor, *, tiled: bool = False) -> torch.Tensor:
        """The pictures in float32 and within [0, 1].

        Args:
            latents: (n, channels, h, w) as denoising returns them.
            tiled: decode overlapping tiles and blend them: less memory, and seams that differ slightly.

        Returns:
            images: (n, 3, 32 h, 32 w) float32.

        Raises:
            NotFinite: latents or pixels are NaN or infinite.
        """
        scaled = latents.to(self._dtype) / self._scaling_factor
        if tiled:
            _set_tile(self._vae)
            images: torch.Tensor = self._vae.tiled_decode(scaled, return_dict=False)[0].float()
        else:
            images = self._whole(scaled)
        shown = (images * 0.5 + 0.5).clamp_(0, 1)
        require_finite(latents=latents, pixels=images)  # at the end, since it waits for the device
        return shown


def _set_tile(vae: AutoencoderDC) -> None:
    """The sizes are attributes that `tiled_decode` alone reads; `decode` stays whole."""
    vae.tile_sample_min_height = vae.tile_sample_min_width = TILE_PIXELS
    vae.tile_sample_stride_height = vae.tile_sample_stride_width = TILE_PIXELS * 3 // 4


def require_finite(**values: torch.Tensor) -> None:
    """Raise `NotFinite` with the name of what is NaN or infinite; clamping hides infinity."""
    # NaN is least and largest of whatever it is among; `isfinite` takes five kernels for it.
    extremes = torch.stack([torch.stack(tensor.aminmax()) for tensor in values.values()]).tolist()
    for what, bounds in zip(values, extremes, strict=True):
        if not all(map(math.isfinite, bounds)):
            raise NotFinite(f"the {what} are not finite numbers")


def render(image: torch.Tensor, crop: Box, size: Size) -> torch.Tensor:
    """Crop a picture and bring the crop to the requested size.

    Bicubic with antialiasing, so that reducing does not alias and enlarging stays sharp; without a
    change of size the pixels are the picture's own.

    Args:
        image: (3, height, width) float32 in [0, 1].

    Returns:
        pixels: (size.height, size.width, 3) uint8 on the image's device.
    """
    part = image[None, :, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    if (crop.width, crop.height) == (size.width, size.height):
        part = part * 255
    else:
        part = functional.interpolate(
            part, size=(size.height, size.width), mode="bicubic", antialias=True, align_corners=False
        )
        part = part.clamp_(0, 1).mul_(255)
    # Rounds half to even, as numpy does in the stock image processor.
    return part.round_().to(torch.uint8)[0].permute(1, 2, 0)
