"""Picture sizes a client may ask for: six presets, or width and height in pixels."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

MIN_SIDE_PIXELS = 64
MAX_SIDE_PIXELS = 14142

ImageSizePreset = Literal[
    "square_hd",
    "square",
    "portrait_4_3",
    "portrait_16_9",
    "landscape_4_3",
    "landscape_16_9",
]
PRESET_NAMES: tuple[str, ...] = get_args(ImageSizePreset)

Side = Annotated[int, Field(ge=MIN_SIDE_PIXELS, le=MAX_SIDE_PIXELS)]


class ImageSize(BaseModel):
    """A picture's width and height in pixels."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    width: Side = Field(description="The width of the generated image in pixels.", examples=[1024])
    height: Side = Field(description="The height of the generated image in pixels.", examples=[1024])

    @property
    def area(self) -> int:
        """Pixels in the picture."""
        return self.width * self.height


PRESETS: dict[str, ImageSize] = {
    "square_hd": ImageSize(width=1024, height=1024),
    "square": ImageSize(width=512, height=512),
    "portrait_4_3": ImageSize(width=768, height=1024),
    "portrait_16_9": ImageSize(width=576, height=1024),
    "landscape_4_3": ImageSize(width=1024, height=768),
    "landscape_16_9": ImageSize(width=1024, height=576),
}

DEFAULT_SIZE = ImageSize(width=3840, height=2160)


def resolve_size(image_size: ImageSizePreset | ImageSize) -> ImageSize:
    """Width and height of a preset's name; an `ImageSize` is returned as it is."""
    return PRESETS[image_size] if isinstance(image_size, str) else image_size
