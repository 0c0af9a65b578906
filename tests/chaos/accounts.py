"""What the service says of itself on `/metrics`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import httpx
from prometheus_client.parser import text_string_to_metric_families

ENDS = ("completed", "refused", "cancelled", "expired", "failed")


def read_accounts(http: httpx.Client) -> Counter[str]:
    """Requests by how they ended, units billed, and what is still there."""
    families = {family.name: family for family in text_string_to_metric_families(http.get("/metrics").text)}
    counts: Counter[str] = Counter(dict.fromkeys(ENDS, 0))
    for sample in families["sana_requests"].samples:
        counts[sample.labels["outcome"]] += int(sample.value)
    counts["units"] = int(sum(sample.value for sample in families["sana_billable_units"].samples))
    counts["images"] = int(sum(sample.value for sample in families["sana_images"].samples))
    for name in ("sana_queue_jobs", "sana_running_jobs"):
        counts["in flight"] += int(families[name].samples[0].value)
    return counts


def read_running(answer: httpx.Response) -> int:
    """Requests on a device, of an answer of `/metrics`."""
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    return int(families["sana_running_jobs"].samples[0].value)


def settled(http: httpx.Client, expected: Callable[[Counter[str]], bool], seconds: float = 20.0) -> Counter[str]:
    """The accounts once they are as expected, or at the end of the patience."""
    deadline = time.monotonic() + seconds
    while not expected(counts := read_accounts(http)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return counts
