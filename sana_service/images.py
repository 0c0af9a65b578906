"""Pixels to the bytes of a picture file, and those to a data URI.

JPEG at quality 95 (Pillow's 4:2:0 subsampling) and PNG at compression level 1, as the reference
writes them. Invariant: `encode` is a pure function of its arguments, so the same pixels and metadata
give the same bytes on every thread.
"""

from __future__ import annotations

import asyncio
import base64
import io
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sana_service import metadata as file_metadata
from sana_service.metadata import ImageMetadata

if TYPE_CHECKING:
    import numpy as np

OutputFormat = Literal["jpeg", "png"]

JPEG_QUALITY = 95
PNG_COMPRESS_LEVEL = 1

_EXTENSIONS: dict[OutputFormat, str] = {"jpeg": "jpg", "png": "png"}


@dataclass(frozen=True)
class EncodedImage:
    """One picture as a file would hold it.

    Args:
        data: the file's bytes.
        content_type: its media type.
        extension: its file name's end, without the dot.
        width, height: pixels.
    """

    data: bytes
    content_type: str
    extension: str
    width: int
    height: int


def encode(
    pixels: np.ndarray,
    output_format: OutputFormat,
    metadata: ImageMetadata | None,
    jpeg_quality: int | None = None,
) -> EncodedImage:
    """One picture's file.

    Args:
        pixels: (height, width, 3) uint8, RGB.
        output_format: "jpeg" or "png".
        metadata: what the file says about its making; None says nothing at all.
        jpeg_quality: 1 to 100, of a JPEG; `JPEG_QUALITY` by default.

    Raises:
        ValueError: the pixels have another shape or type.
    """
    from PIL import Image

    if pixels.dtype != "uint8" or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"pixels must be (height, width, 3) uint8, not {pixels.shape} {pixels.dtype}")
    height, width = pixels.shape[:2]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, output_format, **_save_options(output_format, metadata, jpeg_quality))
    return EncodedImage(file.getvalue(), f"image/{output_format}", _EXTENSIONS[output_format], width, height)


def data_uri(image: EncodedImage) -> str:
    """The picture as an RFC 2397 `data:` URI."""
    return f"data:{image.content_type};base64,{base64.b64encode(image.data).decode('ascii')}"


class Encoder:
    """Threads that encode, so that neither the event loop nor a device's thread does.

    Args:
        workers: threads; by default one for each core this process may use.
    """

    def __init__(self, workers: int | None = None) -> None:
        workers = workers or len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="encode")

    async def encode_all(
        self,
        pixels_batch: np.ndarray | Sequence[np.ndarray],
        output_format: OutputFormat,
        metadatas: Sequence[ImageMetadata | None],
        jpeg_quality: int | None = None,
    ) -> list[EncodedImage]:
        """A request's pictures, in their order.

        Args:
            pixels_batch: (images, height, width, 3) uint8, RGB.
            output_format: "jpeg" or "png".
            metadatas: one per image.
            jpeg_quality: of JPEGs; `JPEG_QUALITY` by default.

        Raises:
            ValueError: the counts differ, or the pixels have another shape or type.
            RuntimeError: the encoder is closed.
        """
        loop = asyncio.get_running_loop()
        pairs = list(zip(pixels_batch, metadatas, strict=True))
        return await asyncio.gather(
            *(
                loop.run_in_executor(self._pool, encode, pixels, output_format, told, jpeg_quality)
                for pixels, told in pairs
            )
        )

    def close(self) -> None:
        """Wait for what runs; what has not begun is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _save_options(
    output_format: OutputFormat, metadata: ImageMetadata | None, jpeg_quality: int | None
) -> dict[str, Any]:
    if output_format == "png":
        # Run lengths alone: on noise nearly twice as fast as the default strategy, on flat areas alike.
        options: dict[str, Any] = {"compress_level": PNG_COMPRESS_LEVEL, "compress_type": zlib.Z_RLE}
        if metadata is not None:
            options["pnginfo"] = file_metadata.png_info(metadata)
        return options
    options = {"quality": JPEG_QUALITY if jpeg_quality is None else jpeg_quality}
    if metadata is not None:
        options["exif"] = file_metadata.jpeg_exif(metadata)
        options["comment"] = file_metadata.jpeg_comment(metadata)
    return options
