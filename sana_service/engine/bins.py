"""Which size a checkpoint draws at, and which part of it is the picture asked for.

A Sana checkpoint was trained at a fixed set of sizes ("bins"), one for each aspect ratio. The
tables and the choice among them are the stock pipeline's. What is kept of the bin differs from it:
stock enlarges first and crops afterwards, and loses whole pictures to a rounding error
(diffusers#8911); here the crop comes first, so that no intermediate is larger than what was asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import (
    ASPECT_RATIO_512_BIN,
    ASPECT_RATIO_1024_BIN,
)
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import ASPECT_RATIO_2048_BIN
from diffusers.pipelines.sana.pipeline_sana import ASPECT_RATIO_4096_BIN

_TABLES: dict[int, dict[str, list[float]]] = {
    16: ASPECT_RATIO_512_BIN,
    32: ASPECT_RATIO_1024_BIN,
    64: ASPECT_RATIO_2048_BIN,
    128: ASPECT_RATIO_4096_BIN,
}


@dataclass(frozen=True)
class Size:
    """Pixels."""

    width: int
    height: int


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels, from its upper left corner."""

    left: int
    top: int
    width: int
    height: int


def bin_table(sample_size: int) -> dict[str, list[float]]:
    """The stock table of a checkpoint: height over width, as text, to [height, width] in pixels.

    Args:
        sample_size: of the transformer's configuration, the side of the latents of a square picture.

    Raises:
        ValueError: no table is known for this size.
    """
    if sample_size not in _TABLES:
        raise ValueError(f"no bins are known for sample_size {sample_size}, only for {sorted(_TABLES)}")
    return _TABLES[sample_size]


@lru_cache(maxsize=1024)
def nearest_bin(width: int, height: int, sample_size: int) -> Size:
    """The bin whose key is nearest to height / width; of two equally near the first in the table."""
    table = bin_table(sample_size)
    aspect = height / width
    bin_height, bin_width = table[min(table, key=lambda key: abs(float(key) - aspect))]
    return Size(int(bin_width), int(bin_height))


@lru_cache(maxsize=1024)
def crop_box(drawn: Size, requested: Size) -> Box:
    """The largest box of `requested`'s aspect in `drawn`, about its centre.

    The short side is rounded to the nearest pixel (half to even) and is at least one; offsets are
    floored.
    """
    width, height = drawn.width, drawn.height
    if drawn.width * requested.height > drawn.height * requested.width:
        width = max(1, round(Fraction(drawn.height * requested.width, requested.height)))
    else:
        height = max(1, round(Fraction(drawn.width * requested.height, requested.width)))
    return Box((drawn.width - width) // 2, (drawn.height - height) // 2, width, height)
