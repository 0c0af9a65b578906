"""The dashboard under load: `python -m tests.deploy.watched_load dashboard.png`.

A service on the bundled model, a Prometheus on it, and clients that ask for more than it can draw for most of the time;
then the dashboard's queries are drawn. Takes two minutes and both cores of a small machine.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import tempfile
import threading
import time
from pathlib import Path

import httpx

from deploy.grafana.picture import draw
from tests import services
from tests.deploy.scrape import KEY, prometheus


def client(url: str, seed: int, stop_at: float) -> None:
    """Requests of all kinds, one after the other; some are wrong, some are left alone."""
    dice = random.Random(seed)
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {KEY}"}) as http:
        while time.monotonic() < stop_at:
            body = {
                "prompt": dice.choice(["a red circle", "a green star on a blue background"]),
                "image_size": dice.choice(["square", "square_hd", {"width": 1280, "height": 720}]),
                "num_images": 9 if dice.random() < 0.05 else dice.choice([1, 1, 2]),
                "output_format": dice.choice(["jpeg", "png"]),
            }
            patience = 1.0 if dice.random() < 0.1 else 60.0
            try:
                answer = http.post(dice.choice(["/generate", "/sprint"]), json=body, timeout=patience)
            except httpx.TimeoutException:
                continue
            time.sleep(dice.expovariate(2.0) if answer.status_code != 429 else 1.0)


def main() -> None:
    """Load, watch, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--seconds", type=float, default=90)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "keys").write_text(f"sha256:{hashlib.sha256(KEY.encode()).hexdigest()}\n")
        variables = {
            "SANA_MODELS": "bundled",
            "SANA_API_KEYS_FILE": str(folder / "keys"),
            "SANA_MAX_QUEUE": "6",
            "SANA_REQUEST_TIMEOUT_SECONDS": "30",
        }
        with services.server(folder / "service", variables) as server, prometheus(folder, server.url) as http:
            began = time.time()
            stop_at = time.monotonic() + arguments.seconds
            # Few at first, then more than it can draw.
            for number in range(12):
                threading.Timer(number * arguments.seconds / 20, client, (server.url, number, stop_at)).start()
            time.sleep(arguments.seconds + 12)
            shown = draw(http, arguments.path, time.time() - began)
    print(f"{shown} series in {arguments.path}")


if __name__ == "__main__":
    main()
