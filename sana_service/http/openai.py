"""OpenAI's images API: `POST /v1/images/generations`, `GET /v1/models`.

A stream sends partial pictures as the engine shows them and ends with the whole one. An error before
the first event has its own status; a later one is an `error` event.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Protocol

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from sana_service.contract.answers import answer_headers
from sana_service.contract.errors import ServiceError
from sana_service.contract.openai import MODELS, ModelNotFound, Order, error_answer, read_order
from sana_service.generation import Extras
from sana_service.http.address import base_url
from sana_service.http.body import read_json
from sana_service.http.disconnect import until_disconnect
from sana_service.http.sse import stream_events
from sana_service.telemetry import get_logger

if TYPE_CHECKING:
    import numpy as np

    from sana_service.contract.schemas import BaseInput, Output
    from sana_service.engine.observer import Preview, Progress
    from sana_service.images import Encoder
    from sana_service.models.names import ModelName

logger = get_logger("openai")

# When the two checkpoints were published: OpenAI's listing has such a field.
_CREATED = {"sana": 1_734_307_200, "sana-sprint": 1_742_515_200}
# Nothing here counts tokens; OpenAI's clients read these fields all the same.
_NO_TOKENS = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}

Event = tuple[str | None, dict[str, Any]]


class Backend(Protocol):
    """What this needs of the process."""

    @property
    def encoder(self) -> Encoder: ...

    async def generate(
        self, model: ModelName, request: BaseInput, base_url: str, extras: Extras | None = None
    ) -> Output: ...


class Images:
    """The ASGI application of the `/v1` routes."""

    def __init__(self, max_pixels: int, backend: Callable[[], Backend]) -> None:
        self._max_pixels = max_pixels
        self._backend = backend

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/v1/images/generations":
            await self._generate(scope, receive, send)
            return
        name = scope["path"].removeprefix("/v1/models").removeprefix("/")
        if not name:
            answer = JSONResponse({"object": "list", "data": [_model(model) for model in MODELS]})
        elif name in MODELS:
            answer = JSONResponse(_model(name))
        else:
            raise ModelNotFound(name)
        await answer(scope, receive, send)

    async def _generate(self, scope: Scope, receive: Receive, send: Send) -> None:
        _, data = await read_json(scope, receive)
        order = read_order(data, self._max_pixels)
        _log_user(order)
        if order.asked.stream:
            await stream_events(self._events(order, base_url(scope)), receive, send)
            return
        extras = Extras(jpeg_quality=order.jpeg_quality)
        work = self._backend().generate(order.model, order.request, base_url(scope), extras)
        output = await until_disconnect(work, receive)
        answer: Response = JSONResponse(_answer(order, output), headers=answer_headers(order.request, output))
        await answer(scope, receive, send)

    async def _events(self, order: Order, address: str) -> AsyncIterator[Event]:
        backend = self._backend()
        previews = _Previews(order.asked.partial_images)
        extras = Extras(observer=previews, jpeg_quality=order.jpeg_quality)
        work = asyncio.ensure_future(backend.generate(order.model, order.request, address, extras))
        work.add_done_callback(previews.close)
        started = False
        try:
            while (preview := await previews.next()) is not None:
                yield "image_generation.partial_image", await _partial(order, preview, backend.encoder)
                started = True
            yield "image_generation.completed", _completed(order, await work)
        except ServiceError as error:
            if not started:
                raise
            yield "error", error_answer(error)[0]
        except Exception:
            if not started:
                raise
            logger.exception("a stream broke off")
            yield "error", error_answer(ServiceError())[0]
        finally:
            work.cancel()
            await asyncio.wait({work})


class _Previews:
    """The engine's observer of a stream: hands previews from the device's thread to the event loop."""

    def __init__(self, previews: int) -> None:
        self.previews = previews
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Preview | None] = asyncio.Queue()

    def progress(self, progress: Progress) -> None:
        """Only pictures are streamed."""

    def preview(self, preview: Preview) -> None:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, preview)

    def close(self, _: object) -> None:
        self._queue.put_nowait(None)

    async def next(self) -> Preview | None:
        """The next preview; None once the work has ended."""
        return await self._queue.get()


async def _partial(order: Order, preview: Preview, encoder: Encoder) -> dict[str, Any]:
    pixels: np.ndarray = preview.pixels
    [image] = await encoder.encode_all([pixels], order.request.output_format, [None], order.jpeg_quality)
    return {
        "type": "image_generation.partial_image",
        "b64_json": base64.b64encode(image.data).decode("ascii"),
        "partial_image_index": preview.index,
        "created_at": int(time.time()),
        **_common(order, f"{image.width}x{image.height}"),
    }


def _completed(order: Order, output: Output) -> dict[str, Any]:
    return {
        "type": "image_generation.completed",
        "b64_json": _content(output.images[0].url),
        "created_at": int(time.time()),
        **_common(order, order.size),
        **_extensions(output),
        "usage": _NO_TOKENS,
    }


def _answer(order: Order, output: Output) -> dict[str, Any]:
    data = [{"b64_json": _content(image.url)} if order.inline else {"url": image.url} for image in output.images]
    return {
        "created": int(time.time()),
        "data": data,
        **_common(order, order.size),
        **_extensions(output),
        "usage": _NO_TOKENS,
    }


def _common(order: Order, size: str) -> dict[str, Any]:
    return {
        "background": "opaque",
        "output_format": order.request.output_format,
        "quality": "low" if order.model == "sprint" else "high",
        "size": size,
    }


def _extensions(output: Output) -> dict[str, Any]:
    """What OpenAI's answers lack: how to make the picture again, and which were blackened."""
    return {"seed": output.seed, "has_nsfw_concepts": output.has_nsfw_concepts}


def _content(data_uri: str) -> str:
    return data_uri.partition(",")[2]


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": _CREATED[name], "owned_by": "nvidia"}


def _log_user(order: Order) -> None:
    """The end user's name is for the operator to find abuse by; its hash is enough for that."""
    user = order.asked.safety_identifier or order.asked.user
    if user:
        logger.info("for the end user sha256:%s", hashlib.sha256(user.encode()).hexdigest()[:16])
