"""Samples of the machine while a run lasts: the server's memory, and the GPU through NVML when it is local."""

from __future__ import annotations

import contextlib
import importlib
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import gevent
import psutil

_LOCAL = {"127.0.0.1", "localhost", "::1"}
_EVERY_SECONDS = 1.0


@dataclass(frozen=True)
class Sample:
    """One look; None where it could not be seen.

    Args:
        at: seconds since the run's monitor began.
        server_rss_bytes: of the server's process and all below it.
        gpu_utilisation: 0 to 1, mean over the GPUs.
        gpu_memory_bytes: in use, sum over the GPUs.
        gpu_watts: sum over the GPUs.
    """

    at: float
    server_rss_bytes: int | None
    gpu_utilisation: float | None
    gpu_memory_bytes: int | None
    gpu_watts: float | None


def listening_process(host: str) -> int | None:
    """The process that listens on a local host's port, None if it cannot be known."""
    parts = urlsplit(host)
    if parts.hostname not in _LOCAL or parts.port is None:
        return None
    with contextlib.suppress(psutil.Error, OSError):
        listening = [
            int(connection.pid)
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == parts.port and connection.pid
        ]
        # A supervisor is older than its workers, which inherit its socket.
        return min(listening, default=None)
    return None


def family_of(pid: int) -> list[psutil.Process]:
    """A process and all below it. Reads every process of the machine, so it is asked once for a run."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def resident_bytes(family: list[psutil.Process]) -> int | None:
    """Resident memory of some processes; None when the first of them has ended."""
    with contextlib.suppress(psutil.Error):
        return sum(member.memory_info().rss for member in family if member.is_running()) if family else None
    return None


class Gpus:
    """The GPUs of this machine, none if NVML or its Python package is not there."""

    def __init__(self) -> None:
        self._handles: list[Any] = []
        self._nvml: Any = None
        with contextlib.suppress(Exception):
            self._nvml = importlib.import_module("pynvml")
            self._nvml.nvmlInit()
            count = self._nvml.nvmlDeviceGetCount()
            self._handles = [self._nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]

    def look(self) -> tuple[float | None, int | None, float | None]:
        """Utilisation, memory in bytes, power in watts."""
        if not self._handles:
            return None, None, None
        try:
            use = [self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100 for handle in self._handles]
            memory = [self._nvml.nvmlDeviceGetMemoryInfo(handle).used for handle in self._handles]
            watts = [self._nvml.nvmlDeviceGetPowerUsage(handle) / 1000 for handle in self._handles]
        except self._nvml.NVMLError:
            return None, None, None
        return sum(use) / len(use), int(sum(memory)), float(sum(watts))

    def describe(self) -> dict[str, Any] | None:
        """Names and driver, for a report."""
        if not self._handles:
            return None
        names = [self._nvml.nvmlDeviceGetName(handle) for handle in self._handles]
        return {"gpus": [_text(name) for name in names], "driver": _text(self._nvml.nvmlSystemGetDriverVersion())}


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


class Monitor:
    """Looks once a second, in a greenlet of its own; the look itself in a thread, so that it delays nobody.

    Args:
        host: the server.
        pid: its process, found by the port if None.
    """

    def __init__(self, host: str, pid: int | None = None) -> None:
        self._host = host
        self._pid = pid
        self._gpus = Gpus() if urlsplit(host).hostname in _LOCAL else None
        self._samples: list[Sample] = []
        self._greenlet: Any = None

    def begin(self) -> None:
        self._samples = []
        pid = self._pid or listening_process(self._host)
        self._greenlet = gevent.spawn(self._watch, family_of(pid) if pid else [], time.perf_counter())

    def end(self) -> list[Sample]:
        self._greenlet.kill()
        return self._samples

    def _watch(self, family: list[psutil.Process], started: float) -> None:
        threads = gevent.get_hub().threadpool
        while True:
            self._samples.append(threads.spawn(self._look, family, started).get())
            gevent.sleep(_EVERY_SECONDS)

    def _look(self, family: list[psutil.Process], started: float) -> Sample:
        gpu = self._gpus.look() if self._gpus else (None, None, None)
        return Sample(time.perf_counter() - started, resident_bytes(family), *gpu)
