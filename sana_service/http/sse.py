"""Server-sent events: each one JSON, with comments between them while nothing happens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.types import Receive, Send

HEARTBEAT_SECONDS = 10.0

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


async def stream_events(
    events: AsyncIterator[tuple[str | None, dict[str, Any]]],
    receive: Receive,
    send: Send,
    headers: dict[str, str] | None = None,
) -> None:
    """Send events until they end or the client leaves; the source is closed either way.

    The first event is awaited before the response starts, so an error before it still has a status of its own.

    Args:
        events: (event name or None, data).
        receive: the request's, its body already read.
    """
    source = events.__aiter__()
    leaving = asyncio.ensure_future(_gone(receive))
    next_event = asyncio.ensure_future(anext(source, None))
    started = False
    try:
        while True:
            timeout = HEARTBEAT_SECONDS if started else None
            done, _ = await asyncio.wait({leaving, next_event}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if leaving in done:
                return
            if next_event not in done:
                await _send_chunk(send, b": waiting\n\n")
                continue
            event = next_event.result()
            if not started:
                extra = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
                await send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS, *extra]})
                started = True
            if event is None:
                await send({"type": "http.response.body", "body": b""})
                return
            name, data = event
            label = f"event: {name}\n" if name else ""
            await _send_chunk(send, f"{label}data: {json.dumps(data)}\n\n".encode())
            next_event = asyncio.ensure_future(anext(source, None))
    finally:
        for task in (leaving, next_event):
            task.cancel()
        await asyncio.wait({leaving, next_event})
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()


async def _send_chunk(send: Send, chunk: bytes) -> None:
    await send({"type": "http.response.body", "body": chunk, "more_body": True})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
