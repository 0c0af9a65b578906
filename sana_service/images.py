"""Pixels to the bytes of a picture file, and those to a data URI.

JPEG at quality 95 (Pillow's 4:2:0 subsampling) and PNG at compression level 1, as the reference writes them, both by
faster libraries. Invariant: `encode` is a pure function of its arguments, so the same pixels and metadata give the
same bytes on every thread.
"""

from __future__ import annotations

import asyncio
import base64
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from sana_service import metadata as file_metadata
from sana_service.jpeg import COMMENT, EXIF, write_jpeg, xmp_segment
from sana_service.metadata import ImageMetadata
from sana_service.png import write_png
from sana_service.provenance import XMP

if TYPE_CHECKING:
    import numpy as np

    from sana_service.provenance import Signer

OutputFormat = Literal["jpeg", "png"]

JPEG_QUALITY = 95

_FEW_IMAGES = 2
"""As long as no more are here, a large JPEG's strips are encoded side by side. With more, cores are not what is short:
each hand-over to another thread takes Python's lock from the event loop.
"""

_NEW_WEIGHT = 0.1
"""Share of the newest picture in the average time of a pixel."""

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
    each: Callable[..., Iterable[Any]] = map,
) -> EncodedImage:
    """One picture's file.

    Args:
        pixels: (height, width, 3) uint8, RGB.
        output_format: "jpeg" or "png".
        metadata: what the file says about its making; None says that a model made it and nothing else.
        jpeg_quality: 1 to 100, of a JPEG; `JPEG_QUALITY` by default.
        each: `map`, or that of an executor, which encodes parts of a large JPEG side by side.

    Raises:
        ValueError: the pixels have another shape or type.
    """
    if pixels.dtype != "uint8" or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"pixels must be (height, width, 3) uint8, not {pixels.shape} {pixels.dtype}")
    height, width = pixels.shape[:2]
    data = _png(pixels, metadata) if output_format == "png" else _jpeg(pixels, metadata, jpeg_quality, each)
    return EncodedImage(data, f"image/{output_format}", _EXTENSIONS[output_format], width, height)


def data_uri(image: EncodedImage) -> str:
    """The picture as an RFC 2397 `data:` URI."""
    return f"data:{image.content_type};base64,{base64.b64encode(image.data).decode('ascii')}"


class Encoder:
    """Threads that encode, so that neither the event loop nor a device's thread does.

    What waits here is known to the engine, which admits no more than can be encoded in time.

    Args:
        workers: threads; by default one for each core this process may use.
        signer: puts a C2PA manifest into each file; None leaves it out.
    """

    def __init__(self, workers: int | None = None, signer: Signer | None = None) -> None:
        self._signer = signer
        self._workers = workers or len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="encode")
        # Apart, since threads of the pool wait for strips.
        self._strips = ThreadPoolExecutor(self._workers, thread_name_prefix="encode-strip")
        self._lock = threading.Lock()
        self._images = 0
        self._pixels: Counter[OutputFormat] = Counter()
        self._seconds_per_pixel: dict[OutputFormat, float] = {}

    @property
    def waiting(self) -> int:
        """Pictures whose turn has not come."""
        return max(0, self._images - self._workers)

    @property
    def backlog_seconds(self) -> float:
        """Predicted time until all that is here is encoded."""
        with self._lock:
            work = sum(pixels * self._seconds_per_pixel.get(kind, 0.0) for kind, pixels in self._pixels.items())
        return work / self._workers

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
        self._count(pixels_batch, output_format, 1)
        try:
            encoding = [
                loop.run_in_executor(self._pool, self._encode, pixels, output_format, told, jpeg_quality)
                for pixels, told in pairs
            ]
            # Most requests want one picture, and `gather` is another turn of the event loop.
            return [await encoding[0]] if len(encoding) == 1 else await asyncio.gather(*encoding)
        finally:
            self._count(pixels_batch, output_format, -1)

    def _encode(
        self,
        pixels: np.ndarray,
        output_format: OutputFormat,
        metadata: ImageMetadata | None,
        jpeg_quality: int | None,
    ) -> EncodedImage:
        """On a thread of the pool: encode, and learn how long it takes."""
        started = time.perf_counter()
        each = self._strips.map if self._images <= _FEW_IMAGES else map
        image = encode(pixels, output_format, metadata, jpeg_quality, each)
        if self._signer is not None:
            image = replace(image, data=self._signer.sign(image.data, image.content_type))
        rate = (time.perf_counter() - started) / (image.width * image.height)
        with self._lock:
            old = self._seconds_per_pixel.get(output_format, rate)
            self._seconds_per_pixel[output_format] = old + _NEW_WEIGHT * (rate - old)
        return image

    def _count(self, pixels_batch: np.ndarray | Sequence[np.ndarray], output_format: OutputFormat, sign: int) -> None:
        with self._lock:
            self._images += sign * len(pixels_batch)
            self._pixels[output_format] += sign * sum(pixels.shape[0] * pixels.shape[1] for pixels in pixels_batch)

    def close(self) -> None:
        """Wait for what runs; what has not begun is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._strips.shutdown()


def _png(pixels: np.ndarray, metadata: ImageMetadata | None) -> bytes:
    chunks = file_metadata.png_info(metadata).chunks
    return write_png(pixels, [(kind, data) for kind, data, *_ in chunks])


def _jpeg(
    pixels: np.ndarray,
    metadata: ImageMetadata | None,
    quality: int | None,
    each: Callable[..., Iterable[Any]],
) -> bytes:
    segments = [xmp_segment(XMP)]
    if metadata is not None:
        segments.insert(0, (EXIF, file_metadata.jpeg_exif(metadata)))
        segments.append((COMMENT, file_metadata.jpeg_comment(metadata)))
    return write_jpeg(pixels, JPEG_QUALITY if quality is None else quality, segments, each)
