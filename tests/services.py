"""Real servers for tests: `bentoml serve` as a process of its own, on a port of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

REPOSITORY = Path(__file__).resolve().parents[1]
START_SECONDS = 120.0
_POLL_SECONDS = 0.1


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@dataclass(frozen=True)
class Server:
    """A running server.

    Args:
        url: scheme, host and port.
        process: its supervisor.
        log_path: what it printed.
        storage: the folder of its images.
    """

    url: str
    process: subprocess.Popen[bytes]
    log_path: Path
    storage: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def client(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120, **options)  # type: ignore[arg-type]

    def first_answer(self, path: str, status: int = 200, seconds: float = START_SECONDS) -> httpx.Response:
        """Ask until the answer has this status."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.log}")
            with contextlib.suppress(httpx.TransportError):
                answer = httpx.get(f"{self.url}{path}", timeout=60)
                if answer.status_code == status:
                    return answer
            time.sleep(_POLL_SECONDS)
        raise RuntimeError(f"{path} was not {status} after {seconds} s:\n{self.log}")

    def wait_until_ready(self) -> None:
        self.first_answer("/readyz")

    def stop(self, seconds: float = 30.0) -> int:
        """SIGTERM, as an orchestrator sends it; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


def environment(folder: Path, variables: Mapping[str, str]) -> dict[str, str]:
    """The environment of a server that shares nothing with another."""
    own = ("SANA_", "BENTOML_", "MALLOC_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return inherited | {
        "BENTOML_HOME": str(folder / "bentoml"),
        "SANA_STORAGE_URL": (folder / "files").as_uri(),
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "default",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **variables,
    }


@contextlib.contextmanager
def process(
    folder: Path,
    variables: Mapping[str, str],
    command: Sequence[str] = ("bentoml", "serve", "service:Sana"),
    cwd: Path = REPOSITORY,
    port: int | None = None,
) -> Iterator[Server]:
    """A server that has been started and may not be ready; killed at the end.

    Args:
        folder: an empty folder for its state.
        variables: its `SANA_` variables.
        command: what starts it; `--port N` is added.
        port: where it listens; a free one otherwise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    log_path = folder / "server.log"
    with log_path.open("wb") as log:
        started = subprocess.Popen(
            [*command, "--port", str(port)],
            cwd=cwd,
            env=environment(folder, variables),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Server(f"http://127.0.0.1:{port}", started, log_path, folder / "files")
    finally:
        kill(started)


def kill(started: subprocess.Popen[bytes]) -> None:
    """The supervisor and its workers, which lead sessions of their own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(started.pid).children(recursive=True):
            child.kill()
    started.kill()
    started.wait()


@contextlib.contextmanager
def server(folder: Path, variables: Mapping[str, str], **options: object) -> Iterator[Server]:
    """A server that is ready."""
    with process(folder, variables, **options) as running:  # type: ignore[arg-type]
        running.wait_until_ready()
        yield running
