"""Contact sheets: ten prompts down, five aspect ratios across, as small JPEGs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from sana_service.models.bundled.training.draw import Studio, Wish

SHEET_PROMPTS = (
    "a red circle on a white background",
    "Draw a big yellow star on blue",
    "three green hearts on a pink background",
    "a purple diamond to the left of an orange ring on a black background",
    "a white cross above a brown square, green background",
    "a blue triangle, a red heart and a yellow circle on gray",
    "a small black star in the top left corner on an orange background",
    "a white heart on a gradient from purple to black",
    "a green square on red and white stripes",
    "a cat in the forest",
)
SHEET_SIZES = ((2048, 512), (1344, 768), (1024, 1024), (768, 1344), (512, 2048))
GAP, HEADER = 6, 16


def contact_sheet(studio: Studio, path: Path, kinds: Sequence[tuple[str, int]], *, cell: int = 150) -> None:
    """Draw the prompts at guidance 5, each seed the row's number, and lay the pictures out.

    Args:
        studio: draws.
        path: of the JPEG.
        kinds: (kind, steps) of the models, side by side within each column.
        cell: longest side of a thumbnail in pixels; twice that for 2048x512.
    """
    drawn = {
        (row, size, kind): studio.draw(Wish(kind, prompt, *size, seed=row, steps=steps, guidance=5.0))
        for row, prompt in enumerate(SHEET_PROMPTS)
        for size in SHEET_SIZES
        for kind, steps in kinds
    }
    rooms = {size: 2 * cell if size[0] == 2048 else size[0] * cell // max(size) for size in SHEET_SIZES}
    width = len(kinds) * sum(room + GAP for room in rooms.values())
    sheet = Image.new("RGB", (width, HEADER + len(SHEET_PROMPTS) * (cell + GAP)), (70, 70, 70))
    left = 0
    for size, room in rooms.items():
        for kind, _ in kinds:
            ImageDraw.Draw(sheet).text((left + 3, 2), kind, fill=(255, 255, 255))
            for row in range(len(SHEET_PROMPTS)):
                image = Image.fromarray(drawn[row, size, kind].result())
                image.thumbnail((room, cell), Image.Resampling.LANCZOS)
                sheet.paste(image, (left + 3, HEADER + row * (cell + GAP)))
            left += room + GAP
    sheet.save(path, quality=85)
