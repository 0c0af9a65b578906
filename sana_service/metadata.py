"""What a picture file says about its own making: written into PNG and JPEG, and read back.

Two forms of the same facts travel in each file:

* A1111's infotext, the form that other tools read: PNG iTXt chunk `parameters`, JPEG EXIF
  `UserComment` (UTF-16 behind the `UNICODE` prefix).
* JSON, the exact form, which `read` takes: PNG iTXt chunk `sana`, JPEG comment segment. In the
  infotext a prompt with a line such as "Negative prompt: ..." is ambiguous; in the JSON it is not.

Any text that UTF-8 can hold is allowed in the prompts. Two limits of the formats are kept:

* Infotext holds no NUL: each becomes U+FFFD there. The JSON keeps it.
* A JPEG segment holds 65,533 bytes. Where prompt and negative prompt together exceed it, the longer
  of the two is cut (both, when each takes more than half of the room) and ends with U+2026. The
  settings are never cut. PNG has no such limit and is never cut.

Not here: pixels, and whether metadata is wanted at all (`SANA_EMBED_METADATA`).
"""

from __future__ import annotations

import dataclasses
import io
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sana_service import __version__
from sana_service.provenance import XMP, XMP_KEYWORD

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.PngImagePlugin import PngInfo

INFOTEXT_KEYWORD = "parameters"
JSON_KEYWORD = "sana"
NO_STYLE = "(No style)"

# A JPEG segment's length field counts itself: 65,535 - 2.
_SEGMENT_BYTES = 65_533
# "Exif\0\0", the TIFF header, two directories and the Software tag take about 150 bytes.
_EXIF_TEXT_BYTES = _SEGMENT_BYTES - 1024
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"

_EXIF_SOFTWARE = 0x0131
_EXIF_IFD = 0x8769
_EXIF_VERSION = 0x9000
_EXIF_USER_COMMENT = 0x9286
# TIFF 6.0, section 2: field types, and the bytes that one value of each takes.
_ASCII, _LONG, _UNDEFINED = 2, 4, 7
_VALUE_BYTES = {_ASCII: 1, _LONG: 4, _UNDEFINED: 1}


@dataclass(frozen=True)
class ImageMetadata:
    """How one image was made.

    Args:
        prompt, negative_prompt: the texts, as the client gave them.
        model: which endpoint's transformer drew.
        model_name: the checkpoint, such as "Sana_1600M_1024px_BF16_diffusers".
        num_inference_steps, guidance_scale: as used.
        seed: of this image, 0 to 2**64 - 1; not the request's first.
        width, height: pixels of the finished picture.
        sampler: "DPM++ 2M" or "SCM".
        style_name: the style that was applied to the prompt.
        software, version: what wrote the file.
    """

    prompt: str
    negative_prompt: str
    model: Literal["base", "sprint"]
    model_name: str
    num_inference_steps: int
    guidance_scale: float
    seed: int
    width: int
    height: int
    sampler: str
    style_name: str = NO_STYLE
    software: str = "sana-service"
    version: str = __version__

    @property
    def producer(self) -> str:
        return f"{self.software} {self.version}"


def a1111_parameters(metadata: ImageMetadata) -> str:
    """The infotext: prompt, negative prompt if there is one, settings on the last line.

    Format of AUTOMATIC1111's `create_infotext` (modules/processing.py) and `quote`
    (modules/infotext_utils.py); its outer blanks are stripped there as here.
    """
    settings: dict[str, str] = {
        "Steps": str(metadata.num_inference_steps),
        "Sampler": metadata.sampler,
        "CFG scale": str(metadata.guidance_scale).removesuffix(".0"),
        "Seed": str(metadata.seed),
        "Size": f"{metadata.width}x{metadata.height}",
        "Model": metadata.model_name,
    }
    if metadata.style_name != NO_STYLE:
        settings["Style"] = metadata.style_name
    settings["Version"] = metadata.producer
    settings_line = ", ".join(f"{name}: {_quoted(value)}" for name, value in settings.items())
    negative = f"\nNegative prompt: {metadata.negative_prompt}" if metadata.negative_prompt else ""
    return f"{metadata.prompt}{negative}\n{settings_line}".strip().replace("\0", "\N{REPLACEMENT CHARACTER}")


