"""From the start command to the first picture, several times."""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from loadtests import measure, scenario
from loadtests.contract import answer_faults
from loadtests.errors import HarnessError
from loadtests.schedule import Source

_POLL_SECONDS = 0.05
_STOP_SECONDS = 60.0


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def started(
    command: str,
    folder: Path | None = None,
    log: Path | None = None,
    environment: Mapping[str, str] | None = None,
    cores: Collection[int] | None = None,
) -> Iterator[tuple[str, Any]]:
    """A server, by a command with `{port}` in it; its address and process. SIGTERM at the end, then SIGKILL.

    The folder of this Python is searched first for commands.

    Args:
        command: what a shell executes.
        folder: where; here by default.
        log: file for what it prints; dropped by default.
        environment: its variables; this process's by default.
        cores: on which it runs; this process's by default.
    """
    port = free_port()
    variables = os.environ if environment is None else environment
    with (log or Path(os.devnull)).open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command.replace('{port}', shlex.quote(str(port)))}"],
            cwd=folder,
            env={**variables, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{variables.get('PATH', '')}"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        if cores is not None:
            # It has one thread yet; those that it starts inherit this.
            os.sched_setaffinity(process.pid, cores)
        yield f"http://127.0.0.1:{port}", process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(host: str, process: Any, path: str, limit_seconds: float) -> float:
    """Seconds until a path answers 200.

    Raises:
        HarnessError: the process ended, or the time is over.
    """
    import requests

    begun = time.perf_counter()
    while (waited := time.perf_counter() - begun) < limit_seconds:
        if process.poll() is not None:
            raise HarnessError(f"the server ended with code {process.returncode} before {path} was 200")
        with suppress(requests.RequestException):
            if requests.get(f"{host}{path}", timeout=limit_seconds).status_code == 200:
                return time.perf_counter() - begun
        time.sleep(_POLL_SECONDS)
    raise HarnessError(f"{path} was not 200 after {waited:.0f} s")


def cold_start(
    wanted: scenario.ColdStart,
    api_key: str,
    say: Any = print,
    environment: Mapping[str, str] | None = None,
    cores: Collection[int] | None = None,
) -> dict[str, Any]:
    """Start, ask for one picture, stop; as often as the scenario says.

    Raises:
        HarnessError: the server did not start.
    """
    starts = []
    for number in range(wanted.starts):
        with started(wanted.command, environment=environment, cores=cores) as (host, process):
            begun = time.perf_counter()
            wait_for(host, process, "/livez", wanted.limit_seconds)
            alive = time.perf_counter() - begun
            wait_for(host, process, "/readyz", wanted.limit_seconds)
            ready = time.perf_counter() - begun
            fault = _first_picture(host, api_key, wanted)
            first = time.perf_counter() - begun
        say(f"{wanted.name}, start {number + 1} of {wanted.starts}: ready after {ready:.2f} s")
        starts.append({"alive": alive, "ready": ready, "first_picture": first, "fault": fault})
    return {
        "scenario": wanted.model_dump(mode="json"),
        "starts": starts,
        "across": measure.across(
            [{name: each[name] for name in ("alive", "ready", "first_picture")} for each in starts]
        ),
        "failures": [f"the first picture: {each['fault']}" for each in starts if each["fault"]],
        "invalid": [],
    }


def _first_picture(host: str, api_key: str, wanted: scenario.ColdStart) -> str | None:
    import requests

    load = scenario.SingleStream(name=wanted.name, kind="single_stream", duration_seconds=1, requests=(wanted.first,))
    planned = Source(load, 0, secrets.token_hex(4)).planned(0)
    headers = {"Authorization": f"Key {api_key}"} if api_key else {}
    try:
        url = f"{host}/{planned.endpoint}"
        answer = requests.post(url, json=planned.body, headers=headers, timeout=wanted.limit_seconds)
        values = answer.json() if answer.status_code == 200 else None
    except (requests.RequestException, ValueError) as error:
        return type(error).__name__
    lowered = {name.lower(): value for name, value in answer.headers.items()}
    return next(answer_faults(answer.status_code, lowered, values, planned.expected), None)
