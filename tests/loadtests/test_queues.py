"""The harness against queues whose latencies are known.

Generator and server say of themselves how late they were. A latency that is off by more than is allowed
is a fault, unless that lateness takes up half of what is allowed: then the machine is too busy to measure
milliseconds, the run is made again, and after three such runs the test is skipped and says so.

`SANA_QUEUE_REQUESTS=20000` makes the long form, in which the closed forms hold, too; `make bench-proof`
sets it. A run of the short form is too short for them.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from loadtests import scenario
from loadtests.schedule import Source
from tests.loadtests.queues import lindley, md1_sojourn_quantile, mm1_sojourn_quantile
from tests.loadtests.support import Done, QueueServer, harness, queue_server, write_scenario
from tests.services import free_port

pytestmark = pytest.mark.timing

REQUESTS = int(os.environ.get("SANA_QUEUE_REQUESTS", "500"))
IS_LONG = REQUESTS >= 20_000
ALLOWED_SECONDS = 0.005
RATE = 100.0
SERVICE_SECONDS = 0.1
LANES = 20
TRIES = 3

Trial = tuple[QueueServer, Done]


def at_half_load(folder: Path, service: str) -> Trial:
    """Poisson arrivals that fill `LANES` parallel queues to one half."""
    path = write_scenario(folder, seconds=REQUESTS / RATE, rate=RATE)
    options = ["--service", service, "--seconds", str(SERVICE_SECONDS), "--lanes", str(LANES), "--seed", "3"]
    with queue_server(folder, *options) as server:
        return server, harness(folder, "run", path, "--host", server.url)


def differences(server: QueueServer, done: Done) -> list[float]:
    """By how much each latency differs from Lindley's, in seconds."""
    records = {record.seed: record for record in done.records()}
    served = [each for each in server.served() if each[0] in records]
    assert len(served) == len(records) == pytest.approx(REQUESTS, rel=0.15)
    found = []
    for lane in range(LANES):
        here = [each for each in served if each[1] == lane]
        queue = sorted((records[seed].intended, seconds, seed) for seed, _, seconds, _ in here)
        expected = lindley(np.array([each[0] for each in queue]), np.array([each[1] for each in queue]))
        found += [abs(records[each[2]].latency - known) for each, known in zip(queue, expected, strict=True)]
    return found


def lateness(server: QueueServer, done: Done) -> float:
    """How late answering, sending and reading were, as server and generator say of themselves, each at p99."""
    answering = np.quantile([late for *_, late in server.served()], 0.99)
    generator = done.run()["generator"]
    return float(answering + generator["lag_p99_seconds"] + generator["heartbeat_p99_seconds"])


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("service", ["exponential", "constant"], ids=["mm1", "md1"])
def test_each_latency_is_that_of_the_lindley_recursion(service, tmp_path):
    excuses = []
    for number in range(TRIES):
        folder = tmp_path / str(number)
        folder.mkdir()
        server, done = at_half_load(folder, service)
        assert done.code in {0, 3}, done.said
        off = float(np.quantile(differences(server, done), 0.99))
        print(f"{service}: {len(done.records())} requests, off by {off * 1000:.2f} ms at p99")
        if off <= ALLOWED_SECONDS:
            break
        late = lateness(server, done)
        assert late > ALLOWED_SECONDS / 2, f"off by {off * 1000:.1f} ms, late by {late * 1000:.1f} ms"
        excuses.append(f"off by {off * 1000:.1f} ms, late by {late * 1000:.1f} ms")
    else:
        pytest.skip(f"the machine is too busy to measure milliseconds: {excuses}")
    if IS_LONG:
        latency = done.run()["all"]["latency_seconds"]
        closed_form = mm1_sojourn_quantile if service == "exponential" else md1_sojourn_quantile
        for name, share, tolerance in (("p50", 0.5, 0.05), ("p99", 0.99, 0.1)):
            expected_seconds = closed_form(RATE / LANES, SERVICE_SECONDS, share)
            print(f"{service} {name}: {latency[name]:.4f} s, closed form {expected_seconds:.4f} s")
            assert latency[name] == pytest.approx(expected_seconds, rel=tolerance)


