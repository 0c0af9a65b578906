"""Work that ends when its client leaves.

Called inside the API method: BentoML runs each request in a task of its own, which a cancellation
from outside does not reach.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

Result = TypeVar("Result")


async def until_disconnect(work: Coroutine[Any, Any, Result], receive: Receive) -> Result:
    """Do the work for as long as the client waits for it.

    Args:
        receive: the request's, its body already read.

    Raises:
        ClientDisconnect: the client left; the work has been cancelled.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, watcher):
            each.cancel()
        await asyncio.wait({task, watcher})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
