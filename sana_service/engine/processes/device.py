"""A process of a device: started, waited for, ended. What passes through it is `loop`'s business."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Protocol

from sana_service.engine.processes.loop import ProcessLoop
from sana_service.engine.processes.messages import Ready, Refused
from sana_service.engine.processes.pixels import PixelMemory

if TYPE_CHECKING:
    from sana_service.engine.admission import JobQueue
    from sana_service.engine.costs import Costs
    from sana_service.engine.device import LocalDevice
    from sana_service.engine.limits import Limits
    from sana_service.models.names import ModelName

_CHILD = "sana_service.engine.processes.child"


class DeviceSpec(Protocol):
    """How a device is built; pickled, and called in the device's own process."""

    def configure(self) -> None:
        """Set up the process itself, such as its log; called first."""

    def build(self) -> LocalDevice:
        """Load the models. Blocks. What it raises is told in one line and ends the process."""


class DeviceError(Exception):
    """A device's process cannot be used; the message is one line."""


class DeviceProcess:
    """A process that has begun to load its device; a `Device`.

    Args:
        name: of the device, such as "cuda:0".
        spec: how it is built.
    """

    def __init__(self, name: str, spec: DeviceSpec) -> None:
        self.name = name
        # Its own: to write where another process has written takes as long as to ask the system for memory.
        self.memory = PixelMemory()
        self._ready: Ready | None = None
        ours, theirs = socket.socketpair()
        with theirs:
            handles = (theirs.fileno(), self.memory.fd)
            self._process = subprocess.Popen(
                [sys.executable, "-m", _CHILD, *map(str, handles)],
                pass_fds=handles,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self.connection = Connection(ours.detach())
        with suppress(OSError):  # it has ended already, which `wait_ready` tells
            self.connection.send(spec)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self) -> Ready:
        """What it says once it is loaded; blocks until then.

        Raises:
            DeviceError: it cannot be used.
        """
        if self._ready is None:
            try:
                (said,) = self.connection.recv()
            except (EOFError, OSError) as error:
                raise DeviceError(f"the process of {self.name} ended while it loaded, {self.ending()}") from error
            if isinstance(said, Refused):
                raise DeviceError(said.reason)
            assert isinstance(said, Ready)
            self._ready = said
        return self._ready

    @property
    def limits(self) -> Limits:
        """Of the device; blocks until it is loaded."""
        return self.wait_ready().limits

    @property
    def names(self) -> Mapping[ModelName, str]:
        """What each model is called in an image's metadata; blocks until it is loaded."""
        return self.wait_ready().names

    def loop(self, number: int, queue: JobQueue, costs: Costs) -> ProcessLoop:
        return ProcessLoop(self, number, queue, costs)

    def ending(self) -> str:
        """How it ended, in words; blocks until it has."""
        code = self._process.wait()
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def join(self, timeout_seconds: float) -> bool:
        """Wait for its end; False, and it is killed, where that takes too long."""
        try:
            self._process.wait(max(0.0, timeout_seconds))
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        return True

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()


def start_devices(specs: Mapping[str, DeviceSpec]) -> list[DeviceProcess]:
    """A process for each device, all loaded at the same time. Blocks.

    Args:
        specs: by the device's name.

    Raises:
        DeviceError: a device cannot be used; no process is left then.
    """
    processes = [DeviceProcess(name, spec) for name, spec in specs.items()]
    loading = {process.connection: process for process in processes}
    try:
        while loading:
            # Whoever speaks first: one may load for minutes while another has failed.
            for said in wait(list(loading)):
                loading.pop(said).wait_ready()  # type: ignore[call-overload]
    except DeviceError:
        for process in processes:
            process.kill()
        raise
    return processes
