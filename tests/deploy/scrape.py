"""A real Prometheus beside a running service."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import yaml

from tests import services
from tests.deploy.tools import DEPLOY, tool

KEY = "a key for Prometheus alone"
PATIENCE_SECONDS = 60.0


@contextlib.contextmanager
def prometheus(folder: Path, target: str) -> Iterator[httpx.Client]:
    """Prometheus with the project's own configuration, but for addresses, the key's place and the pace."""
    configuration = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text())
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    [scrape] = configuration["scrape_configs"]
    scrape["authorization"]["credentials_file"] = str(folder / "key")
    scrape["static_configs"] = [{"targets": [target.removeprefix("http://")]}]
    (folder / "key").write_text(KEY)
    (folder / "alerts.yaml").write_text((DEPLOY / "prometheus" / "alerts.yaml").read_text())
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration))
    address = f"127.0.0.1:{services.free_port()}"
    command = [tool("prometheus"), f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("w") as log:
        started = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=10) as http:
            ready = until(lambda: http.get("/-/ready"), lambda answer: answer.status_code == 200)
            assert ready.status_code == 200, (folder / "log").read_text()
            yield http
    finally:
        started.terminate()
        started.wait(30)


def until(answer, met):
    """The first answer that is good enough, or the last one."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        with contextlib.suppress(httpx.TransportError):
            if met(last := answer()) or time.monotonic() > deadline:
                return last
        assert time.monotonic() < deadline, "no answer at all"
        time.sleep(0.2)
