"""Two replicas on one Redis: each job is served once, by either; each sees the other's."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from sana_service.jobs.redis import RedisStore
from sana_service.jobs.service import JobService
from sana_service.jobs.worker import cancelled
from sana_service.settings import Settings
from tests.jobs.test_worker import OUTPUT, job


async def done(service: JobService, job_id: str) -> Any:
    deadline = time.monotonic() + 20
    while True:
        record = await service.get(job_id)
        assert record is not None
        if record.state == "done":
            return record.ending
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def test_two_replicas_share_a_queue(redis_url):
    served: list[tuple[str, str]] = []
    slow = asyncio.Event()

    def replica(name: str) -> JobService:
        async def generate(model: str, request: Any, base_url: str, observer: Any) -> Any:
            served.append((name, request.prompt))
            await (slow.wait() if request.prompt == "slow" else asyncio.sleep(0.1))
            return OUTPUT

        settings = Settings(jobs_concurrency=2)
        return JobService(settings, RedisStore(redis_url), generate, lambda: True, lambda: True, lambda _: None)

    async def main() -> None:
        one, other = replica("one"), replica("other")
        tasks = [asyncio.create_task(each.run()) for each in (one, other)]
        jobs = [job(payload=f'{{"prompt": "{number}", "image_size": "square"}}') for number in range(20)]
        for each in jobs:
            await one.submit(each, 100, None)
        endings = [await done(other, each.id) for each in jobs]
        assert {ending.status for ending in endings} == {200}
        assert sorted(prompt for _, prompt in served) == sorted(str(number) for number in range(20))
        assert {name for name, _ in served} == {"one", "other"}
        held = job(payload='{"prompt": "slow", "image_size": "square"}')
        await one.submit(held, 100, None)
        while ("one", "slow") not in served and ("other", "slow") not in served:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        stranger = other if ("one", "slow") in served else one
        assert await stranger.cancel(held.id, cancelled()) == "requested"
        assert (await done(stranger, held.id)).status == 499
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        one.close()
        other.close()

    asyncio.run(main())
