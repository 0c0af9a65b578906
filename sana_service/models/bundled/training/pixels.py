"""The scorer: looks at pixels, knows the palette and the outlines, and asks no model.

Calibrated on true renderings (`evaluate.calibrate`). What it does not see: textures, patterned backgrounds, and shapes
that touch each other, which count as one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sana_service.models.bundled.training.language import COLOURS, SHAPES, Scene, place
from sana_service.models.bundled.training.scenes import pictures, signed_distance, tabulate

FOREGROUND_DISTANCE = 40.0  # half the distance of the palette's closest pair, orange and yellow
SMALLEST_SHARE = 0.0008  # of the picture's area; specks below it are not objects
OUTLINE_OVERLAP = 0.80  # intersection over union with the outline, below which a shape is melted
TEMPLATE_SIDE, TEMPLATE_REACH = 72, 1.35
EDGE_REACH = 0.012  # of the shorter side, how far from the true outline a picture's own is looked for

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Score:
    """What is right about one picture; colour and shape also need the right number of objects."""

    background: bool
    count: bool
    colour: bool
    shape: bool
    position: bool

    @property
    def everything(self) -> bool:
        """All of it."""
        return all(asdict(self).values())


@dataclass(frozen=True)
class Found:
    """One connected object: its palette colour, best outline, overlap with it, and centre in pixels."""

    colour: str
    shape: str
    overlap: float
    x: float
    y: float


def nearest_colour(rgb: NDArray[np.floating] | Pixels) -> str:
    """The palette's colour nearest to one RGB value in [0, 255]."""
    palette = np.array(list(COLOURS.values()), dtype=np.float32)
    return tuple(COLOURS)[int(((palette - np.asarray(rgb, dtype=np.float32)) ** 2).sum(axis=1).argmin())]


def background_rgb(image: Pixels) -> NDArray[np.floating]:
    """Median colour of a frame of 1.5 % around the picture."""
    edge = max(2, round(0.015 * min(image.shape[:2])))
    frame = (image[:edge], image[-edge:], image[:, :edge], image[:, -edge:])
    median: NDArray[np.floating] = np.median(np.concatenate([part.reshape(-1, 3) for part in frame]), axis=0)
    return median


def find_objects(image: Pixels) -> list[Found]:
    """Connected regions that differ from the background. image: (height, width, 3)."""
    image = image[::2, ::2]
    distance = np.sqrt(((image.astype(np.float32) - background_rgb(image)) ** 2).sum(axis=2))
    labels = _components(torch.from_numpy(distance > FOREGROUND_DISTANCE))
    found = []
    for number, area in zip(*(part.tolist() for part in labels[labels > 0].unique(return_counts=True)), strict=True):
        if area < SMALLEST_SHARE * labels.numel():
            continue
        region = labels == number
        inner = 1 - F.max_pool2d((~region).float()[None], 7, 1, 3)[0] > 0
        pixels = image[(inner if inner.any() else region).numpy()]
        mask = region.numpy()
        shape, overlap = _outline(mask)
        rows, columns = np.nonzero(mask)
        colour = nearest_colour(np.median(pixels, axis=0))
        found.append(Found(colour, shape, overlap, float(2 * columns.mean()), float(2 * rows.mean())))
    return found


def _components(mask: Tensor) -> Tensor:
    """Label connected regions of a (height, width) mask.

    At half its resolution every pixel takes the highest label around it until nothing changes.
    """
    coarse = F.max_pool2d(mask.float()[None], 2, ceil_mode=True)
    labels = torch.arange(1, coarse.numel() + 1, dtype=torch.float32).view(coarse.shape) * coarse
    while True:
        before = labels
        for _ in range(24):
            labels = F.max_pool2d(labels, 3, 1, 1) * coarse
        if torch.equal(before, labels):
            fine = labels[0].repeat_interleave(2, 0).repeat_interleave(2, 1)
            return (fine[: mask.shape[0], : mask.shape[1]] * mask).long()


