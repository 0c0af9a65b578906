"""The worker on a generation that does what the test says."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sana_service.contract.errors import DeadlinePassed, Overloaded, ServiceError, Unavailable
from sana_service.contract.schemas import ImageFile, SanaOutput
from sana_service.engine.observer import Progress
from sana_service.jobs.record import Job, new_job_id
from sana_service.jobs.sqlite import SqliteStore
from sana_service.jobs.worker import MAX_ATTEMPTS, JobWorker, cancelled

IMAGE = ImageFile(
    url="http://s/files/a.jpg", content_type="image/jpeg", file_name="a.jpg", file_size=1, width=512, height=512
)
OUTPUT = SanaOutput(images=[IMAGE], seed=7, has_nsfw_concepts=[False], prompt="a", timings={"denoise": 0.5})

Generate = Callable[..., Awaitable[Any]]


def job(**changes: Any) -> Job:
    payload = '{"prompt": "a", "image_size": "square"}'
    return replace(Job(new_job_id(), "base", payload, "http://s", time.time()), **changes)


class Bench:
    """A store, and workers on it."""

    def __init__(self, folder: Path) -> None:
        self.store = SqliteStore(folder / "jobs.db")
        self.forgotten: list[str] = []
        self.forgot = asyncio.Event()
        self.accepting = True

    def worker(self, generate: Generate, **options: Any) -> JobWorker:
        self.loop = asyncio.get_running_loop()
        settings = {"concurrency": 2, "max_pixels": 16_777_216, "keep_seconds": 60.0, "lease_seconds": 1.0, **options}
        return JobWorker(self.store, generate, lambda: self.accepting, self._forget, **settings)

    def _forget(self, name: str) -> None:
        self.forgotten.append(name)
        self.loop.call_soon_threadsafe(self.forgot.set)

    async def until(self, job_id: str, state: str = "done", seconds: float = 15.0) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            record = self.store.get(job_id)
            assert record is not None
            if record.state == state:
                return record
            assert time.monotonic() < deadline, record
            await asyncio.sleep(0.01)

    async def stopped(self, task: asyncio.Task[None], job: Job) -> Any:
        """A job once its worker has been stopped."""
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        record = self.store.get(job.id)
        assert record is not None
        return record

    def run(self, generate: Generate, *jobs: Job, **options: Any) -> list[Any]:
        """What becomes of jobs."""

        async def main() -> list[Any]:
            for one in jobs:
                self.store.add(one, 100)
            task = asyncio.create_task(self.worker(generate, **options).run())
            try:
                return [await self.until(one.id) for one in jobs]
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

        return asyncio.run(main())


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    bench.store.close()


async def serve(model, request, base_url, observer):
    observer.progress(Progress("text", 0, 2))
    observer.progress(Progress("denoise", 0, 2))
    observer.progress(Progress("denoise", 1, 2))
    observer.progress(Progress("denoise", 2, 2))
    return OUTPUT


def test_a_served_job_ends_with_the_response_of_the_route(bench):
    [record] = bench.run(serve, job())
    ending = record.ending
    assert (ending.status, json.loads(ending.body)) == (200, OUTPUT.model_dump())
    assert ending.headers == {
        "content-type": "application/json",
        "x-fal-billable-units": "1",
        "server-timing": 'denoise;dur=500.0;desc="batch 1.00"',
    }
    assert [line.message for line in record.report.logs] == ["started", "text", "denoise", "denoise 1/2", "denoise 2/2"]
    assert (record.report.steps_done, record.report.steps) == (2, 2)


@pytest.mark.parametrize(
    ("error", "status"),
    [(DeadlinePassed("late"), 504), (ServiceError(), 500), (RuntimeError("secret"), 500)],
)
def test_a_failed_job_ends_with_its_error(bench, error, status):
    async def fail(*_):
        raise error

    [record] = bench.run(fail, job())
    assert record.ending.status == status
    assert b"secret" not in record.ending.body


def test_a_busy_engine_is_asked_again_and_counts_no_attempt(bench):
    calls = 0

    async def busy_twice(*args):
        nonlocal calls
        calls += 1
        if calls <= 2:
            raise Overloaded("full")
        return OUTPUT

    [record] = bench.run(busy_twice, job(retry=False))
    assert (record.ending.status, record.attempts, calls) == (200, 1, 3)


def test_a_device_that_was_unavailable_is_asked_again_unless_the_client_says_no(bench):
    calls = 0

    async def unavailable_once(*args):
        nonlocal calls
        calls += 1
        if calls == 1:
            raise Unavailable("memory")
        return OUTPUT

    [record] = bench.run(unavailable_once, job())
    assert (record.ending.status, record.attempts) == (200, 2)

    async def unavailable(*args):
        raise Unavailable("memory")

    [refused] = bench.run(unavailable, job(retry=False))
    assert (refused.ending.status, refused.ending.error_type) == (503, "runner_scheduling_failure")


def test_a_killed_workers_jobs_are_done_by_the_next_each_once(bench):
    for _ in range(2):
        bench.store.add(job(), 100)
    killed = [bench.store.claim("killed", time.time() - 60, 59.0) for _ in range(2)]
    served: list[str] = []

    async def count(model, request, base_url, observer):
        served.append(request.prompt)
        return OUTPUT

    waiting = [job() for _ in range(20)]
    records = bench.run(count, *waiting)
    assert {record.ending.status for record in records} == {200}
    for record in killed:
        assert bench.store.get(record.job.id).ending.status == 200
        assert not bench.store.finish("killed", record.job.id, cancelled(), 0.0, 0.0)
    assert len(served) == 22


def test_a_job_that_kills_every_worker_ends_after_a_few(bench):
    poison, careful = job(), job(retry=False)
    for one in (poison, careful):
        bench.store.add(one, 10)
    now = time.time() - 1000
    for number in range(MAX_ATTEMPTS):
        assert bench.store.claim(f"w{number}", now + 10 * number, 5.0).job == poison
    assert bench.store.claim("w", now + 10 * MAX_ATTEMPTS - 6, 5.0).job == careful

    async def never(*_):
        raise AssertionError("not again")

    async def main() -> list[Any]:
        task = asyncio.create_task(bench.worker(never).run())
        try:
            return [await bench.until(poison.id), await bench.until(careful.id)]
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    assert [record.ending.status for record in asyncio.run(main())] == [503, 503]


def test_cancelling_a_running_job_frees_the_device(bench):
    async def main() -> tuple[Any, bool]:
        left = asyncio.Event()

        async def slow(*_):
            try:
                await asyncio.sleep(60)
            finally:
                left.set()

        worker = bench.worker(slow)
        task = asyncio.create_task(worker.run())
        one = job()
        bench.store.add(one, 10)
        await bench.until(one.id, "running")
        # as another replica does it: only the store knows
        assert bench.store.cancel(one.id, cancelled(), time.time(), time.time() + 60) == "requested"
        record = await bench.until(one.id)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return record, left.is_set()

    record, left = asyncio.run(main())
    assert (record.ending.status, record.ending.error_type, left) == (499, "client_cancelled", True)


def test_what_waits_too_long_ends_even_while_the_worker_is_busy(bench):
    release = asyncio.Event()

    async def slow(*_):
        await release.wait()
        return OUTPUT

    async def main() -> Any:
        task = asyncio.create_task(bench.worker(slow, concurrency=1).run())
        first, hasty = job(), job(start_by=time.time() + 0.3)
        bench.store.add(first, 10)
        await bench.until(first.id, "running")
        bench.store.add(hasty, 10)
        record = await bench.until(hasty.id)
        release.set()
        await bench.until(first.id)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return record

    record = asyncio.run(main())
    assert (record.ending.status, record.ending.headers["x-fal-request-timeout-type"]) == (504, "user")


def test_a_process_that_stops_gives_its_jobs_back(bench):
    async def slow(*_):
        await asyncio.sleep(60)

    async def main() -> Any:
        one = job()
        bench.store.add(one, 10)
        task = asyncio.create_task(bench.worker(slow).run())
        await bench.until(one.id, "running")
        return await bench.stopped(task, one)

    record = asyncio.run(main())
    assert (record.state, record.attempts) == ("queued", 0)


def test_a_process_that_stops_while_it_claims_gives_the_job_back(bench, monkeypatch: pytest.MonkeyPatch):
    claim, claimed, may_answer = bench.store.claim, threading.Event(), threading.Event()

    def slow_claim(*arguments: Any, **options: Any) -> Any:
        record = claim(*arguments, **options)
        if record is not None:
            claimed.set()
            assert may_answer.wait(15)
        return record

    async def never(*_):
        raise AssertionError

    monkeypatch.setattr(bench.store, "claim", slow_claim)

    async def main() -> Any:
        one = job()
        bench.store.add(one, 10)
        task = asyncio.create_task(bench.worker(never).run())
        assert await asyncio.to_thread(claimed.wait, 15)
        asyncio.get_running_loop().call_later(0.05, may_answer.set)
        return await bench.stopped(task, one)

    record = asyncio.run(main())
    assert (record.state, record.attempts) == ("queued", 0)


def test_nothing_is_claimed_while_the_models_load(bench):
    bench.accepting = False
    one = job()

    async def main() -> str:
        task = asyncio.create_task(bench.worker(serve).run())
        bench.store.add(one, 10)
        await asyncio.sleep(0.2)
        before: str = bench.store.get(one.id).state
        bench.accepting = True
        await bench.until(one.id)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return before

    assert asyncio.run(main()) == "queued"


def test_images_with_a_short_life_are_deleted(bench):
    async def main() -> None:
        one = job(lifetime_seconds=0.1)
        bench.store.add(one, 10)
        task = asyncio.create_task(bench.worker(serve).run())
        await bench.until(one.id)
        await asyncio.wait_for(bench.forgot.wait(), 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    assert bench.forgotten == ["a.jpg"]