def png_info(metadata: ImageMetadata | None) -> PngInfo:
    """The text chunks of a PNG, for Pillow's `pnginfo`; without metadata the IPTC digital source type alone."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt(XMP_KEYWORD, XMP.decode())
    if metadata is None:
        return info
    info.add_text("Software", metadata.producer)
    info.add_itxt(INFOTEXT_KEYWORD, a1111_parameters(metadata))
    info.add_itxt(JSON_KEYWORD, _to_json(metadata))
    return info


def jpeg_exif(metadata: ImageMetadata) -> bytes:
    """The EXIF segment of a JPEG: Software and UserComment.

    Big-endian, because piexif, which A1111 reads with, takes UserComment as big-endian UTF-16
    whatever the header says. Built here, because Pillow writes UserComment as BYTE, where EXIF 2.32
    (4.6.5) wants UNDEFINED, and piexif refuses the former.
    """
    fitted = _fitted(metadata, _EXIF_TEXT_BYTES, lambda told: len(_utf16(a1111_parameters(told))))
    software = metadata.producer.encode("ascii", errors="replace") + b"\0"
    header = b"MM\0*" + struct.pack(">I", 8)
    # The second directory follows the first, whose length a stand-in for the pointer does not change.
    first = [(_EXIF_SOFTWARE, _ASCII, software), (_EXIF_IFD, _LONG, struct.pack(">I", 0))]
    second_offset = len(header) + len(_ifd(first, len(header)))
    first[1] = (_EXIF_IFD, _LONG, struct.pack(">I", second_offset))
    second = [
        (_EXIF_VERSION, _UNDEFINED, b"0232"),
        (_EXIF_USER_COMMENT, _UNDEFINED, b"UNICODE\0" + _utf16(a1111_parameters(fitted))),
    ]
    return b"Exif\0\0" + header + _ifd(first, len(header)) + _ifd(second, second_offset)


def jpeg_comment(metadata: ImageMetadata) -> bytes:
    """The comment segment of a JPEG: the JSON in UTF-8."""
    return _to_json(_fitted(metadata, _SEGMENT_BYTES, lambda told: len(_to_json(told).encode()))).encode()


def read(source: str | Path | bytes) -> ImageMetadata | None:
    """The metadata of a file made here; None when it has none, or what it has is not ours.

    Args:
        source: the file's path, or its content.

    Raises:
        OSError: the file cannot be read, or is neither PNG nor JPEG.
    """
    with _opened(source) as image:
        text = image.info.get(JSON_KEYWORD if image.format == "PNG" else "comment")
    return None if text is None else _from_json(text)


def read_infotext(source: str | Path | bytes) -> str | None:
    """A1111's infotext of a PNG or JPEG, as A1111 and this service write it; None when there is none.

    Raises:
        OSError: the file cannot be read, or is neither PNG nor JPEG.
    """
    with _opened(source) as image:
        if image.format == "PNG":
            text = image.info.get(INFOTEXT_KEYWORD)
            return None if text is None else str(text)
        comment = image.getexif().get_ifd(_EXIF_IFD).get(_EXIF_USER_COMMENT)
    if not isinstance(comment, bytes) or not comment.startswith(b"UNICODE\0"):
        return None
    return comment[8:].decode("utf-16-be", errors="replace")


def _opened(source: str | Path | bytes) -> Image:
    from PIL import Image

    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=("PNG", "JPEG"))


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ",:\n") else value


def _utf16(text: str) -> bytes:
    return text.encode("utf-16-be")


def _ifd(entries: list[tuple[int, int, bytes]], offset: int) -> bytes:
    """A big-endian TIFF image file directory that lies `offset` bytes after the TIFF header's start.

    Args:
        entries: (tag, field type, value), by ascending tag.
    """
    values_offset = offset + 2 + 12 * len(entries) + 4
    records, values = struct.pack(">H", len(entries)), b""
    for tag, kind, value in entries:
        # Four bytes or fewer stand in the record itself, more behind the directory, on even offsets.
        inline = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(">I", values_offset + len(values))
        records += struct.pack(">HHI", tag, kind, len(value) // _VALUE_BYTES[kind]) + inline
        if len(value) > 4:
            values += value + b"\0" * (len(value) % 2)
    return records + struct.pack(">I", 0) + values


def _to_json(metadata: ImageMetadata) -> str:
    return json.dumps(dataclasses.asdict(metadata), ensure_ascii=False)


def _from_json(text: str | bytes) -> ImageMetadata | None:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    # A newer version may write more fields, so unknown ones are left out instead of refused.
    fields = dataclasses.fields(ImageMetadata)
    known = {field.name: values[field.name] for field in fields if field.name in values}
    required = {field.name for field in fields if field.default is dataclasses.MISSING}
    if not required <= known.keys() or not all(_is_valid(name, value) for name, value in known.items()):
        return None
    return ImageMetadata(**known)


def _is_valid(name: str, value: Any) -> bool:
    if name == "model":
        return value in ("base", "sprint")
    if name == "guidance_scale":
        return type(value) in (int, float)
    if name in ("num_inference_steps", "seed", "width", "height"):
        return type(value) is int
    return type(value) is str


def _fitted(metadata: ImageMetadata, limit: int, size: Callable[[ImageMetadata], int]) -> ImageMetadata:
    """The metadata with its texts cut so that `size` of it is at most `limit` bytes."""
    if size(metadata) <= limit:
        return metadata
    bare = size(dataclasses.replace(metadata, prompt="", negative_prompt=""))
    prompt_bytes = size(dataclasses.replace(metadata, negative_prompt="")) - bare
    negative_bytes = size(dataclasses.replace(metadata, prompt="")) - bare
    room = limit - bare
    prompt_room = max(room // 2, room - negative_bytes)
    shorter = dataclasses.replace(
        metadata,
        prompt=_cut(
            metadata.prompt,
            prompt_room,
            lambda text: size(dataclasses.replace(metadata, prompt=text, negative_prompt="")) - bare,
        ),
    )
    negative_room = room - min(prompt_bytes, prompt_room)
    return dataclasses.replace(
        shorter,
        negative_prompt=_cut(
            metadata.negative_prompt,
            negative_room,
            lambda text: size(dataclasses.replace(metadata, prompt="", negative_prompt=text)) - bare,
        ),
    )


def _cut(text: str, limit: int, size: Callable[[str], int]) -> str:
    """The text, or its longest beginning plus an ellipsis, whose `size` is at most `limit`."""
    if size(text) <= limit:
        return text
    low, high = 0, len(text) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if size(text[:middle] + _ELLIPSIS) <= limit:
            low = middle
        else:
            high = middle - 1
    return text[:low] + _ELLIPSIS
