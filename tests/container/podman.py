"""Containers as a cautious operator starts them: no network, no root, no capabilities, two writable folders."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Neither curl nor wget is in the image; as compose.yaml and docs/deployment.md have it.
HEALTH_SCRIPT = """\
import os, urllib.error, urllib.request as u
try:
    u.urlopen("http://127.0.0.1:3000/livez", timeout=5)
except urllib.error.HTTPError as error:
    if error.code == 503:
        os.kill(1, 15)
    raise
u.urlopen("http://127.0.0.1:3000/readyz", timeout=5)
"""
HEALTH = f"python -c '{HEALTH_SCRIPT.strip()}'"
_UNIFIED = Path("/sys/fs/cgroup/unified")
_INSIDE = "CONTAINER_PROOF_NAMESPACE"


def call(*arguments: str, check: bool = True) -> str:
    """What a podman command prints.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run(["podman", *arguments], capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise RuntimeError(f"podman {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout + (done.stderr if not check else "")


def has_image(image: str) -> bool:
    """Whether podman's store has an image."""
    return subprocess.run(["podman", "image", "exists", image], check=False).returncode == 0


def enter_namespace() -> None:
    """Go on in a mount namespace of this process's own, without the second cgroup hierarchy that crun refuses."""
    if not _UNIFIED.is_mount() or os.environ.get(_INSIDE):
        return
    os.environ[_INSIDE] = "1"
    script = f'umount {_UNIFIED} && exec "$@"'
    os.execvp("unshare", ["unshare", "--mount", "sh", "-c", script, "sh", *sys.orig_argv])


@dataclass(frozen=True)
class Container:
    """A started container.

    Args:
        name: podman's.
        started: `time.monotonic()` of its start.
    """

    name: str
    started: float

    @classmethod
    def start(cls, name: str, image: str, volume: str, environ: dict[str, str]) -> Container:
        """Start the image with its root file system read-only, `/tmp` in memory and `/data` a volume."""
        started = time.monotonic()
        variables = {"BENTOML_HOME": "/tmp/bentoml", **environ}
        confinement = ("--network=none", "--read-only", "--cap-drop=all", "--security-opt=no-new-privileges")
        writable = ("--tmpfs=/tmp", f"--volume={volume}:/data")
        health = (f"--health-cmd={HEALTH}", "--health-interval=disable")
        settings = [f"--env={key}={value}" for key, value in variables.items()]
        call("run", "--detach", f"--name={name}", *confinement, *writable, *health, *_limits(), *settings, image)
        return cls(name, started)

    def restart(self) -> Container:
        """Stop it as an orchestrator would, and start it again with the same volume."""
        call("stop", "--time=120", self.name)
        started = time.monotonic()
        call("start", self.name)
        return Container(self.name, started)

    def wait_for(self, text: str, times: int = 1, seconds: float = 120.0) -> float:
        """Seconds from the start until the log has a text this often.

        Raises:
            RuntimeError: the container ended, or it never said so.
        """
        while self.log().count(text) < times:
            if self.state()["Status"] != "running" or time.monotonic() > self.started + seconds:
                raise RuntimeError(f"{self.name} never said {text!r}:\n{self.log()}")
            time.sleep(0.05)
        return time.monotonic() - self.started

    def log(self) -> str:
        return call("logs", self.name, check=False)

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(call("inspect", self.name))[0]["State"]
        return state

    def run(self, *command: str) -> str:
        """What a command prints inside."""
        return call("exec", self.name, *command, check=False)

    def healthy(self) -> bool:
        """What the documented health check says now."""
        return subprocess.run(["podman", "healthcheck", "run", self.name], check=False).returncode == 0

    def client(self, *arguments: str) -> subprocess.Popen[str]:
        """`tests.container.load` in the container's network, with this process's Python."""
        network = f"--net=/proc/{self.state()['Pid']}/ns/net"
        command = ["nsenter", network, sys.executable, "-m", "tests.container.load", *arguments]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def remove(self) -> None:
        call("rm", "--force", "--time=0", self.name, check=False)


def run_once(image: str, command: str) -> str:
    """What a shell command prints in a new container of an image, which is then removed."""
    options = ("--rm", "--network=none", "--entrypoint=sh", *_limits())
    return call("run", *options, image, "-c", command)


def _limits() -> list[str]:
    """Limits that a process without CAP_SYS_RESOURCE may ask for, and no control groups, which it may not make."""
    return [
        "--cgroups=disabled",
        *(
            f"--ulimit={name}={min(most, resource.getrlimit(kind)[1])}"
            for name, kind, most in (
                ("nofile", resource.RLIMIT_NOFILE, 20_000),
                ("nproc", resource.RLIMIT_NPROC, 4_000),
            )
        ),
    ]
