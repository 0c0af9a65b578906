"""Thousands of damaged bodies: each is answered, none breaks the service."""

from __future__ import annotations

import json
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from tests.services import Server

MUTATIONS = 2000
VALID: dict[str, Any] = {
    "prompt": "a red circle",
    "negative_prompt": "blue",
    "image_size": {"width": 64, "height": 96},
    "num_inference_steps": 1,
    "seed": 3,
    "guidance_scale": 2.5,
    "enable_safety_checker": True,
    "num_images": 1,
    "output_format": "jpeg",
    "style_name": "(No style)",
    "sync_mode": True,
}
JUNK: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**64, -(2**70), 0.5, 18.0, 1e308,
    float("nan"), float("inf"), "", "7", "square", "\x00", "\u202e", "x" * 10_001, "😀" * 500,
    "../../etc/passwd", "{{7*7}}", "%s%n", [], [[]], [1, 2, 3], {}, {"width": 64},
    {"width": 64, "height": 64}, {"width": "64", "height": None}, {"a": {"b": {"c": []}}},
]  # fmt: skip


def mutate(chance: random.Random) -> bytes:
    """A valid body with up to three values replaced, dropped, doubled or added, or with damaged bytes."""
    body = dict(VALID)
    for _ in range(chance.randint(1, 3)):
        name = chance.choice([*VALID, "extra", "Prompt", ""])
        match chance.randrange(4):
            case 0 if name != "image_size":  # the default size is valid, and slow
                body.pop(name, None)
            case 1:
                body["image_size"] = dict(VALID["image_size"]) | {
                    chance.choice(["width", "height", "z"]): chance.choice(JUNK)
                }
            case _:
                body[name] = chance.choice(JUNK)
    text = bytearray(json.dumps(body, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass"))
    if chance.random() < 0.4:
        for _ in range(chance.randint(1, 4)):
            position = chance.randrange(len(text))
            match chance.randrange(3):
                case 0:
                    text[position] = chance.randrange(256)
                case 1:
                    text[position:position] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 8)))
                case _:
                    del text[position : position + chance.randint(1, 20)]
    return bytes(text)


def test_no_mutation_is_an_error_of_ours(quick_server: Server) -> None:
    chance = random.Random(20)
    bodies = [(chance.choice(["/generate", "/sprint", "/"]), mutate(chance)) for _ in range(MUTATIONS)]
    with quick_server.client() as http, ThreadPoolExecutor(4) as pool:

        def send(request: tuple[str, bytes]) -> httpx.Response:
            path, body = request
            return http.post(path, content=body, headers={"content-type": "application/json"})

        answers = list(pool.map(send, bodies))
        statuses = Counter(answer.status_code for answer in answers)
        assert set(statuses) <= {200, 400, 422}
        # the mutations reach every kind of answer, or the test shows nothing
        assert min(statuses[200], statuses[400], statuses[422]) > MUTATIONS // 50
        assert all(set(answer.json()) == {"detail"} for answer in answers if answer.status_code != 200)
        assert http.get("/readyz").status_code == 200
