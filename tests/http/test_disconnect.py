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


def test_the_caller_goes_on_after_its_client_has_left() -> None:
    async def scenario() -> int:
        connection = Connection()
        connection.left.set()
        with pytest.raises(ClientDisconnect):
            await until_disconnect(asyncio.sleep(60), connection)
        await asyncio.sleep(0)
        caller = asyncio.current_task()
        assert caller is not None
        return caller.cancelling()

    assert asyncio.run(scenario()) == 0


def test_a_caller_that_is_cancelled_as_its_client_leaves_is_cancelled() -> None:
    async def scenario() -> None:
        connection = Connection()

        async def work() -> None:
            connection.left.set()
            try:
                await asyncio.Event().wait()
            finally:
                caller.cancel()

        caller = asyncio.create_task(until_disconnect(work(), connection))
        with pytest.raises(asyncio.CancelledError):
            await caller

    asyncio.run(scenario())


def test_a_deadline_inside_the_work_is_no_client_that_leaves() -> None:
    async def work() -> None:
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        asyncio.run(until_disconnect(work(), Connection()))


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
