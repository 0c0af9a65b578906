"""Scenes to pixels, on whatever device the table lies: antialiased signed-distance shapes over a background.

Pictures are flat lists of pixels with a width of their own, so that one batch of one static shape holds pictures of
every aspect ratio, and crops too. Nothing here reads text.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sana_service.models.bundled.training.language import COLOURS, SHAPES, Scene, place

MAX_OBJECTS = 5
PATTERNS = ("solid", "gradient", "vertical stripes", "horizontal stripes", "checkered")
STRIPE_PIXELS = 128.0
POSITION_JITTER, RADIUS_JITTER, ANGLE_JITTER, COLOUR_JITTER = 0.004, 0.02, 0.03, 6 / 255


@dataclass(frozen=True, eq=False)
class SceneTable:
    """Scenes as numbers, a row each.

    Args:
        objects: (rows, 5, 8) float32: shape index or -1, x, y, radius (pixels), angle (radians), red, green, blue.
        background: (rows, 7) float32: pattern index, first colour, second colour; colours in [0, 1].
        size: (rows, 2) float32: width and height in pixels.
    """

    objects: Tensor
    background: Tensor
    size: Tensor

    def rows(self, index: Tensor | slice) -> SceneTable:
        """Some rows."""
        return SceneTable(*(getattr(self, field.name)[index] for field in fields(self)))

    def to(self, device: torch.device | str) -> SceneTable:
        """The table on another device."""
        return SceneTable(*(getattr(self, field.name).to(device) for field in fields(self)))

    def __len__(self) -> int:
        return len(self.size)


def tabulate(
    scenes: Sequence[Scene], sizes: Sequence[tuple[int, int]], *, seed: int, jitter: bool = True
) -> SceneTable:
    """Lay scenes out and jitter position, radius, angle and colour.

    Args:
        scenes: what to draw.
        sizes: (width, height) in pixels of each.
        seed: of the jitter.
        jitter: False draws every scene exactly as laid out, for the scorer's own tests.
    """
    nothing = [-1.0] + [0.0] * 7
    object_rows, background_rows = [], []
    for scene, (width, height) in zip(scenes, sizes, strict=True):
        row = [
            [float(SHAPES.index(item.thing.shape)), item.x, item.y, item.radius, 0.0, *_rgb(item.thing.colour)]
            for item in place(scene, width, height)
        ]
        object_rows.append(row + [nothing] * (MAX_OBJECTS - len(row)))
        first, second = _rgb(scene.background.first), _rgb(scene.background.second)
        background_rows.append([float(PATTERNS.index(scene.background.pattern)), *first, *second])
    objects = torch.tensor(object_rows).reshape(len(scenes), MAX_OBJECTS, 8)
    background = torch.tensor(background_rows).reshape(len(scenes), 7)
    size = torch.tensor(sizes, dtype=torch.float32).reshape(len(scenes), 2)
    if jitter:
        generator = torch.Generator().manual_seed(seed)
        short = size.min(dim=1).values[:, None, None]
        # One shift and one scale for a whole scene keep rows straight and pairs comparable in size.
        shift = 2 * torch.rand(len(scenes), 1, 2, generator=generator) - 1
        objects[..., 1:3] += POSITION_JITTER * short * shift
        objects[..., 3] *= 1 + RADIUS_JITTER * (2 * torch.rand(len(scenes), 1, generator=generator) - 1)
        objects[..., 4] += ANGLE_JITTER * (2 * torch.rand(len(scenes), MAX_OBJECTS, generator=generator) - 1)
        for colours in (objects[..., 5:8], background[:, 1:4], background[:, 4:7]):
            colours.add_(2 * torch.rand(colours.shape, generator=generator) - 1, alpha=COLOUR_JITTER)
    return SceneTable(objects, background, size)


def _rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = COLOURS[colour]
    return red / 255, green / 255, blue / 255


def signed_distance(shape: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Distance to a shape of about unit radius, negative inside; y points down.

    Args:
        shape: index into `SHAPES`, broadcastable to the coordinates.
        x: coordinates relative to the shape's centre, in radii.
        y: likewise.
    """
    ax, ay = x.abs(), y.abs()
    radius = torch.sqrt(x * x + y * y + 1e-12)
    circle = radius - 0.95
    square = torch.maximum(ax, ay) - 0.84
    triangle = torch.maximum(0.8660254 * ax - 0.5 * (y - 0.12), (y - 0.12)) - 0.56
    diamond = (1.05 * ax + 0.74 * ay - 0.777) / 1.2845
    ring = (radius - 0.74).abs() - 0.23
    cross = torch.minimum(torch.maximum(ax - 0.95, ay - 0.31), torch.maximum(ax - 0.31, ay - 0.95))
    distance = circle
    for index, other in enumerate((square, triangle, _star(x, y), _heart(ax, y), diamond, ring, cross), start=1):
        distance = torch.where(shape == index, other, distance)
    return distance


def _star(x: Tensor, y: Tensor) -> Tensor:
    """A five-pointed star: the angle is folded into one tenth of the turn, where the outline is one straight line."""
    outer, inner = 1.12, 0.47
    step = math.pi / 5
    angle = torch.atan2(x, -y)
    folded = (torch.remainder(angle + step, 2 * step) - step).abs()
    radius = torch.sqrt(x * x + y * y + 1e-12)
    px, py = radius * torch.cos(folded), radius * torch.sin(folded)
    qx, qy = inner * math.cos(step) - outer, inner * math.sin(step)
    length = math.hypot(qx, qy)
    return ((px - outer) * qy - py * qx) / length


