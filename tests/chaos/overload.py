"""Twice to ten times more than the server can do: does it do as much as it can, answer its probes, and recover?

    python -m tests.chaos.overload --out results/overload.json

Server and load share the machine's cores. Capacity is measured with four clients that wait for their answers; then
requests arrive at 2, 5 and 10 times that rate without waiting for anybody, and after the last of them at half of it.
Goodput is answers with pictures within the deadline, a second. The service has recovered when from then on every
request is answered 200.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

import httpx

from tests import services
from tests.chaos.load import Target, capacity, open_loop, percentile, poisson, probe

PATH = "/sprint"
BODY = {"prompt": "a red circle on a blue background", "image_size": "square_hd"}
DEADLINE_SECONDS = 4.0
FACTORS = (2, 5, 10)
PROBES = ("/readyz", "/livez")
AFTER_SECONDS = 12.0


async def measure(url: str, seconds: float) -> dict[str, Any]:
    """Capacity, then each factor, then the time after."""
    target = Target(url)
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        for _ in range(3):
            drawn = (await http.post(PATH, json=BODY)).json()["images"][0]["file_name"]
    seldom = ("/metrics", "/openapi.json", f"/files/{drawn}")
    most = await capacity(target, PATH, BODY, seconds)
    rows = []
    for factor in FACTORS:
        ended = asyncio.Event()
        probing = asyncio.create_task(probe(target, PROBES, 0.1, ended, seldom))
        dues = poisson([(most * factor, seconds), (most / 2, AFTER_SECONDS)], factor)
        samples = await open_loop(target, PATH, BODY, dues)
        ended.set()
        probes = await probing
        served = [one for one in samples if one.status == 200 and one.seconds <= DEADLINE_SECONDS + 1]
        # Not the first second, in which the queue fills.
        goodput = sum(1 < one.done <= seconds for one in served) / (seconds - 1)
        bad = [one.due - seconds for one in samples if one.due > seconds and one.status != 200]
        rows.append({
            "factor": factor,
            "goodput_share": round(goodput / most, 3),
            "statuses": {str(status): sum(one.status == status for one in samples)
                         for status in sorted({one.status for one in samples})},
            "recovered_after_seconds": round(max(bad, default=0.0), 2),
            "p99_seconds": {"/".join(path.split("/")[:2]): round(percentile(took, 0.99), 4)
                            for path, took in probes["latencies"].items()},
            "probes_not_200": len(probes["odd"]),
        })  # fmt: skip
    return {"capacity_per_second": round(most, 3), "deadline_seconds": DEADLINE_SECONDS, "overload": rows}


def main() -> None:
    """Start a server on the bundled model, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each load")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        variables = {"SANA_MODELS": "bundled", "SANA_REQUEST_TIMEOUT_SECONDS": str(DEADLINE_SECONDS)}
        with services.server(Path(folder), variables) as server:
            found = asyncio.run(measure(server.url, options.seconds))
    text = json.dumps(found, indent=2)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
