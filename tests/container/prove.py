"""Builds the image and shows that it serves: `python -m tests.container.prove`, as root on Debian with podman.

Base image, Bento, image; what is in it; start without network on a read-only root file system; both endpoints; restart;
SIGTERM under load. Prints a line with its time for each and one line of JSON at the end; the exit code is 1 where
anything is not as it should be. With `--cuda` the image with PyPI's torch is built and measured, too, and not started.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sana_service.container import BASE_IMAGE
from tests.container import base, image, podman

NAME = "sana-proof"
IMAGE, CUDA_IMAGE = f"localhost/{NAME}:cpu", f"localhost/{NAME}:cuda"
TOOLS = ("podman", "buildah", "crun", "debootstrap", "nsenter", "unshare")
ENVIRON = {"SANA_STORAGE_URL": "file:///data/files", "SANA_JOBS_URL": "sqlite:///data/jobs.db"}
LOADED_SECONDS = 6.0

Result = TypeVar("Result")


class Proof:
    """Collects timings and faults."""

    def __init__(self) -> None:
        self.summary: dict[str, Any] = {"seconds": {}}
        self.faults: list[str] = []

    def step(self, name: str, work: Callable[[], Result]) -> Result:
        started = time.monotonic()
        result = work()
        seconds = round(time.monotonic() - started, 2)
        self.summary["seconds"][name] = seconds
        print(f"{seconds:8.2f} s  {name}", flush=True)
        return result

    def told(self, name: str, seconds: float) -> None:
        self.summary["seconds"][name] = round(seconds, 2)
        print(f"{seconds:8.2f} s  {name}", flush=True)

    def expect(self, *faults: str) -> None:
        for fault in faults:
            print(f"   FAULT    {fault}", flush=True)
        self.faults += faults


def main() -> int:
    """Prove, and say so."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuda", action="store_true", help="build the image for CUDA, too (several gigabytes)")
    parser.add_argument("--image", help="prove this image of podman's store instead of building one")
    parser.add_argument("--keep", action="store_true", help="leave the built images in podman's store")
    arguments = parser.parse_args()
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        print(f"needs root and, from Debian, {' '.join(TOOLS)}; missing here: {' '.join(missing) or 'root'}")
        return 2
    podman.enter_namespace()
    proof = Proof()
    with tempfile.TemporaryDirectory(prefix="sana-proof-") as folder:
        home = Path(folder)
        (home / "home").mkdir()
        os.environ["CONTAINERS_CONF"] = str(_configuration(home))
        with contextlib.ExitStack() as stack:
            if arguments.image is None:
                proof.step("base image", lambda: stack.enter_context(base.made(BASE_IMAGE)))
                if not arguments.keep:
                    stack.callback(podman.call, "rmi", "--force", IMAGE, CUDA_IMAGE, check=False)
                _build(proof, home / "home", cuda=arguments.cuda)
            stack.callback(podman.call, "volume", "rm", "--force", NAME, check=False)
            stack.callback(podman.call, "rm", "--force", "--time=0", NAME, check=False)
            _serve(proof, arguments.image or IMAGE)
    print(json.dumps({"ok": not proof.faults, **proof.summary, "faults": proof.faults}))
    return 1 if proof.faults else 0


def _configuration(folder: Path) -> Path:
    """Podman's own limits may be above what this process may set."""
    path = folder / "containers.conf"
    path.write_text("[containers]\ndefault_ulimits = []\n")
    return path


def _build(proof: Proof, home: Path, *, cuda: bool) -> None:
    sizes = proof.summary["image_bytes"] = {}
    sizes["base"] = image.size_bytes(BASE_IMAGE)
    bento = proof.step("bentoml build", lambda: image.build_bento(home))
    with image.torch_page() as page:
        proof.step("bentoml containerize, CPU", lambda: image.build_image(home, bento, IMAGE, page))
    sizes["cpu"] = image.size_bytes(IMAGE)
    if cuda:
        proof.step("bentoml containerize, CUDA", lambda: image.build_image(home, bento, CUDA_IMAGE, None))
        sizes["cuda"] = image.size_bytes(CUDA_IMAGE)
        proof.expect(*image.cuda_faults(CUDA_IMAGE))
    for name, size in sizes.items():
        print(f"{size / 1e6:8.0f} MB {name} image", flush=True)


def _serve(proof: Proof, name: str) -> None:
    container = podman.Container.start(NAME, name, NAME, ENVIRON)
    proof.told("start to the address", container.wait_for("listening on http://localhost:3000"))
    proof.told("start to ready", container.wait_for("ready after"))
    proof.expect(*image.faults(name, container), *image.confinement_faults(container))
    if not container.healthy():
        proof.expect("the health check fails")
    first = proof.step("a picture on each endpoint", lambda: _ask(container))
    names = [first[route]["name"] for route in ("/generate", "/sprint")]
    _check_answers(proof, first)
    container = proof.step("restart", container.restart)
    proof.told("restart to ready", container.wait_for("ready after", times=2))
    again = _ask(container, *names)
    _check_answers(proof, again)
    for route, file in zip(("/generate", "/sprint"), names, strict=True):
        if again["old"][file] != [200, first[route]["sha256"]]:
            proof.expect(f"the file of {route} did not outlive the restart")
        if again[route]["sha256"] != first[route]["sha256"]:
            proof.expect(f"{route} draws the same seed otherwise after the restart")
    _drain(proof, container)


def _ask(container: podman.Container, *names: str) -> dict[str, Any]:
    with container.client("ask", *names) as client:
        output, _ = client.communicate(timeout=120)
    told: dict[str, Any] = json.loads(output)
    return told


def _check_answers(proof: Proof, told: dict[str, Any]) -> None:
    for route in ("/generate", "/sprint"):
        answer = told[route]
        if (answer["status"], answer["units"], answer["jpeg"]) != (200, "1", True):
            proof.expect(f"{route} answered {answer}")


def _drain(proof: Proof, container: podman.Container) -> None:
    """SIGTERM in the middle of a steady load: whatever was sent before it is answered with a picture."""
    with container.client("load") as client:
        assert client.stdout is not None
        assert client.stdin is not None
        assert client.stdout.readline() == "started\n"
        time.sleep(LOADED_SECONDS)
        signalled = time.time()
        podman.call("kill", "--signal=TERM", container.name)
        code = int(podman.call("wait", container.name))
        drained = time.time() - signalled
        client.stdin.close()
        records = json.loads(client.stdout.read())
    before = Counter(record["outcome"] for record in records if record["sent"] < signalled)
    after = Counter(record["outcome"] for record in records if record["sent"] >= signalled)
    in_flight = sum(record["sent"] < signalled <= record["answered"] for record in records)
    proof.told("SIGTERM to the end", drained)
    proof.summary["drain"] = {"exit_code": code, "in_flight": in_flight, "before": before, "after": after}
    print(
        f"            {in_flight} requests in flight at SIGTERM; before {dict(before)}, after {dict(after)}", flush=True
    )
    if set(before) != {"200"} or not in_flight:
        proof.expect(f"of the requests before SIGTERM, {dict(before)} with {in_flight} in flight")
    if code != 0:
        proof.expect(f"the container ended with {code}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RuntimeError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)
