"""A real Redis or Valkey server for the tests of this folder."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator

import pytest

from sana_service.jobs.record import StoreError
from tests.services import free_port


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    binary = shutil.which("valkey-server") or shutil.which("redis-server")
    if binary is None:
        pytest.skip("neither redis-server nor valkey-server is installed (apt-get install redis-server)")
    from sana_service.jobs.redis import RedisStore

    port = free_port()
    folder = tmp_path_factory.mktemp("redis")
    with subprocess.Popen(
        [binary, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""],
        stdout=subprocess.DEVNULL,
    ) as process:
        url = f"redis://127.0.0.1:{port}/0"
        store = RedisStore(url)
        deadline = time.monotonic() + 20
        while True:
            try:
                store.waiting()
                break
            except StoreError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        store.close()
        yield url
        process.terminate()


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """The server, emptied."""
    import redis

    client = redis.Redis.from_url(redis_server)
    client.flushdb()
    client.close()
    return redis_server
