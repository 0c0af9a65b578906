"""Work that ends when its client leaves.

Called inside the API method: nothing else tells a request's task that its client has left.
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

    The work is done in the caller's task, which is cancelled and taken back as `asyncio.timeout` does it: a task of its
    own would cost each request several turns of the event loop.

    Args:
        receive: the request's, its body already read.

    Raises:
        ClientDisconnect: the client left; the work has been cancelled.
    """
    caller = asyncio.current_task()
    assert caller is not None
    cancelled_before = caller.cancelling()
    left = False

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        caller.cancel()

    watcher = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if left and caller.uncancel() <= cancelled_before:
            raise ClientDisconnect from None
        raise
    finally:
        watcher.cancel()
