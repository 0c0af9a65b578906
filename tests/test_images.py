"""Encoding: what the file says of itself, what the pixels become, and on which thread."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sana_service import images
from sana_service.images import EncodedImage, Encoder, OutputFormat, data_uri, encode
from sana_service.metadata import ImageMetadata, read


def _picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Smooth colours with a little noise, (height, width, 3) uint8."""
    rows, columns = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(seed).integers(0, 8, (height, width, 3))
    waves = np.stack([rows * 2, columns * 2, rows + columns], axis=-1) % 240
    return (waves + noise).astype(np.uint8)


def _metadata(seed: int) -> ImageMetadata:
    return ImageMetadata("a reef", "", "sprint", "tiny", 2, 5.0, seed, 16, 16, "SCM")


def test_png_keeps_every_pixel() -> None:
    pixels = _picture(33, 17)
    made = encode(pixels, "png", None)
    with Image.open(io.BytesIO(made.data)) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (33, 17))
        assert np.array_equal(np.asarray(image), pixels)
    assert (made.content_type, made.extension, made.width, made.height) == ("image/png", "png", 33, 17)


def test_jpeg_is_quality_95_with_halved_chroma() -> None:
    made = encode(_picture(40, 24), "jpeg", None)
    # ITU T.81 table K.1 begins 16, 11, 10; libjpeg scales it by 200 - 2 * 95 = 10 percent, rounded.
    with Image.open(io.BytesIO(made.data)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (40, 24))
        assert image.quantization[0][:3] == [2, 1, 1]  # type: ignore[attr-defined]
    frame = made.data.index(b"\xff\xc0")
    sampling = {made.data[frame + 10 + 3 * i]: made.data[frame + 11 + 3 * i] for i in range(3)}
    assert sampling == {1: 0x22, 2: 0x11, 3: 0x11}  # 4:2:0
    assert (made.content_type, made.extension, made.width, made.height) == ("image/jpeg", "jpg", 40, 24)


def test_jpeg_stays_close_to_the_pixels() -> None:
    rows, columns = np.mgrid[0:64, 0:64]
    grey = np.repeat(((rows + columns) * 2)[..., None], 3, axis=-1).astype(np.uint8)
    with Image.open(io.BytesIO(encode(grey, "jpeg", None).data)) as image:
        assert np.abs(np.asarray(image).astype(int) - grey).max() <= 4


@pytest.mark.parametrize("output_format", ["jpeg", "png"])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (1280, 64), (64, 1281)])
def test_sizes_are_exact(width: int, height: int, output_format: OutputFormat) -> None:
    made = encode(np.zeros((height, width, 3), np.uint8), output_format, None)
    with Image.open(io.BytesIO(made.data)) as image:
        assert image.size == (width, height) == (made.width, made.height)


def test_a_row_of_a_batch_needs_no_copy() -> None:
    mirrored = _picture(16, 16)[:, ::-1]
    assert not mirrored.flags.c_contiguous
    with Image.open(io.BytesIO(encode(mirrored, "png", None).data)) as image:
        assert np.array_equal(np.asarray(image), mirrored)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 4), (1, 8, 8, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="pixels must be"):
        encode(np.zeros(shape, np.uint8), "png", None)


def test_other_types_are_refused() -> None:
    with pytest.raises(ValueError, match="float32"):
        encode(np.zeros((8, 8, 3), np.float32), "png", None)


@pytest.mark.parametrize("output_format", ["jpeg", "png"])
def test_metadata_changes_no_pixel(output_format: OutputFormat) -> None:
    pixels = _picture(32, 32)
    with (
        Image.open(io.BytesIO(encode(pixels, output_format, None).data)) as plain,
        Image.open(io.BytesIO(encode(pixels, output_format, _metadata(3)).data)) as told,
    ):
        assert np.array_equal(np.asarray(plain), np.asarray(told))


def test_data_uri_holds_the_file() -> None:
    uri = data_uri(EncodedImage(b"\x00\xffab", "image/png", "png", 1, 1))
    assert uri == "data:image/png;base64,AP9hYg=="
    made = encode(_picture(16, 16), "jpeg", None)
    head, body = data_uri(made).split(",")
    assert head == "data:image/jpeg;base64"
    assert base64.b64decode(body, validate=True) == made.data