def _heart(ax: Tensor, y: Tensor) -> Tensor:
    """Two discs over a wedge that touches both."""
    centre_x, centre_y, radius = 0.47, -0.36, 0.52
    discs = torch.sqrt((ax - centre_x) ** 2 + (y - centre_y) ** 2 + 1e-12) - radius
    tip = 0.98
    # The tangent from the tip to the disc: angle of the centre line plus the angle the radius takes up.
    dx, dy = centre_x, centre_y - tip
    length = math.hypot(dx, dy)
    angle = math.atan2(dx, -dy) + math.asin(radius / length)
    touch_y = tip - math.sqrt(length * length - radius * radius) * math.cos(angle)
    wedge = torch.maximum(ax * math.cos(angle) + (y - tip) * math.sin(angle), touch_y - y)
    between = torch.maximum(ax - 0.3, torch.maximum(-0.15 - y, y - 0.3))  # what the discs leave open under the notch
    return torch.minimum(torch.minimum(discs, wedge), between)


def paint_background(background: Tensor, x: Tensor, y: Tensor, height: Tensor) -> Tensor:
    """The background's colour at each pixel, (rows, 3, pixels) in [0, 1]; x, y are (rows, pixels) in pixels."""
    pattern = background[:, :1]
    column = torch.remainder(torch.floor(x / STRIPE_PIXELS), 2)
    row = torch.remainder(torch.floor(y / STRIPE_PIXELS), 2)
    share = torch.where(pattern == 1, y / height, torch.zeros_like(x))
    share = torch.where(pattern == 2, column, share)
    share = torch.where(pattern == 3, row, share)
    share = torch.where(pattern == 4, torch.remainder(column + row, 2), share)[:, None]
    return background[:, 1:4, None] * (1 - share) + background[:, 4:7, None] * share


def paint_object(canvas: Tensor, item: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Lay one object of each row over its canvas, antialiased over one pixel.

    Args:
        canvas: (rows, 3, pixels).
        item: (rows, 8) as in `SceneTable.objects`; a shape of -1 draws nothing.
        x: (rows, pixels) pixel centres.
        y: likewise.
    """
    shape, centre_x, centre_y, radius, angle = (item[:, index : index + 1] for index in range(5))
    dx, dy = (x - centre_x) / radius.clamp(min=1.0), (y - centre_y) / radius.clamp(min=1.0)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    distance = signed_distance(shape, cosine * dx + sine * dy, cosine * dy - sine * dx) * radius
    cover = ((0.5 - distance).clamp(0, 1) * (shape >= 0))[:, None]
    return canvas + cover * (item[:, 5:8, None] - canvas)


Painter = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def render(
    table: SceneTable,
    pixels: int,
    *,
    crop: tuple[Tensor, Tensor, Tensor] | None = None,
    painter: Painter = paint_object,
) -> Tensor:
    """Draw every row.

    Args:
        table: on the device to draw on.
        pixels: how many pixels of each row, in reading order of its picture or crop.
        crop: left and top edge and width of each row's crop, (rows,) float32; whole pictures by default.
        painter: `paint_object` or a compiled form of it.

    Returns:
        (rows, 3, pixels) float32 in [-1, 1]. Pixels past a picture's end are meaningless.
    """
    left, top, width = crop or (0.0 * table.size[:, 0], 0.0 * table.size[:, 0], table.size[:, 0])
    index = torch.arange(pixels, device=table.size.device, dtype=torch.float32)[None]
    line = torch.floor((index + 0.5) / width[:, None])
    x = index - line * width[:, None] + left[:, None] + 0.5
    y = line + top[:, None] + 0.5
    canvas = paint_background(table.background, x, y, table.size[:, 1:2])
    used = int((table.objects[..., 0] >= 0).sum(dim=1).max())
    for slot in range(used):
        canvas = painter(canvas, table.objects[:, slot], x, y)
    return 2 * canvas - 1


def pictures(table: SceneTable, *, painter: Painter = paint_object) -> Tensor:
    """Whole pictures of rows that share one size: (rows, 3, height, width) float32 in [-1, 1]."""
    width, height = (int(side) for side in table.size[0].tolist())
    return render(table, width * height, painter=painter).unflatten(2, (height, width))


def edge_crops(table: SceneTable, side: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Where to crop: three in four rows near an outline, the others anywhere; see `render`'s argument.

    Rows whose crop would leave the picture are moved inside.
    """
    rows, device = len(table), table.size.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, device=device, generator=generator)

    present = (table.objects[..., 0] >= 0).sum(dim=1)
    chosen = torch.floor(uniform(rows) * present).long()
    item = table.objects[torch.arange(rows, device=device), chosen]
    turn, reach = 2 * math.pi * uniform(rows), item[:, 3] * (0.3 + uniform(rows))
    near = uniform(rows) < 0.75
    room = table.size - side
    edges = []
    for axis, direction in ((0, torch.cos(turn)), (1, torch.sin(turn))):
        by_object = item[:, 1 + axis] + reach * direction - side / 2
        edge = torch.where(near, by_object, uniform(rows) * room[:, axis])
        edges.append(torch.minimum(edge.clamp(min=0), room[:, axis]).floor())
    return edges[0], edges[1], torch.full((rows,), float(side), device=device)


def sample_sizes(count: int, rng: random.Random, *, group: int = 1) -> list[tuple[int, int]]:
    """(width, height) of random bins of the 1024 set; each `group` neighbours share one."""
    from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import ASPECT_RATIO_1024_BIN

    bins = [(int(width), int(height)) for height, width in ASPECT_RATIO_1024_BIN.values()]
    drawn = rng.choices([*bins, *((1024, 1024),) * 4], k=-(-count // group))
    return [size for size in drawn for _ in range(group)][:count]
