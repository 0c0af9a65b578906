"""PNG by ISA-L: the file that Pillow would write at its level 1, about ten times faster.

Every line is filtered as "up" (the difference to the line above), which numpy does at memory speed and which suits
pictures, and deflated by Intel's ISA-L. Format: PNG (Third Edition), W3C Recommendation of 24 June 2025.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from isal import isal_zlib

if TYPE_CHECKING:
    Chunk = tuple[bytes, bytes]
    """A chunk's type, four letters, and its data."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UP = 2
_LEVEL = 1


def write_png(pixels: np.ndarray, chunks: Iterable[Chunk] = ()) -> bytes:
    """A PNG file.

    Args:
        pixels: (height, width, 3) uint8, RGB.
        chunks: ancillary chunks, written before the picture's data.
    """
    height, width = pixels.shape[:2]
    lines = pixels.reshape(height, 3 * width)
    filtered = np.empty((height, 1 + 3 * width), np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = lines[0]
    np.subtract(lines[1:], lines[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB, not interlaced
    parts = [(b"IHDR", header), *chunks, (b"IDAT", isal_zlib.compress(filtered, _LEVEL)), (b"IEND", b"")]
    return _SIGNATURE + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = isal_zlib.crc32(data, isal_zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(data)), kind, data, struct.pack(">I", checksum)))
