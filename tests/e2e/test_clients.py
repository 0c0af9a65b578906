"""BentoML's own clients: keyword arguments in, a dict out.

Each runs in a process of its own, as a user's program does: the library warns at import.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from typing import Any

import httpx
from PIL import Image

from tests.services import Server

SYNCHRONOUS = """
import bentoml, json, sys
with bentoml.SyncHTTPClient(sys.argv[1], timeout=60) as client:
    answers = [
        client.generate(prompt="a red circle", image_size="square", num_inference_steps=2, seed=0),
        client.sprint(prompt="a red circle", image_size={"width": 640, "height": 320}),
    ]
print(json.dumps(answers))
"""

ASYNCHRONOUS = """
import asyncio, bentoml, json, sys
async def main():
    async with bentoml.AsyncHTTPClient(sys.argv[1], timeout=60) as client:
        return await asyncio.gather(
            client.generate(prompt="a", image_size="square", num_inference_steps=1),
            client.sprint(prompt="a", image_size="portrait_16_9"),
        )
print(json.dumps(asyncio.run(main())))
"""


def answers_of(script: str, server: Server) -> list[dict[str, Any]]:
    finished = subprocess.run(
        [sys.executable, "-c", script, server.url], capture_output=True, text=True, timeout=120, check=False
    )
    assert finished.returncode == 0, finished.stderr
    answers: list[dict[str, Any]] = json.loads(finished.stdout.splitlines()[-1])
    return answers


def size_of(answer: dict[str, Any]) -> tuple[int, int]:
    content = httpx.get(answer["images"][0]["url"]).content
    return Image.open(io.BytesIO(content)).size


def test_the_synchronous_client(quick_server: Server) -> None:
    generated, sprinted = answers_of(SYNCHRONOUS, quick_server)
    assert size_of(generated) == (512, 512)
    assert size_of(sprinted) == (640, 320)
    assert generated["seed"] == 0


def test_the_asynchronous_client(quick_server: Server) -> None:
    assert [size_of(answer) for answer in answers_of(ASYNCHRONOUS, quick_server)] == [(512, 512), (576, 1024)]
