import asyncio
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from sana_service.http.disconnect import until_disconnect


class Connection:
    """A `receive` whose client leaves when it is told to."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def __call__(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}


def test_the_result_of_the_work() -> None:
    async def work() -> int:
        return 7

    async def scenario() -> int:
        return await until_disconnect(work(), Connection())

    assert asyncio.run(scenario()) == 7


def test_an_error_of_the_work() -> None:
    async def work() -> int:
        raise KeyError("x")

    async def scenario() -> int:
        return await until_disconnect(work(), Connection())

    with pytest.raises(KeyError):
        asyncio.run(scenario())


def test_work_is_cancelled_when_the_client_leaves() -> None:
    cancelled = []

    async def scenario() -> None:
        connection = Connection()

        async def work() -> None:
            connection.left.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

        await until_disconnect(work(), connection)

    with pytest.raises(ClientDisconnect):
        asyncio.run(scenario())
    assert cancelled == [True]


def test_work_is_cancelled_with_its_caller() -> None:
    started = asyncio.Event()
    cancelled = []

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def scenario() -> None:
        caller = asyncio.create_task(until_disconnect(work(), Connection()))
        await started.wait()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller

    asyncio.run(scenario())
    assert cancelled == [True]
