"""The ten styles of fal's Sana endpoints.

Templates are those of NVlabs/Sana, app/app_sana.py `style_list` (Apache-2.0). There the style's
negative prompt and the client's run into each other without a separator; here a comma parts them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

StyleName = Literal[
    "(No style)",
    "Cinematic",
    "Photographic",
    "Anime",
    "Manga",
    "Digital Art",
    "Pixel art",
    "Fantasy art",
    "Neonpunk",
    "3D Model",
]


@dataclass(frozen=True)
class Style:
    """A prompt template with one `{prompt}` in it, and what the style avoids."""

    template: str
    negative_prompt: str


STYLES: dict[StyleName, Style] = {
    "(No style)": Style("{prompt}", ""),
    "Cinematic": Style(
        "cinematic still {prompt} . emotional, harmonious, vignette, highly detailed, high budget, "
        "bokeh, cinemascope, moody, epic, gorgeous, film grain, grainy",
        "anime, cartoon, graphic, text, painting, crayon, graphite, abstract, glitch, deformed, "
        "mutated, ugly, disfigured",
    ),
    "Photographic": Style(
        "cinematic photo {prompt} . 35mm photograph, film, bokeh, professional, 4k, highly detailed",
        "drawing, painting, crayon, sketch, graphite, impressionist, noisy, blurry, soft, deformed, ugly",
    ),
    "Anime": Style(
        "anime artwork {prompt} . anime style, key visual, vibrant, studio anime,  highly detailed",
        "photo, deformed, black and white, realism, disfigured, low contrast",
    ),
    "Manga": Style(
        "manga style {prompt} . vibrant, high-energy, detailed, iconic, Japanese comic style",
        "ugly, deformed, noisy, blurry, low contrast, realism, photorealistic, Western comic style",
    ),
    "Digital Art": Style(
        "concept art {prompt} . digital artwork, illustrative, painterly, matte painting, highly detailed",
        "photo, photorealistic, realism, ugly",
    ),
    "Pixel art": Style(
        "pixel-art {prompt} . low-res, blocky, pixel art style, 8-bit graphics",
        "sloppy, messy, blurry, noisy, highly detailed, ultra textured, photo, realistic",
    ),
    "Fantasy art": Style(
        "ethereal fantasy concept art of  {prompt} . magnificent, celestial, ethereal, painterly, "
        "epic, majestic, magical, fantasy art, cover art, dreamy",
        "photographic, realistic, realism, 35mm film, dslr, cropped, frame, text, deformed, glitch, "
        "noise, noisy, off-center, deformed, cross-eyed, closed eyes, bad anatomy, ugly, disfigured, "
        "sloppy, duplicate, mutated, black and white",
    ),
    "Neonpunk": Style(
        "neonpunk style {prompt} . cyberpunk, vaporwave, neon, vibes, vibrant, stunningly beautiful, "
        "crisp, detailed, sleek, ultramodern, magenta highlights, dark purple shadows, high contrast,"
        " cinematic, ultra detailed, intricate, professional",
        "painting, drawing, illustration, glitch, deformed, mutated, cross-eyed, ugly, disfigured",
    ),
    "3D Model": Style(
        "professional 3d model {prompt} . octane render, highly detailed, volumetric, dramatic lighting",
        "ugly, deformed, noisy, low poly, blurry, painting",
    ),
}


def apply_style(style_name: StyleName, prompt: str, negative_prompt: str) -> tuple[str, str]:
    """The prompt and the negative prompt that the model is given."""
    style = STYLES[style_name]
    negatives = [text for text in (style.negative_prompt, negative_prompt) if text]
    # replace, not format: a client's braces are text
    return style.template.replace("{prompt}", prompt), ", ".join(negatives)
