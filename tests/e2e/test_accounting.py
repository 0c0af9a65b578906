"""Every request is counted once, the same by the server as by its clients."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests import services

OUTCOMES = {200: "completed", 429: "refused", 504: "expired"}
ENDS = ("completed", "refused", "cancelled", "expired", "failed")

SLOW = {"prompt": "a", "image_size": {"width": 3000, "height": 3000}, "num_inference_steps": 20, "num_images": 4}


@pytest.fixture(scope="module")
def small_server(tmp_path_factory: pytest.TempPathFactory, pair_variables: dict[str, str]) -> Iterator[services.Server]:
    variables = {**pair_variables, "SANA_MAX_QUEUE": "2", "SANA_REQUEST_TIMEOUT_SECONDS": "2"}
    with services.server(tmp_path_factory.mktemp("counted"), variables) as server:
        yield server


def counted(http: httpx.Client) -> Counter[str]:
    """Requests by outcome, and what was billed, as `/metrics` says."""
    families = {family.name: family for family in text_string_to_metric_families(http.get("/metrics").text)}
    counts: Counter[str] = Counter()
    for sample in families["sana_requests"].samples:
        counts[sample.labels["outcome"]] += int(sample.value)
    counts["units"] = int(sum(sample.value for sample in families["sana_billable_units"].samples))
    for sample in families["sana_http_responses"].samples:
        counts[f"status {sample.labels['code']}"] += int(sample.value)
    counts["waiting or running"] = int(
        families["sana_queue_jobs"].samples[0].value + families["sana_running_jobs"].samples[0].value
    )
    return counts


def one_request(url: str, seed: int) -> tuple[str | None, int]:
    """How one random client fared, and what it was billed."""
    dice = random.Random(seed)
    route = dice.choice(["generate", "sprint"])
    body = {
        "prompt": "a",
        "image_size": dice.choice(["square", {"width": 3000, "height": 3000}]),
        "num_inference_steps": dice.choice([1, 2, 20]),
        "num_images": dice.choice([1, 1, 4]),
        "output_format": dice.choice(["png", "jpeg"]),
    }
    if dice.random() < 0.1:
        body["num_images"] = 9  # refused before it is counted
    leaves = dice.random() < 0.15
    try:
        answer = httpx.post(f"{url}/{route}", json=body, timeout=0.1 if leaves else 60)
    except httpx.TimeoutException:
        return "cancelled", 0
    if answer.status_code == 422:
        return None, 0
    outcome = OUTCOMES[answer.status_code]
    if outcome == "refused":
        # Else the other clients would all be refused while the first job of several seconds is drawn.
        time.sleep(0.3)
    return outcome, int(answer.headers["x-fal-billable-units"])


def test_server_and_clients_count_the_same_requests_and_units(small_server: services.Server) -> None:
    with small_server.client() as http, ThreadPoolExecutor(12) as pool:
        before = counted(http)
        told = list(pool.map(lambda seed: one_request(small_server.url, seed), range(80)))
        # Whether one of them ended well or left while it was drawn is chance; on an idle device it is not.
        while counted(http)["waiting or running"]:
            time.sleep(0.05)
        answer = http.post("/sprint", json={"prompt": "a", "image_size": "square", "num_inference_steps": 1})
        assert answer.status_code == 200, answer.text
        told.append(("completed", int(answer.headers["x-fal-billable-units"])))
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{small_server.url}/generate", json=SLOW, timeout=0.3)
        told.append(("cancelled", 0))
        clients = Counter(outcome for outcome, _ in told if outcome)
        billed = sum(units for _, units in told)
        deadline = time.monotonic() + 30
        # A client that left is noticed a moment later, and its job leaves the device within a step.
        while True:
            server = counted(http)
            server.subtract(before)
            ended = sum(server[outcome] for outcome in ENDS) == clients.total() and not server["waiting or running"]
            if ended or time.monotonic() > deadline:
                break
            time.sleep(0.1)
    assert server["failed"] == 0
    assert server["status 500"] == 0, "that a client leaves is no fault of the service's"
    assert server["status 499"] > 0, (server, clients)
    # One that leaves early may be refused or too late before it is missed; its own view is only that it left.
    early = clients.pop("cancelled", 0)
    ends = {name: server[name] - clients[name] for name in ENDS}
    assert sum(ends.values()) == early
    assert all(difference >= 0 for difference in ends.values())
    assert server["waiting or running"] == 0
    assert clients["completed"] > 0
    if not ends["completed"]:
        assert server["units"] == billed
