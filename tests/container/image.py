"""The Bento and its image, as README and docs/deployment.md tell to make them, and what must not be in it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from sana_service import __version__
from sana_service.container import BASE_IMAGE
from tests.container import podman
from tests.services import REPOSITORY

PYTORCH_CPU_PAGE = "https://download.pytorch.org/whl/cpu/torch/"
LABELS = {
    "org.opencontainers.image.title": "sana",
    "org.opencontainers.image.description": "Text to image with NVIDIA's Sana and SANA-Sprint",
    "org.opencontainers.image.licenses": "Apache-2.0",
    "org.opencontainers.image.version": __version__,
}
COMPILERS = ("cc", "gcc", "g++", "c++", "clang", "make", "git", "ld")
SOURCE_FILES = {"LICENSE", "README.md", "bentofile.yaml", "requirements.txt", "sana_service", "service.py"}


def build_bento(home: Path) -> str:
    """The tag of a newly built Bento."""
    printed = _bentoml(home, "build", "--output", "tag")
    return printed.strip().splitlines()[-1].removeprefix("__tag__:")


def build_image(home: Path, bento: str, name: str, torch_page: str | None) -> None:
    """`bentoml containerize` with podman; without a page torch is PyPI's, which is the one for CUDA."""
    options = ["network=host", "isolation=chroot", *(f"label={key}={value}" for key, value in LABELS.items())]
    if torch_page is not None:
        options.append(f"build-arg=UV_FIND_LINKS={torch_page}")
    arguments = [argument for option in options for argument in ("--opt", option)]
    _bentoml(home, "containerize", bento, "--backend", "podman", *arguments, "-t", name)


def _bentoml(home: Path, *arguments: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environ = {**os.environ, "PATH": path, "BENTOML_HOME": str(home), "BUILDAH_ISOLATION": "chroot"}
    done = subprocess.run(
        ["bentoml", *arguments], cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"bentoml {arguments[0]} failed:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


@contextlib.contextmanager
def torch_page() -> Iterator[str]:
    """A page with the CPU builds of torch: of a folder that pip is configured with, else PyTorch's own."""
    asked = [sys.executable, "-m", "pip", "config", "get", "global.find-links"]
    configured = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    folder = os.environ.get("PIP_FIND_LINKS") or configured
    if not folder or not any(Path(folder).glob("torch-*+cpu-*.whl")):
        yield PYTORCH_CPU_PAGE
        return
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def size_bytes(name: str) -> int:
    return int(json.loads(podman.call("image", "inspect", name))[0]["Size"])


def faults(name: str, container: podman.Container) -> list[str]:
    """What is wrong with the image, in words; empty when nothing is."""
    described = json.loads(podman.call("image", "inspect", name))[0]
    found = [f"label {key} is missing" for key, value in LABELS.items() if described["Labels"].get(key) != value]
    if described["Config"]["User"] != "bentoml":
        found.append(f"the user is {described['Config'].get('User')}")
    # Triton cannot do without one.
    tools = () if container.run("python", "-c", "import triton").strip() == "" else COMPILERS
    found += [f"{tool} is installed" for tool in tools if container.run("sh", "-c", f"command -v {tool}").strip()]
    source = set(container.run("ls", "/home/bentoml/bento/src").split())
    if source != SOURCE_FILES:
        found.append(f"the source is {sorted(source)}")
    unwanted = container.run(
        "find", "/home/bentoml", "-name", "test*", "-o", "-name", "*.pem", "-o", "-name", "*.key", "-o", "-name", ".env"
    )
    found += [f"{path} is in it" for path in unwanted.split()]
    secret = added_secrets(described["Config"]["Env"], _base_variables())
    return found + [f"the variable {name} is in it" for name in secret]


def added_secrets(variables: list[str], base: list[str]) -> list[str]:
    """Names of an image's variables that sound secret and that its base has not; Python's own has a GPG_KEY.

    Args:
        variables: `NAME=value`, of the image.
        base: the same of the image that it was built on.
    """
    inherited = {entry.partition("=")[0] for entry in base}
    names = [entry.partition("=")[0] for entry in variables]
    return [
        name
        for name in names
        if name not in inherited and any(word in name.upper() for word in ("TOKEN", "SECRET", "KEY", "PASSWORD"))
    ]


def _base_variables() -> list[str]:
    """Of the base image; none where podman's store lacks it, as with an image from elsewhere."""
    described = json.loads(podman.call("image", "inspect", BASE_IMAGE)) if podman.has_image(BASE_IMAGE) else []
    return [entry for one in described for entry in one["Config"].get("Env") or []]


def cuda_faults(name: str) -> list[str]:
    """What the image for CUDA lacks, as far as that shows without a device."""
    script = "python -c 'import torch, triton; print(torch.version.cuda)'; command -v gcc"
    cuda, compiler, *_ = [*podman.run_once(name, script).splitlines(), "", ""]
    found = [] if re.fullmatch(r"\d+\.\d+", cuda) else [f"its torch is built for CUDA {cuda!r}"]
    return found if compiler.endswith("gcc") else [*found, "Triton finds no compiler"]


def confinement_faults(container: podman.Container) -> list[str]:
    """Where the running container may do more than it should."""
    found = []
    identity, _, status = container.run("sh", "-c", "id -u; cat /proc/1/status").partition("\n")
    if identity != "1034":
        found.append(f"it runs as user {identity}")
    if "CapEff:\t0000000000000000" not in status or "NoNewPrivs:\t1" not in status:
        found.append("it has capabilities, or may get some")
    for folder in ("/", "/home/bentoml", "/app/.venv"):
        if "Read-only file system" not in container.run("touch", f"{folder}/x"):
            found.append(f"{folder} is writable")
    interfaces = container.run("sh", "-c", "ls /sys/class/net").split()
    return found if interfaces == ["lo"] else [*found, f"its network has {interfaces}"]
