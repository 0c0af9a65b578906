"""The processes: Redis, an S3 server, replicas, and HAProxy with the project's own configuration."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests import services

KEY = "a-key-that-all-replicas-know"
REPLICAS = 3
BUCKET = "images"
CONFIGURATION = services.REPOSITORY / "deploy" / "haproxy.cfg"


def missing_tools() -> list[str]:
    """What has to be installed first, from Debian."""
    redis = () if shutil.which("valkey-server") else ("redis-server",)
    return [tool for tool in ("haproxy", *redis) if shutil.which(tool) is None]


@dataclass
class Replica:
    """One replica, which may be started again at its address.

    Args:
        number: from 1.
        port: of the loopback interface.
        folder: for its state.
        variables: its settings.
    """

    number: int
    port: int
    folder: Path
    variables: dict[str, str]
    server: services.Server | None = None
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _starts: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and do not wait."""
        self._starts += 1
        folder = self.folder / str(self._starts)
        self.server = self._stack.enter_context(services.process(folder, self.variables, port=self.port))

    def wait_until_ready(self) -> None:
        assert self.server is not None
        self.server.wait_until_ready()

    def kill(self) -> None:
        """SIGKILL, to its supervisor and its worker at once, as when a machine goes."""
        assert self.server is not None
        services.kill(self.server.process)

    def drain(self) -> int:
        """SIGTERM; the exit code, once it has ended."""
        assert self.server is not None
        return self.server.stop(60)

    def hang(self) -> None:
        """Stop every thread where it is; the kernel still takes connections for it."""
        for process in self._processes():
            process.suspend()

    def wake(self) -> None:
        for process in self._processes():
            process.resume()

    def _processes(self) -> list[psutil.Process]:
        assert self.server is not None
        supervisor = psutil.Process(self.server.process.pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def close(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self.wake()
        self._stack.close()


@dataclass(frozen=True)
class Farm:
    """Everything that runs.

    Args:
        url: the balancer's.
        replicas: behind it.
        s3: a client of the S3 server.
        balancer_log: a line for each request.
    """

    url: str
    replicas: list[Replica]
    s3: Any
    balancer_log: Path

    def stored(self) -> set[str]:
        """Names of the images in the bucket."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return {entry["Key"].rpartition("/")[2] for page in pages for entry in page.get("Contents", [])}


@contextlib.contextmanager
def farm(folder: Path, pair: dict[str, str]) -> Iterator[Farm]:
    """Replicas on a quick pair of models, ready, behind the balancer.

    Args:
        folder: an empty one.
        pair: settings that name the models.
    """
    with contextlib.ExitStack() as stack:
        redis_port, s3_port, public_port = (services.free_port() for _ in range(3))
        binary = shutil.which("valkey-server") or "redis-server"
        stack.enter_context(_running([binary, "--port", str(redis_port), "--bind", "127.0.0.1", "--save", ""], folder))
        moto = str(Path(sys.executable).with_name("moto_server"))
        stack.enter_context(_running([moto, "-H", "127.0.0.1", "-p", str(s3_port)], folder))
        aws = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3_port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        s3 = _bucket(aws)
        keys = folder / "keys"
        keys.write_text(f"{KEY}\n")
        url = f"http://127.0.0.1:{public_port}"
        variables = {
            **pair,
            **aws,
            "SANA_STORAGE_URL": f"s3://{BUCKET}/made",
            "SANA_JOBS_URL": f"redis://127.0.0.1:{redis_port}/0",
            "SANA_API_KEYS_FILE": str(keys),
            "SANA_PUBLIC_URL": url,
            "SANA_REQUEST_TIMEOUT_SECONDS": "60",
            "OMP_NUM_THREADS": "1",
        }
        replicas = [
            Replica(number, services.free_port(), folder / f"replica{number}", variables)
            for number in range(1, REPLICAS + 1)
        ]
        for replica in replicas:
            stack.callback(replica.close)
            replica.start()
        for replica in replicas:
            replica.wait_until_ready()
        log = folder / "haproxy.log"
        stack.enter_context(balancer(log, public_port, [replica.port for replica in replicas]))
        _wait_for(lambda: httpx.get(f"{url}/readyz").status_code == 200)
        yield Farm(url, replicas, s3, log)


@contextlib.contextmanager
def balancer(log: Path, port: int, replica_ports: list[int]) -> Iterator[None]:
    """HAProxy with the project's configuration, as soon as it listens.

    Args:
        log: a file for its log, in a folder that is there.
        port: where it listens.
        replica_ports: of the loopback interface, one for each replica.
    """
    addresses = {f"SANA_REPLICA_{number}": f"127.0.0.1:{one}" for number, one in enumerate(replica_ports, start=1)}
    environ = {**os.environ, **addresses, "SANA_BIND": f"127.0.0.1:{port}"}
    with _running(["haproxy", "-db", "-f", str(CONFIGURATION)], log.parent, environ, log):
        _wait_for(lambda: httpx.get(f"http://127.0.0.1:{port}/livez").status_code > 0)
        yield


@contextlib.contextmanager
def _running(
    command: list[str], folder: Path, environ: dict[str, str] | None = None, log: Path | None = None
) -> Iterator[None]:
    with (log or folder / f"{Path(command[0]).name}.log").open("wb") as output:
        started = subprocess.Popen(command, cwd=folder, env=environ, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        started.kill()
        started.wait()


def _bucket(aws: dict[str, str]) -> Any:
    import boto3

    s3 = boto3.client(
        "s3",
        endpoint_url=aws["AWS_ENDPOINT_URL"],
        aws_access_key_id=aws["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=aws["AWS_SECRET_ACCESS_KEY"],
        region_name=aws["AWS_DEFAULT_REGION"],
    )
    _wait_for(lambda: httpx.get(aws["AWS_ENDPOINT_URL"] + "/moto-api/").status_code == 200)
    s3.create_bucket(Bucket=BUCKET)
    return s3


def _wait_for(answered: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx.TransportError):
            if answered():
                return
        if time.monotonic() > deadline:
            raise RuntimeError("a server of the proof did not answer")
        time.sleep(0.05)
