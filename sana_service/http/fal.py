"""fal's queue: submit, status, status stream, result, cancel.

    POST /queue/{app}[/sprint]                         GET .../requests/{id}/status[/stream]
    GET  /queue/{app}/requests/{id}                    PUT .../requests/{id}/cancel

The paths are those of `queue.fal.run` behind a prefix; a Host that starts with `queue.` needs no
prefix (`http.routes` puts it before). What a job ended with is replayed as it was: an invalid
request is accepted, too, and its 422 is its result, because that is where fal's clients look for it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from sana_service.contract.errors import InvalidFields, NotFound, Overloaded, Unavailable
from sana_service.contract.fal import REQUEST_ID_HEADER, BadHeader, Links, Wishes, read_wishes
from sana_service.http.address import base_url
from sana_service.http.body import read_json
from sana_service.http.routes import QUEUE_PREFIX, QUEUE_PREFIX_KEY
from sana_service.http.sse import stream_events
from sana_service.jobs.guard import Refused, check_url
from sana_service.jobs.record import (
    LOW_PRIORITY,
    NORMAL_PRIORITY,
    Ending,
    Job,
    JobRecord,
    StoreError,
    StoreFull,
    new_job_id,
)
from sana_service.jobs.service import JobService
from sana_service.jobs.worker import cancelled, parse_payload, refused
from sana_service.settings import Settings

_STREAM_POLL_SECONDS = 0.05
_TRUE = {"1", "true", "yes"}


class Queue:
    """The ASGI application of the queue's routes.

    Args:
        jobs: gives the process's job service.
    """

    def __init__(self, settings: Settings, jobs: Callable[[], JobService]) -> None:
        self._settings = settings
        self._jobs = jobs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._answer(scope, receive, send)
        except StoreError as error:
            raise Unavailable("The job store does not answer, retry later.") from error

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(f"{QUEUE_PREFIX}/{self._settings.app}")
        if path in {"", "/sprint"}:
            answer = await self._submit(scope, receive, "sprint" if path else "base")
            await answer(scope, receive, send)
            return
        match path.split("/")[2:]:
            case [job_id]:
                answer = await self._result(job_id)
            case [job_id, "status"]:
                answer = await self._status(scope, job_id)
            case [job_id, "status", "stream"]:
                await self._record(job_id)
                events = self._events(scope, job_id)
                await stream_events(events, receive, send, {REQUEST_ID_HEADER: job_id})
                return
            case [job_id, "cancel"]:
                answer = await self._cancel(job_id)
            case _:
                raise NotFound
        await answer(scope, receive, send)

    async def _submit(self, scope: Scope, receive: Receive, model: str) -> Response:
        text, data = await read_json(scope, receive)
        wishes = read_wishes(Request(scope).headers, self._settings.file_ttl_seconds)
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        webhook = self._webhook(query)
        most = self._most_waiting(query)
        service = self._jobs()
        if not service.open:
            raise Unavailable("The service drains.")
        job = self._job(scope, model, text, wishes, webhook)
        try:
            ended: Ending | None = None
            try:
                parse_payload(model, data, self._settings.max_pixels)
            except InvalidFields as error:
                ended = refused(error)
            position = await service.submit(job, most, ended)
        except StoreFull as error:
            raise Overloaded(f"{error.waiting} requests are in the queue already, retry later.") from error
        body = {
            "status": "IN_QUEUE",
            "request_id": job.id,
            "gateway_request_id": job.id,
            **self._links(scope, job.id).as_dict(),
            "queue_position": position,
        }
        return JSONResponse(body, headers={REQUEST_ID_HEADER: job.id})

    def _job(self, scope: Scope, model: str, text: str, wishes: Wishes, webhook: str | None) -> Job:
        now = time.time()
        wait = wishes.start_within_seconds
        return Job(
            id=new_job_id(),
            model=model,
            payload=text,
            base_url=base_url(scope),
            submitted_at=now,
            priority=LOW_PRIORITY if wishes.low_priority else NORMAL_PRIORITY,
            start_by=None if wait is None else now + wait,
            retry=wishes.retry,
            lifetime_seconds=wishes.lifetime_seconds,
            webhook=webhook,
        )

    def _webhook(self, query: Mapping[str, list[str]]) -> str | None:
        urls = query.get("fal_webhook", [])
        if not urls:
            return None
        try:
            return check_url(urls[-1], self._settings.webhook_hosts).url
        except Refused as error:
            raise BadHeader(str(error)) from error

    def _most_waiting(self, query: Mapping[str, list[str]]) -> int:
        values = query.get("fal_max_queue_length", [])
        if not values:
            return self._settings.max_jobs
        if not values[-1].isdecimal() or len(values[-1]) > 9 or int(values[-1]) < 1:
            raise BadHeader("fal_max_queue_length must be a whole number of at least 1.")
        return min(int(values[-1]), self._settings.max_jobs)

    def _links(self, scope: Scope, job_id: str) -> Links:
        """Where the client reaches the job: as it came, so behind a proxy that ends TLS with the operator's scheme."""
        base = base_url(scope)
        public = self._settings.public_url
        if public is not None:
            keeps_host = not scope[QUEUE_PREFIX_KEY]
            base = f"{urlsplit(public).scheme}://{urlsplit(base).netloc}" if keeps_host else public
        return Links(f"{base}{scope[QUEUE_PREFIX_KEY]}/{self._settings.app}/requests/{job_id}")

    async def _record(self, job_id: str) -> JobRecord:
        record = await self._jobs().get(job_id)
        if record is None:
            raise NotFound("No such request, or it has expired.")
        return record

    async def _status(self, scope: Scope, job_id: str) -> Response:
        record = await self._record(job_id)
        body = await self._status_body(scope, record, skip_logs=0 if _wants_logs(scope) else None)
        status = 200 if record.state == "done" else 202
        return JSONResponse(body, status_code=status, headers={REQUEST_ID_HEADER: job_id})

    async def _status_body(self, scope: Scope, record: JobRecord, skip_logs: int | None) -> dict[str, Any]:
        """Fal's status object, and `progress` beside it.

        Args:
            skip_logs: how many lines the client has already; None where it wants none.
        """
        common = {"request_id": record.job.id, **self._links(scope, record.job.id).as_dict()}
        if record.state == "queued":
            position = await self._jobs().position(record.job.id)
            return {"status": "IN_QUEUE", **common, "queue_position": position}
        lines = [] if skip_logs is None else [line.as_dict() for line in record.report.logs[skip_logs:]]
        if record.ending is None:
            progress = {
                "stage": record.report.stage or "queue",
                "steps_done": record.report.steps_done,
                "steps": record.report.steps,
            }
            return {"status": "IN_PROGRESS", **common, "logs": lines, "progress": progress}
        ending = record.ending
        metrics = {} if ending.inference_seconds is None else {"inference_time": round(ending.inference_seconds, 6)}
        body: dict[str, Any] = {"status": "COMPLETED", **common, "logs": lines, "metrics": metrics}
        if not ending.succeeded:
            body |= {"error": ending.error, "error_type": ending.error_type}
        return body

    async def _events(self, scope: Scope, job_id: str) -> AsyncIterator[tuple[str | None, dict[str, Any]]]:
        """A status object at each change, new log lines alone, until the job is done."""
        told: dict[str, Any] | None = None
        lines = 0
        while True:
            record = await self._jobs().get(job_id)
            if record is None:
                return
            body = await self._status_body(scope, record, lines if _wants_logs(scope) else None)
            if body != told and (told is None or {**body, "logs": []} != {**told, "logs": []} or body.get("logs")):
                yield None, body
                told = body
                lines = len(record.report.logs)
            if record.state == "done" or not self._jobs().open:
                return
            await asyncio.sleep(_STREAM_POLL_SECONDS)

    async def _result(self, job_id: str) -> Response:
        record = await self._record(job_id)
        if record.ending is None:
            raise BadHeader("Request is still in progress")
        headers = {**record.ending.headers, REQUEST_ID_HEADER: job_id}
        return Response(record.ending.body, status_code=record.ending.status, headers=headers)

    async def _cancel(self, job_id: str) -> Response:
        outcome = await self._jobs().cancel(job_id, cancelled())
        status, word = {
            None: (404, "NOT_FOUND"),
            "done": (400, "ALREADY_COMPLETED"),
            "ended": (202, "CANCELLATION_REQUESTED"),
            "requested": (202, "CANCELLATION_REQUESTED"),
        }[outcome]
        return JSONResponse({"status": word}, status_code=status, headers={REQUEST_ID_HEADER: job_id})


def _wants_logs(scope: Scope) -> bool:
    values = parse_qs(scope["query_string"].decode("latin-1")).get("logs", ["0"])
    return values[-1].lower() in _TRUE


def key_set_response(service: JobService) -> Response:
    """The public key that webhooks are signed with."""
    return Response(json.dumps(service.key_set), media_type="application/json")
