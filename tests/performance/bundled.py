"""How fast the bundled pair is, and how much it holds: `python -m tests.performance.bundled`, on an idle machine.

The service is started as `make serve` does, and both endpoints are called with the model's own size and steps, one
request at a time, a new prompt each; a client's time, HTTP and encoding included.
"""

from __future__ import annotations

import json
import re
import statistics
import tempfile
import time
from pathlib import Path

import psutil

from tests import services
from tests.chaos.processes import holdings, worker_of

SIZE = {"width": 1024, "height": 1024}
REQUESTS = 15


def main() -> None:
    """Measure and print."""
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        with services.server(Path(folder), {"SANA_MODELS": "bundled"}) as server, server.client() as http:
            found["ready_after_seconds"] = round(time.perf_counter() - started, 1)
            for route in ("/generate", "/sprint"):
                took, stages = [], []
                for number in range(REQUESTS):
                    body = {"prompt": f"{number + 2} red circles on a blue background", "image_size": SIZE}
                    began = time.perf_counter()
                    answer = http.post(route, json=body)
                    took.append(time.perf_counter() - began)
                    answer.raise_for_status()
                    stages.append(dict(re.findall(r"(\w+);dur=([\d.]+)", answer.headers["server-timing"])))
                found[route] = {
                    "seconds": {"median": round(statistics.median(took), 3), "worst": round(max(took), 3)},
                    "median_stage_ms": {
                        name: round(statistics.median(float(one[name]) for one in stages), 1) for name in stages[0]
                    },
                }
            tree = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
            found["rss_mb"] = {
                "worker": round(holdings(worker_of(server.process.pid)).rss_mb),
                "all": round(sum(holdings(one).rss_mb for one in tree)),
            }
            found["load_seconds"] = float(re.findall(r"models loaded on cpu in ([\d.]+) s", server.log)[0])
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
