"""The BentoML service: two APIs, inside the HTTP layer of `sana_service.http`.

This is the one module that works at import: the supervisor imports it first, so a wrong setting
ends the start here, with one line, before any worker exists.
"""

from __future__ import annotations

import os
from typing import Any

from sana_service.environment import keep_memory, keep_quiet

keep_quiet(os.environ)
keep_memory(os.environ)
# BentoML starts a worker again for ever, unless it believes to be in a container.
os.environ.setdefault("BENTOML_CONTAINERIZED", "true")
# X-Forwarded-* is not believed: SANA_PUBLIC_URL says what stands in front of the service.
os.environ["FORWARDED_ALLOW_IPS"] = ""

import bentoml
import uvicorn.config
import yaml
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from sana_service.container import image
from sana_service.contract.errors import CLIENT_LEFT_STATUS, ServiceError
from sana_service.contract.fal import Wishes, read_wishes
from sana_service.contract.idempotency import IDEMPOTENCY_HEADER, read_idempotency_key
from sana_service.contract.openapi import openapi_document
from sana_service.contract.schemas import (
    BaseInput,
    SanaOutput,
    SanaSprintOutput,
    SprintInput,
    TextToImageInput,
)
from sana_service.generation import Extras
from sana_service.http.address import base_url
from sana_service.http.app import wrap
from sana_service.http.boundary import error_response
from sana_service.http.disconnect import until_disconnect
from sana_service.http.lean import lean
from sana_service.http.routes import FAL_KEY
from sana_service.metrics import render as render_metrics
from sana_service.models.names import ModelName
from sana_service.startup import prepare
from sana_service.telemetry import get_logger

logger = get_logger("service")

settings, storage = prepare(os.environ)

# BentoML leaves the choice of the protocol's class to uvicorn.
uvicorn.config.HTTP_PROTOCOLS["auto"] = "sana_service.http.connection:Connection"

# BentoML's own timeout is only a net under the service's deadline, which stops the work, too.
_TIMEOUT_SECONDS = settings.request_timeout_seconds + 60


class SanaService(bentoml.Service[Any]):
    """BentoML's service class, inside the project's own HTTP layer."""

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        return wrap(lean(super().to_asgi(is_main)), settings, storage, _runtime)

    @property
    def openapi_spec(self) -> Any:
        return _Document(openapi_document(max_pixels=settings.max_pixels, secured=settings.api_keys_file is not None))


@bentoml.service(
    name="sana", image=image(), service_class=SanaService, workers=1, traffic={"timeout": _TIMEOUT_SECONDS}
)
class Sana:
    """Text to image with NVIDIA's Sana (`generate`) and SANA-Sprint (`sprint`)."""

    def __init__(self) -> None:
        from sana_service.runtime import Runtime

        self.runtime = Runtime(settings, storage)
        # BentoML looks an API up for each request, and it would be bound and its signature inspected each time.
        vars(self).update(generate=self.generate, sprint=self.sprint)

    @bentoml.on_startup
    async def start(self) -> None:
        await self.runtime.start()

    @bentoml.on_shutdown
    async def stop(self) -> None:
        await self.runtime.stop()

    async def __is_alive__(self) -> bool:
        return self.runtime.alive

    async def __is_ready__(self) -> bool:
        return self.runtime.ready

    def __metrics__(self, text: str) -> str:
        return render_metrics(text)

    @bentoml.api(route="/generate", input_spec=TextToImageInput, output_spec=SanaOutput)
    async def generate(self, ctx: bentoml.Context, **params: Any) -> SanaOutput:
        """Generate images from a text with the base model: 18 steps, classifier-free guidance."""
        return await self._answer(ctx, "base", TextToImageInput.model_construct(**params))

    @bentoml.api(route="/sprint", input_spec=SprintInput, output_spec=SanaSprintOutput)
    async def sprint(self, ctx: bentoml.Context, **params: Any) -> SanaSprintOutput:
        """Generate images from a text with SANA-Sprint: 2 steps."""
        return await self._answer(ctx, "sprint", SprintInput.model_construct(**params))

    async def _answer(self, ctx: bentoml.Context, model: ModelName, request: BaseInput) -> Any:
        """The output model, or the response of an error: BentoML would hide what an exception says."""
        try:
            wishes = _wishes(ctx)
            extras = Extras(start_within_seconds=wishes.start_within_seconds, lifetime_seconds=wishes.lifetime_seconds)
            key = read_idempotency_key(ctx.request.headers.getlist(IDEMPOTENCY_HEADER), inline=request.sync_mode)
            work = self.runtime.answer(key, model, request, base_url(ctx.request.scope), extras)
            output, headers = await until_disconnect(work, ctx.request.receive)
        except ServiceError as error:
            return _refuse(ctx, error)
        except ClientDisconnect:
            logger.info("the client left")
            # Nobody reads it but counters and the access log, where 500 would be the service's own fault.
            ctx.response.status_code = CLIENT_LEFT_STATUS
            return JSONResponse({"detail": "Client Closed Request"}, status_code=CLIENT_LEFT_STATUS)
        except Exception:
            logger.exception("%s failed", model)
            return _refuse(ctx, ServiceError())
        ctx.response.headers.update(headers)
        return output


def _runtime() -> Any:
    """The runtime of this process; there is one once requests come."""
    return bentoml.get_current_service().runtime


def _wishes(ctx: bentoml.Context) -> Wishes:
    scope = ctx.request.scope
    return read_wishes(ctx.request.headers, settings.file_ttl_seconds) if scope.get(FAL_KEY) else Wishes()


class _Document(dict[str, Any]):
    """An OpenAPI document with the one method that BentoML calls on it."""

    def asdict(self) -> dict[str, Any]:
        return dict(self)


# `bentoml build` writes it to a file
yaml.add_representer(_Document, yaml.representer.SafeRepresenter.represent_dict)


def _refuse(ctx: bentoml.Context, error: ServiceError) -> Response:
    # BentoML puts the context's status and headers on the response
    ctx.response.status_code = error.status
    ctx.response.headers.update(error.headers)
    return error_response(error)
