"""From a scene to a sentence: free wording, synonyms, and words that mean nothing here.

Captions are lower case because both pipelines lower the prompt before they encode it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from sana_service.models.bundled.training.language import COLOURS, SHAPES, Background, Scene, Thing

COLOUR_WORDS = {"gray": ("gray", "grey"), "purple": ("purple", "purple", "violet")}
SHAPE_WORDS: dict[str, tuple[tuple[str, str], ...]] = {
    "circle": (("circle", "circles"), ("circle", "circles"), ("disc", "discs"), ("ball", "balls"), ("dot", "dots")),
    "square": (("square", "squares"), ("square", "squares"), ("box", "boxes")),
    "triangle": (("triangle", "triangles"),),
    "star": (("star", "stars"),),
    "heart": (("heart", "hearts"),),
    "diamond": (("diamond", "diamonds"), ("diamond", "diamonds"), ("rhombus", "rhombuses")),
    "ring": (("ring", "rings"), ("ring", "rings"), ("donut", "donuts"), ("hoop", "hoops")),
    "cross": (("cross", "crosses"), ("cross", "crosses"), ("plus", "pluses"), ("plus sign", "plus signs")),
}
SIZE_WORDS = {"small": ("small", "small", "little", "tiny"), "large": ("large", "big", "big", "huge")}
NUMBERS = {2: ("two", "2"), 3: ("three", "3"), 4: ("four", "4"), 5: ("five", "5")}
POSITION_PHRASES: dict[str, tuple[str, ...]] = {
    "centre": ("in the middle", "in the center", "in the centre"),
    "left": ("on the left", "at the left", "on the left side"),
    "right": ("on the right", "at the right", "on the right side"),
    "top": ("at the top", "on top", "near the top"),
    "bottom": ("at the bottom", "near the bottom"),
    "top left": ("in the top left corner", "at the top left", "in the upper left corner"),
    "top right": ("in the top right corner", "at the top right", "in the upper right corner"),
    "bottom left": ("in the bottom left corner", "at the bottom left", "in the lower left corner"),
    "bottom right": ("in the bottom right corner", "at the bottom right", "in the lower right corner"),
}
RELATION_PHRASES: dict[str, tuple[str, ...]] = {
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath", "underneath"),
    "and": ("and", "and", "next to", "beside"),
}
OPENINGS = (
    "draw", "draw me", "please draw", "paint", "a picture of", "a drawing of", "an image of", "picture of",
    "an illustration of", "a painting of", "show me", "show", "create", "make", "generate", "i want",
    "i would like", "can you draw", "there is", "a photo of", "a simple picture of", "a scene with",
)  # fmt: skip
CLOSINGS = (
    "please", "simple", "minimalist", "flat design", "high quality", "clean edges", "4k", "8k", "highly detailed",
    "vector art", "sharp", "beautiful", "best quality", "masterpiece", "digital art", "minimal", "clip art",
)  # fmt: skip
NOISE_PHRASES = (
    "cinematic still", "cinematic photo", "35mm photograph", "film", "bokeh", "professional", "film grain", "vignette",
    "emotional", "harmonious", "high budget", "cinemascope", "moody", "epic", "gorgeous", "grainy", "anime artwork",
    "anime style", "key visual", "vibrant", "studio anime", "manga style", "high-energy", "detailed", "iconic",
    "japanese comic style", "concept art", "digital artwork", "illustrative", "painterly", "matte painting",
    "pixel-art", "low-res", "blocky", "pixel art style", "8-bit graphics", "ethereal fantasy concept art",
    "magnificent", "celestial", "majestic", "magical", "fantasy art", "cover art", "dreamy", "neonpunk style",
    "cyberpunk", "vaporwave", "neon", "vibes", "stunningly beautiful", "crisp", "sleek", "ultramodern", "shadows",
    "dark purple highlights", "glowing edges", "professional 3d model", "octane render", "highly detailed",
    "volumetric", "dramatic lighting", "photo", "photorealistic", "realism", "ugly", "deformed", "noisy", "blurry",
    "low contrast", "sketch", "cartoon", "graphic", "text", "crayon", "graphite", "abstract", "glitch", "mutated",
    "disfigured", "painting", "drawing", "impressionist", "soft", "sloppy", "messy", "monochrome", "plain", "boring",
    "a cat", "a dog", "a house", "a tree", "the sun", "the moon", "the sea", "a mountain", "a person", "a city",
    "a coral reef", "a flower", "a car", "a bird", "underwater", "at night", "in the forest", "in space",
)  # fmt: skip
SOLID_PHRASES = (
    "on a {0} background", "on a {0} background", "on {0}", "with a {0} background", "with {0} background",
    "against a {0} background", "in front of a {0} background", "over a {0} background", "on a plain {0} background",
    "on a {0} canvas", "on a {0} surface",
)  # fmt: skip
PATTERN_PHRASES: dict[str, tuple[str, ...]] = {
    "gradient": ("a gradient from {0} to {1}", "a {0} to {1} gradient", "a gradient background from {0} to {1}"),
    "vertical stripes": ("{0} and {1} stripes", "vertical {0} and {1} stripes", "a {0} and {1} striped background"),
    "horizontal stripes": ("horizontal {0} and {1} stripes", "a horizontally striped {0} and {1} background"),
    "checkered": ("a {0} and {1} checkerboard", "a {0} and {1} checkered background", "{0} and {1} checks"),
}


def describe(scene: Scene, rng: random.Random, *, plain: bool = False) -> str:
    """One sentence that says the scene.

    Args:
        scene: what to say.
        rng: chooses the words.
        plain: every colour and the background are said and no meaningless words are added, as the evaluation needs.
    """
    if not plain and rng.random() < 0.02:
        return _background_alone(scene.background, rng)
    text = _objects(scene, rng, plain=plain)
    if plain or rng.random() >= 0.08:
        text = _with_background(text, scene.background, rng)
    if rng.random() < 0.45:
        text = f"{rng.choice(OPENINGS)} {text}"
    if not plain and rng.random() < 0.15:
        text += ("," if rng.random() < 0.6 else "") + f" {rng.choice(CLOSINGS)}"
    if not plain and rng.random() < 0.08:
        text = _with_noise(text, rng)
    if rng.random() < 0.15:
        text += rng.choice(".!")
    return text


def _background_alone(background: Background, rng: random.Random) -> str:
    if background.pattern == "solid" and rng.random() < 0.5:
        return rng.choice((_colour(background.first, rng), f"{_colour(background.first, rng)} background"))
    return _with_background("", background, rng).removeprefix("on ").strip()


def _objects(scene: Scene, rng: random.Random, *, plain: bool) -> str:
    if scene.kind == "count":
        return _counted(scene, rng)
    names = [_one(thing, rng, coloured=plain or rng.random() >= 0.03) for thing in scene.things]
    if scene.kind == "single":
        if scene.place == "centre" and rng.random() < 0.85:
            return names[0]
        return f"{names[0]} {rng.choice(POSITION_PHRASES[scene.place])}"
    if scene.kind == "pair":
        return f"{names[0]} {rng.choice(RELATION_PHRASES[scene.place])} {names[1]}"
    return rng.choice(("{}, {} and {}", "{}, {}, and {}", "{}, {}, {}", "{} and {} and {}")).format(*names)


def _one(thing: Thing, rng: random.Random, *, coloured: bool) -> str:
    words = [_colour(thing.colour, rng)] if coloured else []
    words.append(rng.choice(SHAPE_WORDS[thing.shape])[0])
    if thing.size != "medium":
        words.insert(0, rng.choice(SIZE_WORDS[thing.size]))
    draw = rng.random()
    if draw < 0.78:
        words.insert(0, "an" if words[0][0] in "aeiou" else "a")
    elif draw < 0.86:
        words.insert(0, rng.choice(("the", "one", "a single")))
    return " ".join(words)


def _counted(scene: Scene, rng: random.Random) -> str:
    thing = scene.things[0]
    number = rng.choice(NUMBERS[scene.count]) if rng.random() < 0.3 else NUMBERS[scene.count][0]
    return f"{number} {_colour(thing.colour, rng)} {rng.choice(SHAPE_WORDS[thing.shape])[1]}"


def _colour(name: str, rng: random.Random) -> str:
    return rng.choice(COLOUR_WORDS.get(name, (name,)))


def _with_background(text: str, background: Background, rng: random.Random) -> str:
    first, second = _colour(background.first, rng), _colour(background.second, rng)
    if background.pattern != "solid":
        phrase = rng.choice(PATTERN_PHRASES[background.pattern]).format(first, second)
        return f"{text} {rng.choice(('on', 'on', 'over', 'in front of', 'with'))} {phrase}".strip()
    phrase = rng.choice(SOLID_PHRASES).format(first)
    if first[0] in "aeiou":
        phrase = phrase.replace(f" a {first}", f" an {first}")
    draw = rng.random()
    if draw < 0.80 or not text:
        return f"{text} {phrase}".strip()
    if draw < 0.88:
        return f"{phrase}, {text}"
    if draw < 0.94:
        return f"{text}, {first} background"
    return f"{text}. the background is {first}"


def _with_noise(text: str, rng: random.Random) -> str:
    """Put words of the usual style prompts around a caption: they must change nothing."""
    chunk = ", ".join(rng.sample(NOISE_PHRASES, rng.randint(1, 3)))
    return f"{text}, {chunk}" if rng.random() < 0.7 else f"{chunk} {text}"


def vocabulary_corpus(scenes: Iterator[tuple[Scene, random.Random]]) -> Iterator[str]:
    """The text that the tokenizer is trained on: captions, the meaningless words, and every word by itself."""
    for scene, rng in scenes:
        yield describe(scene, rng)
    for _ in range(20):
        yield ", ".join(NOISE_PHRASES)
        yield from COLOURS
        yield from SHAPES
