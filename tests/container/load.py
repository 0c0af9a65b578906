"""The client, started inside the container's network: `ask` once on each endpoint, or `load` until it is told to stop.

Prints JSON: for `ask` the answers and their files' SHA-256, for `load` one record a request with the wall-clock time at
which it was sent. A line `started` comes first.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

URL = "http://127.0.0.1:3000"
RATE_PER_SECOND = 4.0
PATIENCE_SECONDS = 60.0


def ask(files: list[str]) -> dict[str, Any]:
    """A picture from each endpoint, and files that an earlier run left."""
    told: dict[str, Any] = {"old": {}}
    with httpx.Client(base_url=URL, timeout=PATIENCE_SECONDS, trust_env=False) as http:
        for name in files:
            answer = http.get(f"/files/{name}")
            told["old"][name] = [answer.status_code, hashlib.sha256(answer.content).hexdigest()]
        for route in ("/generate", "/sprint"):
            answer = http.post(route, json={"prompt": "a red circle", "image_size": "square", "seed": 7})
            body = answer.json()
            name = body["images"][0]["file_name"]
            content = http.get(f"/files/{name}").content
            told[route] = {
                "status": answer.status_code,
                "units": answer.headers["x-fal-billable-units"],
                "name": name,
                "jpeg": content.startswith(b"\xff\xd8\xff"),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
    return told


def load() -> list[dict[str, Any]]:
    """Requests at a steady rate, whatever the answers do, until stdin closes."""
    over = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    records: list[dict[str, Any]] = []
    number = 0
    with ThreadPoolExecutor(64) as pool:
        futures = []
        while not over.wait(1 / RATE_PER_SECOND):
            route = ("/sprint", "/generate")[number % 2]
            futures.append(pool.submit(_request, route, number))
            number += 1
            if number == 1:
                print("started", flush=True)
        records = [future.result() for future in futures]
    return records


def _request(route: str, number: int) -> dict[str, Any]:
    body = {"prompt": "a blue square", "image_size": "square", "seed": number, "num_inference_steps": 2}
    sent = time.time()
    try:
        answer = httpx.post(f"{URL}{route}", json=body, timeout=PATIENCE_SECONDS, trust_env=False)
        outcome = str(answer.status_code)
        if answer.status_code == 200 and not answer.json()["images"][0]["file_size"]:
            outcome = "empty"
    except httpx.ConnectError:
        outcome = "refused"
    except httpx.HTTPError as error:
        outcome = f"lost: {type(error).__name__}"
    return {"sent": sent, "answered": time.time(), "outcome": outcome}


if __name__ == "__main__":
    command, *files = sys.argv[1:]
    print(json.dumps(ask(files) if command == "ask" else load()), flush=True)
