"""Servers that foreign clients are pointed at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients.tls import SecureServer, secure_server
from tests.services import free_port


@pytest.fixture(scope="session")
def webhook_port() -> int:
    """Where webhooks may go, once somebody listens there."""
    return free_port()


@pytest.fixture(scope="session")
def fal_server(
    tmp_path_factory: pytest.TempPathFactory, pair_variables: dict[str, str], webhook_port: int
) -> Iterator[SecureServer]:
    """A quick server over TLS with one API key; one job at a time, so that others wait."""
    folder = tmp_path_factory.mktemp("fal")
    (folder / "keys").write_text("test-key\n")
    variables = {
        **pair_variables,
        "SANA_API_KEYS_FILE": str(folder / "keys"),
        "SANA_JOBS_CONCURRENCY": "1",
        "SANA_WEBHOOK_HOSTS": f"http://127.0.0.1:{webhook_port}",
    }
    with secure_server(folder / "server", variables) as running:
        yield running
