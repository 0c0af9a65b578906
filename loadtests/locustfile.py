"""Locust users of the two endpoints, that look at every answer.

One class for each endpoint, `GenerateUser` and `SprintUser`, with the rows `generate` and `sprint`; a
file fetched is in the row `file`. A user asks, waits for the answer, and asks again (closed loop), so
the number of users is the number of requests in flight. An answer that breaks the contract is a
failure with a short reason, which Locust counts by reason.

Every option is a command line argument and an environment variable, see `locust -f ... --help` or
README.md. It imports nothing of the service that it tests. For open-loop load, exact percentiles and
reports see `python -m loadtests --help`.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

from locust import HttpUser, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

# Locust imports this file by its path, from any folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loadtests.contract import EXTENSIONS, REFUSALS, Expected, answer_faults, file_faults, parse_size, size_field
from loadtests.prompts import Prompts

# Draws differently in each process that Locust forks.
_RANDOM = random.SystemRandom()
SEED_MODES = ("distinct", "fixed", "server")
_LONGEST_WAIT_SECONDS = 10.0


def _image_sizes(value: str) -> str:
    """The value itself, if `parse_size` reads each of its parts."""
    try:
        for part in value.split(","):
            parse_size(part)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return value


def _output_formats(value: str) -> str:
    unknown = sorted(set(value.split(",")) - set(EXTENSIONS))
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(EXTENSIONS)}")
    return value


def _prompts_file(value: str) -> str:
    try:
        if value:
            _prompts_of(value)
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return value


def _share(value: str) -> float:
    share = float(value)
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError("must be from 0 to 1")
    return share


def _at_least_one(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more; to leave a class out, name the other one")
    return int(value)


def _add_options(parser: LocustArgumentParser, **_: Any) -> None:
    def option(name: str, help_text: str, **rest: Any) -> None:
        variable = "SANA_LOAD_" + name.upper().replace("-", "_")
        parser.add_argument(f"--{name}", env_var=variable, help=help_text, **rest)

    option(
        "image-size",
        "presets or WIDTHxHEIGHT, by commas: drawn for each request",
        type=_image_sizes,
        default="square_hd",
    )
    option("steps", "denoising steps of generate", type=int, default=18)
    option("sprint-steps", "denoising steps of sprint", type=int, default=2)
    option("guidance", "guidance scale", type=float, default=5.0)
    option("num-images", "images a request", type=int, default=1)
    option("output-format", "jpeg, png, or both by a comma", type=_output_formats, default="jpeg")
    option(
        "prompts-file",
        "text file, a prompt a line, drawn at random; else every prompt differs",
        type=_prompts_file,
        default="",
    )
    option("prompt-reuse", "share of requests that repeat a prompt of a hundred, 0 to 1", type=_share, default=0.0)
    option(
        "seed-mode",
        "distinct: drawn here for each request; fixed: --seed; server: drawn by the server",
        choices=SEED_MODES,
        default="distinct",
    )
    option("seed", "the seed of --seed-mode fixed", type=int, default=0)
    option("fetch-images", "download each image and check its format, size and length", action="store_true")
    option("answer-timeout", "seconds after which an answer is given up", type=float, default=330.0)
    option("generate-weight", "share of GenerateUser", type=_at_least_one, default=1, include_in_web_ui=False)
    option("sprint-weight", "share of SprintUser", type=_at_least_one, default=1, include_in_web_ui=False)
    # Left out of the web page, so that the key is nowhere to be read there.
    option("api-key", "key of the service; rather set the variable", default="", include_in_web_ui=False)


def _set_weights(environment: Environment, **_: Any) -> None:
    if environment.parsed_options is not None:
        GenerateUser.weight = environment.parsed_options.generate_weight
        SprintUser.weight = environment.parsed_options.sprint_weight


events.init_command_line_parser.add_listener(_add_options)
events.init.add_listener(_set_weights)


@cache
def _prompts_of(path: str) -> tuple[str, ...]:
    prompts = tuple(line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip())
    if not prompts:
        raise ValueError(f"{path} holds no prompt")
    return prompts


class _ImageUser(HttpUser):
    abstract = True
    # Where `bentoml serve` listens by default.
    host = "http://127.0.0.1:3000"
    wait_time = constant(0)
    row: str
    steps_option: str

    @task
    def ask(self) -> None:
        options = self.environment.parsed_options
        size = random.choice(options.image_size.split(","))
        output_format = random.choice(options.output_format.split(","))
        width, height = parse_size(size)
        lines = _prompts_of(options.prompts_file) if options.prompts_file else ()
        prompt = Prompts(lines, options.prompt_reuse).draw(_RANDOM)
        seed = {"distinct": random.getrandbits(32), "fixed": options.seed, "server": None}[options.seed_mode]
        body = {
            "prompt": prompt,
            "image_size": size_field(size),
            "num_inference_steps": getattr(options, self.steps_option),
            "guidance_scale": options.guidance,
            "num_images": options.num_images,
            "output_format": output_format,
            "seed": seed,
        }
        expected = Expected(prompt, width, height, options.num_images, output_format, seed)
        images = self._post(body, expected)
        if options.fetch_images:
            for image in images:
                self._fetch(image, expected)

    def _post(self, body: dict[str, Any], expected: Expected) -> list[dict[str, Any]]:
        """The images of a right answer; none of a wrong one."""
        options = self.environment.parsed_options
        with self.client.post(
            f"/{self.row}",
            name=self.row,
            json=body,
            headers={"Authorization": f"Key {options.api_key}"} if options.api_key else {},
            timeout=options.answer_timeout,
            catch_response=True,
        ) as response:
            headers = response.headers or {}
            fault = next(answer_faults(response.status_code, headers, _json(response), expected), None)
            if fault is None:
                images: list[dict[str, Any]] = response.json()["images"]
                return images
            response.failure(fault)
        # A user who is told to come back later does, instead of asking again at once.
        if response.status_code in REFUSALS:
            wait = headers.get("Retry-After", "")
            time.sleep(min(float(wait), _LONGEST_WAIT_SECONDS) if wait.isdecimal() else 1.0)
        return []

    def _fetch(self, image: dict[str, Any], expected: Expected) -> None:
        """Download an image; without the key, which files do not need and other hosts shall not see."""
        timeout = self.environment.parsed_options.answer_timeout
        with self.client.get(image["url"], name="file", timeout=timeout, catch_response=True) as response:
            content = response.content or b""
            fault = next(file_faults(response.status_code, content, image, expected), None)
            if fault is not None:
                response.failure(fault)


def _json(response: Any) -> Any:
    try:
        return response.json()
    except (TypeError, ValueError):
        # TypeError: a request that got no answer has no content to parse.
        return None


class GenerateUser(_ImageUser):
    """Asks the base pipeline."""

    row = "generate"
    steps_option = "steps"


class SprintUser(_ImageUser):
    """Asks SANA-Sprint."""

    row = "sprint"
    steps_option = "sprint_steps"