def score(image: Pixels, scene: Scene) -> Score:
    """Compare a picture with the scene that its prompt named (solid backgrounds)."""
    height, width = image.shape[:2]
    found = find_objects(image)
    expected = place(scene, width, height)
    sideways = _spread(expected) if len(expected) > 1 else True
    found.sort(key=lambda item: item.x if sideways else item.y)
    expected.sort(key=lambda item: item.x if sideways else item.y)
    count = len(found) == len(expected)
    pairs = list(zip(found, expected, strict=False))
    reach = 0.15 * min(height, width)
    return Score(
        background=nearest_colour(background_rgb(image)) == scene.background.first,
        count=count,
        colour=count and sorted(f.colour for f in found) == sorted(e.thing.colour for e in expected),
        shape=count
        and sorted(f.shape for f in found) == sorted(e.thing.shape for e in expected)
        and all(f.overlap >= OUTLINE_OVERLAP for f in found),
        position=count
        and all((f.colour, f.shape) == (e.thing.colour, e.thing.shape) for f, e in pairs)
        and all(abs(f.x - e.x) < reach and abs(f.y - e.y) < reach for f, e in pairs),
    )


def sharpness(image: Pixels, scene: Scene) -> float:
    """How steep the picture is where the true outlines are, beside a true rendering: 1 is as sharp.

    The steepest place near each pixel of the true outlines counts, so that neither a blurred edge nor a missing one
    does, and a shift within the scenes' own jitter does not matter.
    """
    height, width = image.shape[:2]
    true = (pictures(tabulate([scene], [(width, height)], seed=0, jitter=False)) + 1) * 127.5
    expected = _steepness(true)
    reach = round(EDGE_REACH * min(height, width))
    drawn = _steepness(torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None])
    outline = expected > 10
    own, best = (F.max_pool2d(steep, 2 * reach + 1, 1, reach)[outline].mean() for steep in (drawn, expected))
    return float(own / best)


def _steepness(image: Tensor) -> Tensor:
    """Length of the colour's gradient at each pixel: (1, 3, height, width) to (1, height, width)."""
    down = F.pad(image.diff(dim=2), (0, 0, 0, 1))
    right = F.pad(image.diff(dim=3), (0, 1))
    return (down.square() + right.square()).sum(dim=1).sqrt()


def _spread(expected: list) -> bool:  # type: ignore[type-arg]
    xs, ys = [item.x for item in expected], [item.y for item in expected]
    return max(xs) - min(xs) >= max(ys) - min(ys)


def _normalised(mask: Mask) -> Mask:
    """The mask sampled about its centroid in units of the square root of its area."""
    rows, columns = np.nonzero(mask)
    unit = np.sqrt(len(rows)) / TEMPLATE_SIDE * 2 * TEMPLATE_REACH
    steps = (np.arange(TEMPLATE_SIDE) - (TEMPLATE_SIDE - 1) / 2) * unit
    y = np.rint(rows.mean() + steps).astype(int)
    x = np.rint(columns.mean() + steps).astype(int)
    inside = ((y >= 0) & (y < mask.shape[0]))[:, None] & ((x >= 0) & (x < mask.shape[1]))[None]
    sampled: Mask = mask[y.clip(0, mask.shape[0] - 1)][:, x.clip(0, mask.shape[1] - 1)] & inside
    return sampled


@cache
def _templates() -> list[tuple[str, Mask]]:
    """Every outline at small turns, normalised like a found mask."""
    axis = (torch.arange(240) - 119.5) / 90
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    templates = []
    for index, shape in enumerate(SHAPES):
        for turn in (-0.2, -0.1, 0.0, 0.1, 0.2):
            cosine, sine = np.cos(turn), np.sin(turn)
            inside = signed_distance(torch.tensor(index), cosine * x + sine * y, cosine * y - sine * x) < 0
            templates.append((shape, _normalised(inside.numpy())))
    return templates


def _outline(mask: Mask) -> tuple[str, float]:
    """The best-fitting outline and its intersection over union."""
    sampled = _normalised(mask)
    best, overlap = "", 0.0
    for shape, template in _templates():
        ratio = float((sampled & template).sum() / (sampled | template).sum())
        if ratio > overlap:
            best, overlap = shape, ratio
    return best, overlap
