"""The scene language: what a scene may contain, and the many ways to say it.

Pure Python. A scene is drawn by `scenes.py` and described by `captions.py`; this module only says which scenes
there are and which of them no training stage ever sees (`is_held_out`).
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from typing import Literal

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (218, 38, 42),
    "orange": (246, 138, 30),
    "yellow": (250, 216, 48),
    "green": (46, 160, 72),
    "blue": (44, 92, 214),
    "purple": (132, 56, 172),
    "pink": (246, 142, 188),
    "brown": (122, 72, 38),
    "black": (22, 22, 24),
    "white": (248, 248, 246),
    "gray": (136, 139, 143),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "ring", "cross")
SIZES = ("small", "medium", "large")
POSITIONS: dict[str, tuple[float, float]] = {
    "centre": (0.5, 0.5),
    "left": (0.22, 0.5),
    "right": (0.78, 0.5),
    "top": (0.5, 0.22),
    "bottom": (0.5, 0.78),
    "top left": (0.22, 0.22),
    "top right": (0.78, 0.22),
    "bottom left": (0.22, 0.78),
    "bottom right": (0.78, 0.78),
}
RELATIONS = ("left", "right", "above", "below", "and")
HELD_OUT_SHARE = 20  # one composition in twenty is kept from training
EVEN_MIX, HARD_MIX = (0.42, 0.18, 0.28, 0.12), (0.30, 0.24, 0.32, 0.14)  # shares of single, count, pair, triple

Kind = Literal["single", "count", "pair", "triple"]
Pattern = Literal["solid", "gradient", "vertical stripes", "horizontal stripes", "checkered"]


@dataclass(frozen=True)
class Thing:
    """One object; its size is a word of `SIZES`, and "medium" is never said."""

    shape: str
    colour: str
    size: str = "medium"


@dataclass(frozen=True)
class Background:
    """A pattern of one ("solid") or two colours; a gradient runs from the first at the top to the second."""

    pattern: Pattern
    first: str
    second: str

    @property
    def colours(self) -> frozenset[str]:
        """The colours that an object on it must not have."""
        return frozenset((self.first, self.second))


@dataclass(frozen=True)
class Scene:
    """What is drawn.

    Args:
        kind: how many different objects there are, and how they relate.
        things: one for "single" and "count", two for "pair", three for "triple" (in reading order).
        background: what lies behind them.
        count: how often the thing of a "count" scene stands in its row.
        place: a key of `POSITIONS` for "single", of `RELATIONS` (first thing to second) for "pair".
    """

    kind: Kind
    things: tuple[Thing, ...]
    background: Background
    count: int = 1
    place: str = "centre"

    @property
    def composition(self) -> str:
        """What must be new in a held-out scene: which colours on which shapes, how often, how related."""
        things = "+".join(f"{thing.colour} {thing.shape}" for thing in self.things)
        if self.kind == "single":
            return f"{things} on {self.background.first}"
        return f"{self.kind} {self.count} {things} {self.place if self.kind == 'pair' else ''}"

    @property
    def is_held_out(self) -> bool:
        """Whether the composition belongs to the evaluation; a hash decides, so that no list is needed."""
        return zlib.crc32(self.composition.encode()) % HELD_OUT_SHARE == 0


def sample_scene(
    rng: random.Random, *, held_out: bool = False, mix: tuple[float, float, float, float] = EVEN_MIX
) -> Scene:
    """Draw a scene from the training distribution, or from the compositions kept out of it.

    Args:
        rng: chooses.
        held_out: from those kept out.
        mix: shares of single, count, pair and triple scenes; the evaluation's is the default.
    """
    while True:
        scene = _any_scene(rng, mix)
        if scene.is_held_out == held_out:
            return scene


def _any_scene(rng: random.Random, mix: tuple[float, float, float, float]) -> Scene:
    single, count, pair, _ = mix
    background = _background(rng)
    colours = [name for name in COLOURS if name not in background.colours]
    draw = rng.random()
    if draw < single:
        thing = Thing(rng.choice(SHAPES), rng.choice(colours), rng.choices(SIZES, (1, 3, 1))[0])
        place = "centre" if rng.random() < 0.55 else rng.choice(tuple(POSITIONS))
        return Scene("single", (thing,), background, place=place)
    if draw < single + count:
        thing = Thing(rng.choice(SHAPES), rng.choice(colours))
        return Scene("count", (thing,), background, count=rng.randint(2, 5))
    if draw < single + count + pair:
        sizes = rng.choices(SIZES, (1, 6, 1), k=2)
        things = tuple(Thing(rng.choice(SHAPES), rng.choice(colours), size) for size in sizes)
        return Scene("pair", things, background, place=rng.choice(RELATIONS))
    triple = tuple(Thing(rng.choice(SHAPES), rng.choice(colours)) for _ in range(3))
    return Scene("triple", triple, background)


def _background(rng: random.Random) -> Background:
    first, second = rng.sample(tuple(COLOURS), 2)
    draw = rng.random()
    if draw < 0.86:
        return Background("solid", first, first)
    if draw < 0.91:
        return Background("gradient", first, second)
    if draw < 0.94:
        return Background("vertical stripes", first, second)
    return Background("horizontal stripes" if draw < 0.97 else "checkered", first, second)


@dataclass(frozen=True)
class Placed:
    """A thing with its centre and radius in pixels."""

    thing: Thing
    x: float
    y: float
    radius: float


RADII = {"small": 0.125, "medium": 0.19, "large": 0.27}


def place(scene: Scene, width: int, height: int) -> list[Placed]:
    """Where each object of a scene stands in a picture of width x height pixels.

    Whatever the caption leaves open has one answer (centre, medium, along the longer side), so that little of the
    picture is left to chance: that is what lets a small model draw it in few steps.
    """
    unit = min((width * height) ** 0.5, 1.5 * min(width, height))
    if scene.kind == "single":
        thing = scene.things[0]
        radius = RADII[thing.size] * unit
        x, y = POSITIONS[scene.place]
        margin = 1.12 * radius
        x = min(max(x * width, margin), width - margin)
        y = min(max(y * height, margin), height - margin)
        return [Placed(thing, x, y, radius)]
    if scene.kind == "pair":
        return _placed_pair(scene, width, height, unit)
    things = scene.things * scene.count
    along = max(width, height)
    radius = min(0.40 * along / len(things), RADII["medium"] * unit)
    centres = [(index + 0.5) / len(things) for index in range(len(things))]
    if width >= height:
        return [Placed(t, c * width, 0.5 * height, radius) for t, c in zip(things, centres, strict=True)]
    return [Placed(t, 0.5 * width, c * height, radius) for t, c in zip(things, centres, strict=True)]


def _placed_pair(scene: Scene, width: int, height: int, unit: float) -> list[Placed]:
    relation = scene.place
    if relation == "and":
        relation = "left" if width >= height else "above"
    sideways = relation in ("left", "right")
    along = width if sideways else height
    unit = min(unit, 0.22 * along / RADII["large"])
    ends = (0.27, 0.73) if relation in ("left", "above") else (0.73, 0.27)
    placed = []
    for thing, end in zip(scene.things, ends, strict=True):
        x, y = (end * width, 0.5 * height) if sideways else (0.5 * width, end * height)
        placed.append(Placed(thing, x, y, RADII[thing.size] * unit))
    return placed
