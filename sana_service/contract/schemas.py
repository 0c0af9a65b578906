"""Requests and responses of the two endpoints, field by field as the reference document has them.

Types are strict: JSON numbers and booleans only, no unknown fields. The area limit is an
operator's setting, so it comes in through the validation context (`max_pixels`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from sana_service.contract.sizes import DEFAULT_SIZE, ImageSize, ImageSizePreset, resolve_size
from sana_service.contract.styles import StyleName
from sana_service.models.names import Precision

MAX_PROMPT_CHARACTERS = 10_000
MAX_SEED = 2**64 - 1

Prompt = Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS)]
OutputFormat = Literal["jpeg", "png"]

_CORAL_REEF = (
    "Underwater coral reef ecosystem during peak bioluminescent activity, multiple layers of marine life - "
    "from microscopic plankton to massive coral structures, light refracting through crystal-clear tropical "
    "waters, creating prismatic color gradients, hyper-detailed texture of marine organisms"
)


class BaseInput(BaseModel):
    """What both endpoints accept."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    prompt: Prompt = Field(
        title="Prompt",
        description="The prompt to generate an image from.",
        examples=[_CORAL_REEF],
    )
    negative_prompt: Prompt = Field(
        default="",
        description=(
            "The negative prompt to use. Use it to address details that you don't want in the image. "
            "This could be colors, objects, scenery and even the small details (e.g. moustache, blurry, "
            "low resolution)."
        ),
        examples=[""],
    )
    # The preset stands first: BentoML's clients keep only the first arm of a union.
    image_size: ImageSizePreset | ImageSize = Field(
        default=DEFAULT_SIZE,
        description="The size of the generated image.",
        examples=["square_hd", {"width": 1024, "height": 1024}],
    )
    num_inference_steps: int = Field(default=18, description="The number of inference steps to perform.", ge=1, le=50)
    seed: int | None = Field(
        default=None,
        description=(
            "The same seed and the same prompt given to the same version of the model will output the same "
            "image every time."
        ),
        ge=0,
        le=MAX_SEED,
    )
    guidance_scale: float = Field(
        default=5.0,
        description=(
            "The CFG (Classifier Free Guidance) scale is a measure of how close you want the model to "
            "stick to your prompt when looking for a related image to show you."
        ),
        ge=0.0,
        le=20.0,
        allow_inf_nan=False,
        title="Guidance scale (CFG)",
    )
    enable_safety_checker: bool = Field(default=True, description="If set to true, the safety checker will be enabled.")
    num_images: int = Field(default=1, description="The number of images to generate.", ge=1, le=4)
    output_format: OutputFormat = Field(default="jpeg", description="The format of the generated image.")
    style_name: StyleName = Field(default="(No style)", description="The style to generate the image in.")
    sync_mode: bool = Field(
        default=False,
        description=("If set to true, the image is returned as a data URI in `url` and is not stored on the server."),
    )

    @field_validator("image_size")
    @classmethod
    def _within_the_area_limit(
        cls, value: ImageSizePreset | ImageSize, info: ValidationInfo
    ) -> ImageSizePreset | ImageSize:
        max_pixels = (info.context or {}).get("max_pixels")
        area = resolve_size(value).area
        if max_pixels is not None and area > max_pixels:
            raise PydanticCustomError(
                "image_too_large",
                "The image has {area} pixels; at most {max_pixels} are allowed",
                {"area": area, "max_pixels": max_pixels},
            )
        return value


class TextToImageInput(BaseInput):
    """A request to the base model: many steps, classifier-free guidance."""


class SprintInput(BaseInput):
    """A request to SANA-Sprint: few steps, embedded guidance."""

    negative_prompt: Prompt = Field(
        default="",
        description=(
            "Accepted so that the same body works on both endpoints, and ignored: SANA-Sprint has no negative prompt."
        ),
        examples=[""],
    )
    num_inference_steps: int = Field(default=2, description="The number of inference steps to perform.", ge=1, le=20)


class ImageFile(BaseModel):
    """Where one generated image is, and what it is."""

    model_config = ConfigDict(title="Image")

    url: str = Field(description="The URL where the file can be downloaded from.")
    content_type: str = Field(description="The mime type of the file.", examples=["image/jpeg"])
    file_name: str = Field(description="The name of the file.", examples=["0f8c5a2b9d3e4f60718293a4b5c6d7e8.jpg"])
    file_size: int = Field(description="The size of the file in bytes.", examples=[2404404])
    width: int = Field(description="The width of the image in pixels.", examples=[1024])
    height: int = Field(description="The height of the image in pixels.", examples=[1024])


def _example(url: str) -> list[list[dict[str, Any]]]:
    return [[{"url": url, "width": 3840, "height": 2160, "content_type": "image/jpeg"}]]


class Output(BaseModel):
    """What both endpoints answer."""

    images: list[ImageFile] = Field(description="The generated image files info.")
    seed: int = Field(
        description=(
            "Seed of the generated Image. It will be the same value of the one passed in the input or the "
            "randomly generated that was used in case none was passed."
        )
    )
    has_nsfw_concepts: list[bool] = Field(description="Whether the generated images contain NSFW concepts.")
    prompt: str = Field(description="The prompt used for generating the image.")
    timings: dict[str, float] = Field(
        description="Seconds spent in each stage of the generation.",
        examples=[{"queue": 0.001, "text": 0.02, "denoise": 0.31, "decode": 0.05}],
    )
    _batch_images: float = PrivateAttr(1.0)
    _precision: Precision = PrivateAttr("exact")

    @property
    def batch_images(self) -> float:
        """Images that were denoised together, others' too, a mean over this request's steps; not in the body."""
        return self._batch_images

    @property
    def precision(self) -> Precision:
        """In which the pictures were computed; not in the body."""
        return self._precision

    def denoised_with(self, images: float, precision: Precision = "exact") -> Self:
        """The same answer, told how full its batches were, and how exact."""
        self._batch_images, self._precision = images, precision
        return self


class SanaOutput(Output):
    """The answer of `generate`."""

    images: list[ImageFile] = Field(
        description="The generated image files info.",
        examples=_example("https://fal.media/files/kangaroo/QAABS8yM6X99WhiMeLcoL.jpeg"),
    )


class SanaSprintOutput(Output):
    """The answer of `sprint`."""

    images: list[ImageFile] = Field(
        description="The generated image files info.",
        examples=_example(
            "https://v3.fal.media/files/penguin/Q-i_zCk-Xf5EggWA9OmG2_e753bacc9b324050855f9664deda3618.jpg"
        ),
    )