@pytest.mark.parametrize("output_format", ["jpeg", "png"])
def test_encoder_gives_the_same_bytes_in_order(output_format: OutputFormat) -> None:
    batch = np.stack([_picture(48, 32, seed) for seed in range(4)])
    encoder = Encoder(workers=3)
    made = asyncio.run(encoder.encode_all(batch, output_format, [_metadata(seed) for seed in range(4)]))
    encoder.close()
    assert made == [encode(batch[i], output_format, _metadata(i)) for i in range(4)]
    assert [told.seed for image in made if (told := read(image.data))] == [0, 1, 2, 3]


@pytest.mark.parametrize(("pictures", "side_by_side"), [(2, True), (3, False)])
def test_strips_are_encoded_side_by_side_where_few_pictures_are(
    monkeypatch: pytest.MonkeyPatch, pictures: int, side_by_side: bool
) -> None:
    batch = np.stack([_picture(1024, 1024, seed) for seed in range(pictures)])
    encoder = Encoder(workers=3)
    shared: list[int] = []

    def map_here(function: Any, strips: list[Any]) -> Any:
        shared.append(len(strips))
        return map(function, strips)

    monkeypatch.setattr(encoder._strips, "map", map_here)
    made = asyncio.run(encoder.encode_all(batch, "jpeg", [None] * pictures))
    encoder.close()
    assert made == [encode(pixels, "jpeg", None) for pixels in batch]
    assert bool(shared) == side_by_side


def test_the_event_loop_turns_while_pictures_are_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoding waits for the loop, so a loop that were blocked would never end."""
    turned = threading.Event()
    threads = []

    def waiting(pixels: np.ndarray, *_: object) -> EncodedImage:
        assert turned.wait(10)
        threads.append(threading.current_thread())
        return EncodedImage(b"", "image/png", "png", 1, 1)

    async def main() -> list[EncodedImage]:
        batch = np.zeros((2, 1, 1, 3), np.uint8)
        encoding = asyncio.create_task(encoder.encode_all(batch, "png", [None, None]))
        await asyncio.sleep(0)
        turned.set()
        return await encoding

    monkeypatch.setattr(images, "encode", waiting)
    encoder = Encoder()
    assert len(asyncio.run(main())) == 2
    encoder.close()
    assert {thread.name.split("_")[0] for thread in threads} == {"encode"}


def test_the_engine_can_see_what_waits_to_be_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    original = images.encode

    def held(*arguments: object) -> EncodedImage:
        assert release.wait(10)
        return original(*arguments)  # type: ignore[arg-type]

    async def main() -> None:
        batch = np.stack([_picture(64, 64, seed) for seed in range(5)])
        await encoder.encode_all(batch[:1], "png", [None])
        assert (encoder.waiting, encoder.backlog_seconds) == (0, 0.0)
        monkeypatch.setattr(images, "encode", held)
        encoding = asyncio.create_task(encoder.encode_all(batch, "png", [None] * 5))
        await asyncio.sleep(0)
        assert encoder.waiting == 3
        assert encoder.backlog_seconds > 0
        release.set()
        await encoding
        assert (encoder.waiting, encoder.backlog_seconds) == (0, 0.0)

    encoder = Encoder(workers=2)
    asyncio.run(main())
    encoder.close()


def test_encoder_wants_metadata_for_each_picture() -> None:
    encoder = Encoder()
    with pytest.raises(ValueError, match="zip"):
        asyncio.run(encoder.encode_all(np.zeros((2, 8, 8, 3), np.uint8), "png", [None]))
    encoder.close()


def test_encoder_passes_faults_on_and_lives() -> None:
    encoder = Encoder()
    with pytest.raises(ValueError, match="pixels must be"):
        asyncio.run(encoder.encode_all([np.zeros((8, 8), np.uint8)], "png", [None]))
    assert len(asyncio.run(encoder.encode_all(np.zeros((1, 8, 8, 3), np.uint8), "png", [None]))) == 1
    encoder.close()
    with pytest.raises(RuntimeError, match="after shutdown"):
        asyncio.run(encoder.encode_all(np.zeros((1, 8, 8, 3), np.uint8), "png", [None]))