def test_a_closed_loop_does_not_see_the_queue(tmp_path):
    """One request at a time meets an idle server: of the tail that its users see at half load, nothing is left."""
    service_seconds = 0.02
    path = Path(write_scenario(tmp_path, seconds=4))
    text = path.read_text().replace('"server"', '"single_stream"')
    path.write_text(text[: text.index("[arrivals]")] + text[text.index("[[requests]]") :])
    with queue_server(tmp_path, "--service", "exponential", "--seconds", str(service_seconds)) as server:
        done = harness(tmp_path, "run", str(path), "--host", server.url)
    assert done.code in {0, 3}, done.said
    closed_p90 = np.quantile([record.latency for record in done.records()], 0.9)
    open_p90 = mm1_sojourn_quantile(0.5 / service_seconds, service_seconds, 0.9)
    assert closed_p90 < 0.75 * open_p90
    assert closed_p90 == pytest.approx(mm1_sojourn_quantile(0, service_seconds, 0.9), rel=0.3)


def test_a_stall_shows_in_the_tail(tmp_path):
    """Two seconds in which nothing is served are seen by every request that was due in them."""
    path = write_scenario(tmp_path, seconds=4, rate=40, process="constant")
    options = ["--seconds", "0.005", "--lanes", "8", "--stall-after", "40", "--stall-for", "2"]
    with queue_server(tmp_path, *options) as server:
        done = harness(tmp_path, "run", path, "--host", server.url)
    assert done.code in {0, 3}, done.said
    latency = done.run()["all"]["latency_seconds"]
    # Half of the run: the latencies of those that were due in the stall fall evenly from two seconds to none.
    hit = [record.latency for record in done.records() if record.latency > 0.1]
    assert len(hit) == pytest.approx(1.9 * 40, abs=8)
    assert latency["p99"] == pytest.approx(2.0, abs=0.15)
    assert latency["p90"] == pytest.approx(1.6, abs=0.15)
    # Counted from sending alone, a client that waits would have seen one slow request.
    assert sum(record.lag > 0.1 for record in done.records()) == 0


def test_the_search_finds_the_known_capacity(tmp_path):
    """Constant arrivals, constant service, lanes in turn: lanes over seconds, exactly."""
    path = write_scenario(tmp_path, seconds=2, rate=70, process="constant", more="[objective]\nsprint_seconds = 0.1")
    with queue_server(tmp_path, "--seconds", "0.05", "--lanes", "4", "--in-turn") as server:
        done = harness(tmp_path, "search", path, "--host", server.url, "--shares", "0.9")
    assert done.code in {0, 3}, done.said
    capacity, curve = done.result()["parts"]
    assert capacity["rate"] == pytest.approx(80, rel=0.05)
    assert curve["knee"]["rate"] == pytest.approx(capacity["rate"] * 0.9, rel=0.05)


def test_workers_share_the_schedule(tmp_path):
    path = write_scenario(tmp_path, seconds=1.5, rate=60)
    with queue_server(tmp_path, "--seconds", "0.01", "--lanes", "8") as server:
        workers = ("--processes", "2", "--master-port", str(free_port()))
        done = harness(tmp_path, "run", path, "--host", server.url, *workers)
    assert done.code in {0, 3}, done.said
    load = scenario.load(Path(path))
    assert isinstance(load, scenario.Server)
    source = Source(load, 0, "")
    times = source.times()
    # The requests that one process would send, at the times at which it would.
    assert [(record.index, record.intended, record.seed) for record in done.records()] == [
        (index, at, source.planned(index).body["seed"]) for index, at in enumerate(times.tolist())
    ]
