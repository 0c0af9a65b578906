"""Random bad, aborted and oversized requests: each is refused, and nothing of them stays."""

from __future__ import annotations

import asyncio
import os

from tests.chaos.accounts import read_accounts, settled
from tests.chaos.attack import attack
from tests.chaos.conftest import Faulty
from tests.chaos.processes import holdings, holdings_once, worker_of

REQUESTS = int(os.environ.get("SANA_ATTACKS", "1000"))
WARM_UP = 400
"""The first ones fill pools of threads and of memory, which stay."""
POOL = 16


def test_bad_requests_leave_memory_threads_handles_and_queue_as_they_were(faulty: Faulty) -> None:
    worker = worker_of(faulty.server.process.pid)
    asyncio.run(attack(faulty.server.url, WARM_UP, seed=1))
    with faulty.client() as http:
        before = settled(http, lambda counts: counts["in flight"] == 0)
        start = holdings(worker)
        answers = asyncio.run(attack(faulty.server.url, REQUESTS, seed=2))
        after = settled(http, lambda counts: counts["in flight"] == 0)
        assert http.get("/readyz").status_code == 200
    end = holdings_once(worker, lambda seen: seen.handles <= start.handles and seen.threads <= start.threads + POOL)
    # every kind of refusal was met, nothing else, and nobody waited in vain
    assert answers.total() == REQUESTS
    assert set(answers) <= {
        "400",
        "404",
        "405",
        "408",
        "413",
        "415",
        "422",
        "431",
        "200",
        "aborted",
        "closed",
        "unfinished",
    }
    assert {"400", "404", "413", "415", "422", "431", "aborted"} <= set(answers)
    assert answers["closed"] < REQUESTS * 0.2
    assert (after["in flight"], after["failed"]) == (0, before["failed"])
    assert end.handles <= start.handles
    # a pool fills up to its bound, and no further
    assert end.threads <= start.threads + POOL
    assert end.rss_mb - start.rss_mb < 10 + REQUESTS * 0.002
    with faulty.client() as http:
        answer = http.post("/sprint", json={"prompt": "a", "image_size": "square"})
        assert answer.status_code == 200, answer.text
        assert read_accounts(http)["completed"] == after["completed"] + 1
