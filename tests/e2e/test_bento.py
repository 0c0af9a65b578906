"""A built Bento, served from another folder, in a network namespace where only the loopback exists."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.services import REPOSITORY, environment

UNSHARE = ("unshare", "--net", "--map-root-user")

# Runs inside the namespace: brings the loopback up, serves the Bento, asks both endpoints.
SCRIPT = """
import fcntl, io, json, socket, struct, sys
from pathlib import Path

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
    up_and_running = struct.pack("16sh14x", b"lo", 0x41)
    fcntl.ioctl(control, 0x8914, up_and_running)  # SIOCSIFFLAGS

repository, home, folder = sys.argv[1:]
sys.path.insert(0, repository)
from tests import services
sys.path.remove(repository)

command = ("bentoml", "serve", "sana:latest")
variables = {"BENTOML_HOME": home, "HF_HUB_OFFLINE": "0"}
with services.server(Path(folder), variables, command=command, cwd=Path(folder)) as server:
    answers = []
    with server.client() as http:
        for route in ("/generate", "/sprint"):
            answer = http.post(route, json={"prompt": "a red circle", "image_size": "square"})
            file = http.get(answer.json()["images"][0]["url"])
            answers.append({"status": answer.status_code, "file": file.content[:3].hex()})
print(json.dumps(answers))
"""


@pytest.fixture
def namespace() -> None:
    if shutil.which("unshare") is None or subprocess.run([*UNSHARE, "true"], check=False).returncode != 0:
        pytest.skip("network namespaces are not allowed here")


@pytest.mark.usefixtures("namespace")
def test_a_bento_serves_elsewhere_without_a_network(tmp_path: Path) -> None:
    home, folder = tmp_path / "home", tmp_path / "elsewhere"
    folder.mkdir()
    variables = environment(tmp_path, {"BENTOML_HOME": str(home)})
    built = subprocess.run(
        ["bentoml", "build", "--output", "tag"],
        cwd=REPOSITORY,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    contents = {path.name for path in next((home / "bentos" / "sana").glob("*/src")).iterdir()}
    assert contents == {"LICENSE", "README.md", "bentofile.yaml", "requirements.txt", "sana_service", "service.py"}
    _check_dockerfile(next((home / "bentos" / "sana").glob("*/env")))
    served = subprocess.run(
        [*UNSHARE, sys.executable, "-c", SCRIPT, str(REPOSITORY), str(home), str(folder)],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert served.returncode == 0, served.stderr
    answers: list[dict[str, Any]] = json.loads(served.stdout.splitlines()[-1])
    jpeg = "ffd8ff"
    assert answers == [{"status": 200, "file": jpeg}, {"status": 200, "file": jpeg}]


def _check_dockerfile(folder: Path) -> None:
    """No compiler but the one that the setup script may add, another user than root, and a hash for all but torch."""
    dockerfile = (folder / "docker" / "Dockerfile").read_text()
    assert "apt-get" not in dockerfile
    assert "build-essential" not in dockerfile
    assert re.search(r"pip install .*--require-hashes", dockerfile)
    assert dockerfile.rindex("USER bentoml") > dockerfile.rindex("RUN ")
    requirements = (folder / "python" / "requirements.txt").read_text().replace("\\\n", " ")
    pinned = [line for line in requirements.splitlines() if line.strip() and not line.startswith("#")]
    assert len(pinned) > 50
    hashed = {line.split()[0] for line in pinned if "--hash=sha256:" in line}
    # BentoML names itself once more, without a hash.
    assert {line.partition("==")[0] for line in pinned if line.split()[0] not in hashed} == {"torch"}
