"""One server with faults on demand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests import services

COMMAND = ("bentoml", "serve", "tests.chaos.faulty:Sana")


@dataclass(frozen=True)
class Faulty:
    """A server, and the switches of its faults."""

    server: services.Server
    folder: Path

    def on(self, fault: str, value: str = "") -> None:
        (self.folder / fault).write_text(value)

    def off(self, fault: str) -> None:
        (self.folder / fault).unlink(missing_ok=True)

    def is_on(self, fault: str) -> bool:
        return (self.folder / fault).exists()

    def client(self) -> httpx.Client:
        return self.server.client()

    def files(self) -> set[str]:
        """Stored images, and what is left of failed writes."""
        return {path.name for path in self.server.storage.iterdir()}


@pytest.fixture(scope="session")
def faulty(tmp_path_factory: pytest.TempPathFactory, pair_variables: dict[str, str]) -> Iterator[Faulty]:
    with faulty_server(tmp_path_factory.mktemp("faulty"), pair_variables) as running:
        yield running


@contextlib.contextmanager
def faulty_server(folder: Path, pair_variables: dict[str, str]) -> Iterator[Faulty]:
    """One of its own, for a fault that a server does not survive."""
    switches = folder / "switches"
    switches.mkdir()
    variables = {**pair_variables, "FAULTS_FOLDER": str(switches), "SANA_REQUEST_TIMEOUT_SECONDS": "30"}
    with services.server(folder / "server", variables, command=COMMAND) as running:
        yield Faulty(running, switches)
