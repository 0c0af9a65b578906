"""What a request costs outside its stages, and who spends it: `python -m tests.performance.overhead`.

The service's own ASGI application under uvicorn in this process, with the bundled model. First plain times, by the
server's clock (`total` in `Server-Timing` less the stages) and by that of a bare `http.client`; then the same requests
with the event loop's thread under cProfile, summed by package. A profiled request is slower: read the shares, not the
milliseconds. The last line is JSON.
"""

from __future__ import annotations

import asyncio
import cProfile
import http.client
import json
import os
import pstats
import re
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

GOAL_OVERHEAD_SECONDS = 0.005
BODY = {"prompt": "a red circle", "image_size": "square_hd", "enable_safety_checker": False, "num_inference_steps": 2}
_PACKAGE = re.compile(r"site-packages/([^/]+)")


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that only answers: what is left is the network, uvicorn and the client."""
    if scope["type"] == "lifespan":
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


class Server:
    """An application in a thread of this process; its loop's thread can be profiled."""

    def __init__(self, app: ASGIApp) -> None:
        config = uvicorn.Config(app, port=0, log_level="warning", access_log=False)
        self._server = uvicorn.Server(config)
        self._profile = cProfile.Profile()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._server.serve(),), daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.05)
        self.port: int = self._server.servers[0].sockets[0].getsockname()[1]

    def profile(self, on: bool) -> cProfile.Profile:
        """Switch the profile of the loop's thread, in that thread."""
        switched = threading.Event()

        def switch() -> None:
            (self._profile.enable if on else self._profile.disable)()
            switched.set()

        self._loop.call_soon_threadsafe(switch)
        switched.wait()
        return self._profile

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()


def post(connection: http.client.HTTPConnection, route: str) -> tuple[float, bytes, http.client.HTTPResponse]:
    """Seconds of one request, and its answer."""
    payload = json.dumps(BODY)
    started = time.perf_counter()
    connection.request("POST", route, payload, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    elapsed = time.perf_counter() - started
    assert answer.status == 200, content
    return elapsed, content, answer


def bare_seconds(count: int = 200) -> float:
    """Median of a request to the bare application."""
    server = Server(bare)
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    seconds = statistics.median(post(connection, "/")[0] for _ in range(count))
    connection.close()
    server.stop()
    return seconds


def outside_stages(connection: http.client.HTTPConnection, route: str) -> tuple[float, float]:
    """Seconds of one request outside its stages: by the server's clock, by the client's."""
    elapsed, content, answer = post(connection, route)
    timings: dict[str, float] = json.loads(content)["timings"]
    stages = sum(seconds for stage, seconds in timings.items() if stage != "queue")
    measured = dict(re.findall(r"(\w+);dur=([\d.]+)", answer.headers["Server-Timing"]))
    return float(measured["total"]) / 1000 - stages, elapsed - stages


def by_package(profile: cProfile.Profile, requests: int) -> dict[str, float]:
    """Milliseconds of own time a request, by package; waiting for events is left out."""
    spent: Counter[str] = Counter()
    entries: dict[tuple[str, int, str], Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    for (file, _, name), (_, _, own, _, _) in entries.items():
        if "epoll" in name or "select" in name:
            continue
        package = _PACKAGE.search(file)
        if package:
            group = package[1]
        elif "sana_service" in file or file.endswith("service.py"):
            group = "this project"
        else:
            group = "built in" if file.startswith(("~", "<")) else "standard library"
        spent[group] += own
    return {group: round(own / requests * 1000, 3) for group, own in spent.most_common(12)}


def wait_until_ready(port: int) -> None:
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/readyz")
        if connection.getresponse().status == 200:
            return
        time.sleep(0.2)


def measure(count: int = 40) -> dict[str, Any]:
    """Medians and profile of a served copy."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"SANA_MODELS": "bundled", "SANA_STORAGE_URL": Path(folder).as_uri()}
        from service import Sana

        server = Server(Sana.to_asgi())  # type: ignore[attr-defined]
        wait_until_ready(server.port)
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        result: dict[str, Any] = {"bare_seconds": bare_seconds()}
        print(f"a bare application's answer: {result['bare_seconds'] * 1000:.2f} ms", flush=True)
        for route in ("/sprint", "/generate"):
            samples = [outside_stages(connection, route) for _ in range(count)]
            by_server, by_client = (statistics.median(clock) for clock in zip(*samples, strict=True))
            print(f"{route}: outside its stages {by_server * 1000:.2f} ms by the server's clock, "
                  f"{by_client * 1000:.2f} ms by the client's, medians of {count}", flush=True)  # fmt: skip
            result[route] = {"server_seconds": by_server, "client_seconds": by_client}
        server.profile(True)
        for _ in range(count):
            outside_stages(connection, "/sprint")
        profile = server.profile(False)
        result["profile_ms"] = by_package(profile, count)
        print("own time of the event loop's thread a request, by package, profiled:", result["profile_ms"])
        pstats.Stats(profile).sort_stats("tottime").print_stats(15)
        connection.close()
        server.stop()
    return result


def main() -> int:
    result = measure()
    added = {route: result[route]["client_seconds"] - result["bare_seconds"] for route in ("/sprint", "/generate")}
    print("seconds that the service adds to a bare answer, outside its stages:", added)
    met = max(added.values()) <= GOAL_OVERHEAD_SECONDS
    result["goal_met"] = met
    print(json.dumps(result))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
