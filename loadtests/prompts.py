"""Prompts: by default no two are alike, so that no cache of the server flatters it."""

from __future__ import annotations

import random
from dataclasses import dataclass

_SUBJECTS = ("lighthouse", "coral reef", "red panda", "steam train", "paper boat", "glass city", "violin")
_PLACES = ("at dawn", "in heavy rain", "under the sea", "on the moon", "by candlelight", "in deep snow")
_MANNERS = ("oil painting", "35mm photo", "watercolour", "isometric render", "woodcut", "pastel sketch")


def distinct_prompt(draw: random.Random, mark: str = "") -> str:
    """A prompt that was never asked for before: 48 random bits stand in it.

    Args:
        mark: text that differs by run, so that a second run with the same seed is new to the server, too.
    """
    words = draw.choice(_SUBJECTS), draw.choice(_PLACES), draw.choice(_MANNERS)
    number = f"{mark}{draw.getrandbits(48)}"
    return f"{words[0]} {words[1]}, {words[2]}, number {number}"


@dataclass(frozen=True)
class Prompts:
    """Where the prompts of a run come from.

    Args:
        lines: prompts to draw from; without any every prompt is distinct.
        reuse: share of requests, 0 to 1, that repeat one of `pool` prompts; rank r is drawn with weight 1/r (Zipf).
        pool: how many prompts are repeated.
        mark: stands in every distinct prompt, see `distinct_prompt`.
    """

    lines: tuple[str, ...] = ()
    reuse: float = 0.0
    pool: int = 100
    mark: str = ""

    def draw(self, draw: random.Random) -> str:
        if self.lines:
            return draw.choice(self.lines)
        if self.reuse and draw.random() < self.reuse:
            weights = [1 / rank for rank in range(1, self.pool + 1)]
            rank = draw.choices(range(self.pool), weights)[0]
            return distinct_prompt(random.Random(rank), self.mark)
        return distinct_prompt(draw, self.mark)
