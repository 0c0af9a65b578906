"""JPEG by libjpeg-turbo: the file that Pillow would write, without Python's lock and, where it is large, by strips.

Pillow holds the lock while it encodes, so that neither another picture nor the engine's threads run meanwhile;
imagecodecs does not. A strip of whole lines of blocks is a picture of its own to an encoder, and with the same tables
its data is what stands between two restart markers of the whole picture (ITU-T T.81, B.1.1 and B.2.4.4). So several
threads encode one picture, and what is decoded from it is the same to the last bit.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from imagecodecs import jpeg8_encode

if TYPE_CHECKING:
    import numpy as np

    Segment = tuple[int, bytes]
    """A marker's second byte, and its data."""

EXIF = XMP = 0xE1
COMMENT = 0xFE

_XMP_NAME = b"http://ns.adobe.com/xap/1.0/\0"

_FRAME, _RESTART_INTERVAL, _SCAN, _FIRST_RESTART, _END = 0xC0, 0xDD, 0xDA, 0xD0, b"\xff\xd9"

_BLOCK = 16
"""Pixels to a side of what 4:2:0 encodes as one."""

_STRIP_PIXELS, _MOST_STRIPS = 2**19, 8
"""A strip has no fewer pixels, and a picture no more strips."""

_MOST_DATA = 65533


def xmp_segment(packet: bytes) -> Segment:
    """An XMP packet as a JPEG holds it (XMP Specification Part 3, 1.1.3)."""
    return XMP, _XMP_NAME + packet


def write_jpeg(
    pixels: np.ndarray, quality: int, segments: Iterable[Segment] = (), each: Callable[..., Iterable[Any]] = map
) -> bytes:
    """A baseline JPEG file, 4:2:0.

    Args:
        pixels: (height, width, 3) uint8, RGB.
        quality: 1 to 100.
        segments: written behind the JFIF header.
        each: `map`, or an executor's.

    Raises:
        ValueError: a segment is longer than a JPEG's may be.
    """
    height, width = pixels.shape[:2]
    lines = _lines_of_blocks(height, width)
    strips = [pixels[start : start + lines * _BLOCK] for start in range(0, height, lines * _BLOCK)]
    first, *others = each(partial(_encoded, quality=quality), strips)
    start, frame, scan, data = _places(first)
    parts: list[bytes | memoryview] = [first[:start], *(_segment(marker, told) for marker, told in segments)]
    if not others:
        return b"".join((*parts, first[start:]))
    # The frame's length, its sample precision and then its height.
    parts += [first[start : frame + 5], struct.pack(">H", height), first[frame + 7 : scan]]
    parts += [_segment(_RESTART_INTERVAL, struct.pack(">H", lines * -(-width // _BLOCK)))]
    parts += [memoryview(first)[scan : -len(_END)]]
    for number, strip in enumerate(others):
        # All headers are of one length.
        parts += [bytes((0xFF, _FIRST_RESTART + number % 8)), memoryview(strip)[data : -len(_END)]]
    return b"".join((*parts, _END))


def _lines_of_blocks(height: int, width: int) -> int:
    """Of each strip but the last."""
    lines = -(-height // _BLOCK)
    return -(-lines // max(1, min(_MOST_STRIPS, height * width // _STRIP_PIXELS)))


def _encoded(strip: np.ndarray, quality: int) -> bytes:
    import numpy as np

    strip = np.ascontiguousarray(strip)
    return bytes(jpeg8_encode(strip, level=quality, colorspace="RGB", outcolorspace="YCBCR", subsampling="420"))


def _places(file: bytes) -> tuple[int, int, int, int]:
    """Where the segment behind the JFIF header, the frame header, the scan header and the scan's data begin."""
    place, start, frame = 2, 0, 0
    while True:
        marker, length = file[place + 1], int.from_bytes(file[place + 2 : place + 4], "big")
        if marker == _FRAME:
            frame = place
        elif marker == _SCAN:
            return start, frame, place, place + 2 + length
        place += 2 + length
        start = start or place


def _segment(marker: int, data: bytes) -> bytes:
    if len(data) > _MOST_DATA:
        raise ValueError(f"{len(data)} bytes do not fit into a JPEG's segment, which holds {_MOST_DATA}")
    return struct.pack(">BBH", 0xFF, marker, 2 + len(data)) + data
