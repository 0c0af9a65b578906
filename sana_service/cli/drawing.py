"""Two ways to draw for the command line: ask a service through its queue, or load the models here."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

    from sana_service.engine.observer import Preview, Progress
    from sana_service.generation import Generation
    from sana_service.models.names import ModelName
    from sana_service.settings import Settings

Tell = Callable[[str, int | None, int | None], None]


class DrawingError(Exception):
    """The pictures cannot be drawn; the message is one line."""


@dataclass(frozen=True)
class Drawing:
    """What was drawn.

    Args:
        images: the files' contents.
        seed: of the first one.
        flagged: one per image.
        timings: seconds by stage.
    """

    images: list[bytes]
    seed: int
    flagged: list[bool]
    timings: dict[str, float]


def by_service(model: str, request: dict[str, Any], url: str, key: str | None, tell: Tell) -> Drawing:
    """Draw on a running service.

    Raises:
        DrawingError: it refuses, fails, or does not answer.
    """
    import httpx

    headers = {} if key is None else {"authorization": f"Key {key}"}
    timeout = httpx.Timeout(30, read=60)
    try:
        with httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=timeout) as http:
            app = _app_of(http)
            submitted = _answer(http.post(f"/queue/{app}{'/sprint' if model == 'sprint' else ''}", json=request))
            path = f"/queue/{app}/requests/{submitted['request_id']}"
            try:
                _follow(http, path, tell)
            except KeyboardInterrupt:
                http.put(f"{path}/cancel")
                raise
            output = _answer(http.get(path))
            tell("fetching", None, None)
            images = [_content(http.get(f"/files/{image['file_name']}")) for image in output["images"]]
    except httpx.HTTPError as error:
        raise DrawingError(f"{url} does not answer: {error}") from error
    except httpx.InvalidURL as error:
        raise DrawingError(f"{url} is no URL: {error}") from error
    return Drawing(images, output["seed"], output["has_nsfw_concepts"], output["timings"])


def in_process(model: ModelName, request: dict[str, Any], tell: Tell) -> Drawing:
    """Draw here, with the models that the `SANA_` variables name.

    Raises:
        DrawingError: a setting is wrong, the models cannot be loaded, or the request cannot be served.
    """
    import os
    import warnings

    from sana_service.contract.errors import ServiceError
    from sana_service.jobs.worker import parse_payload
    from sana_service.models.checkpoint import ModelLoadError
    from sana_service.settings import SettingsError, load_settings

    warnings.simplefilter("ignore")
    try:
        settings = load_settings(os.environ)
        asked = parse_payload(model, {**request, "sync_mode": True}, settings.max_pixels)
        tell("loading the models", None, None)
        with _generation(settings) as generation:
            return asyncio.run(_run(generation, model, asked, tell))
    except (SettingsError, ModelLoadError) as error:
        raise DrawingError(str(error)) from error
    except ServiceError as error:
        raise DrawingError(_sentence(error.detail)) from error


@contextmanager
def _generation(settings: Settings) -> Iterator[Generation]:
    from transformers.utils import logging

    from sana_service.images import Encoder
    from sana_service.provenance import SigningError
    from sana_service.runtime import build_generation
    from sana_service.startup import load_signer
    from sana_service.storage import Storage

    logging.disable_progress_bar()  # type: ignore[no-untyped-call,unused-ignore]
    try:
        encoder = Encoder(signer=load_signer(settings))
    except SigningError as error:
        raise DrawingError(str(error)) from error
    generation = build_generation(settings, Storage("memory://", settings.file_ttl_seconds), encoder)
    try:
        yield generation
    finally:
        generation.engine.stop()
        encoder.close()


async def _run(generation: Generation, model: ModelName, asked: Any, tell: Tell) -> Drawing:
    from sana_service.generation import Extras

    output = await generation.run(model, asked, "", Extras(observer=_Watch(tell)))
    images = [base64.b64decode(image.url.partition(",")[2]) for image in output.images]
    return Drawing(images, output.seed, output.has_nsfw_concepts, output.timings)


class _Watch:
    """The engine's observer: moves the progress bar."""

    previews = 0

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def progress(self, progress: Progress) -> None:
        self._tell(progress.stage, progress.steps_done, progress.steps)

    def preview(self, preview: Preview) -> None:
        """None is asked for."""


def _app_of(http: httpx.Client) -> str:
    """The name that the service's queue goes by: the page says it, since an operator may have changed it."""
    import html
    import re

    found = re.search(r'<meta name="sana" content="([^"]*)"', http.get("/").text)
    if found is None:
        raise DrawingError(f"{http.base_url} is not this service")
    app: str = json.loads(html.unescape(found[1]))["app"]
    return app


def _follow(http: httpx.Client, path: str, tell: Tell) -> None:
    with http.stream("GET", f"{path}/status/stream") as stream:
        if stream.status_code != 200:
            stream.read()
            _answer(stream)
        for line in stream.iter_lines():
            if line.startswith("data: "):
                _tell_status(json.loads(line.removeprefix("data: ")), tell)


def _tell_status(status: dict[str, Any], tell: Tell) -> None:
    if status["status"] == "IN_QUEUE":
        tell(f"in the queue, {status['queue_position']} before", None, None)
    elif status["status"] == "IN_PROGRESS":
        progress = status["progress"]
        tell(progress["stage"], progress["steps_done"], progress["steps"] or None)


def _answer(answer: httpx.Response) -> Any:
    try:
        body = answer.json()
    except ValueError as error:
        raise DrawingError(f"status {answer.status_code} from {answer.url}") from error
    if answer.status_code >= 400:
        raise DrawingError(_sentence(body.get("detail", body)))
    return body


def _content(answer: httpx.Response) -> bytes:
    if answer.status_code != 200:
        raise DrawingError(f"status {answer.status_code} from {answer.url}")
    return answer.content


def _sentence(detail: Any) -> str:
    if not isinstance(detail, list):
        return str(detail)
    return "; ".join(f"{'.'.join(map(str, fault['loc'][1:]))}: {fault['msg']}" for fault in detail)
