"""One replica is killed and started again, one is drained, one hangs and comes back: nothing is lost or made twice."""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx

from sana_service.jobs.once import LEASE_SECONDS
from tests.replicas.farm import KEY, Farm, Replica
from tests.replicas.load import Load, Record, headers

# How a session ended: H and D come second after the request went out, C before it was connected; D comes first where
# the balancer gave its replica up, S where the replica closed the connection.
_LINE = re.compile(r"^([0-9a-f]{32}) server=(\S+) status=(-?\d+) retries=\+?(\d+) end=([A-Za-z-]{2})", re.MULTILINE)
# Until three checks are missed the balancer still gives the hung one its share.
_QUEUED_AT_THE_HUNG = 20
_CUT = {"H", "D"}
_WORKING = re.compile(r"^bentoml_service_request_in_progress\{[^}]*/(?:generate|sprint)[^}]*\} (\S+)$", re.MULTILINE)


Try = tuple[str, int, int, str]
"""Server, status, retries, and two letters of how it ended."""


@dataclass
class Result:
    """What was seen.

    Args:
        summary: for people and for JSON.
        faults: in words; empty when all is as it should be.
    """

    summary: dict[str, Any]
    faults: list[str]


def run(farm: Farm, rate_per_second: float, phase_seconds: float, *, restart: bool) -> Result:
    """Let things happen to the replicas under load, each while it works, and look at what came of it.

    Args:
        phase_seconds: of load before the first event and between them; at least the hang takes longer.
        restart: whether the killed replica is started again at its address, as an orchestrator would.
    """
    killed, drained, hung = farm.replicas
    on_it: dict[str, int] = {}
    marks: dict[str, float] = {}
    with Load(farm.url, rate_per_second) as load:
        time.sleep(phase_seconds)
        on_it["hung"] = _wait_until_busy(hung)
        hung.hang()
        # The balancer gives it up after three missed checks, and its keys are free after a lease.
        time.sleep(max(phase_seconds, LEASE_SECONDS + 5))
        hung.wake()
        time.sleep(phase_seconds)
        on_it["killed"] = _wait_until_busy(killed)
        killed.kill()
        marks["killed"] = time.time()
        if restart:
            killed.start()
            time.sleep(phase_seconds)
            killed.wait_until_ready()
        on_it["drained"] = _wait_until_busy(drained)
        marks["drained"] = time.time()
        code = drained.drain()
        marks["ended"] = time.time()
        time.sleep(phase_seconds)
    living = [hung, killed] if restart else [hung]
    result = _judge(farm, load.records, [farm.url, *(replica.url for replica in living)], on_it)
    result.summary["drain"] = {"exit_code": code, "seconds": round(marks["ended"] - marks["drained"], 2)}
    if code != 0:
        result.faults.append(f"the drained replica ended with {code}")
    return result


def _judge(farm: Farm, records: list[Record], urls: list[str], on_it: dict[str, int]) -> Result:
    lost = [record for record in records if record.answer is None]
    faults = [f"{record.route} of key {record.key} was never answered: {record.attempts}" for record in lost]
    answered = [record for record in records if record.answer is not None]
    log = _balancer_log(farm)
    names = Counter(name for record in answered for name in record.names)
    faults += [f"{name} is in {count} answers" for name, count in names.items() if count > 1]
    for url in urls[1:]:
        _wait_until_idle(url)
    faults += _replays(farm, answered, urls)
    faults += _files(answered, urls)
    stored = farm.stored()
    orphans = stored - set(names)
    if len(orphans) > on_it["killed"]:
        faults.append(f"{len(orphans)} images belong to no answer, and {on_it['killed']} requests were on the killed")
    if missing := set(names) - stored:
        faults.append(f"{len(missing)} images of answers are not in the bucket")
    units = sum(record.units for record in answered)
    if units != len(answered):
        faults.append(f"{units} units for {len(answered)} pictures of one unit each")
    failed = [record for record in records if record.attempts[0] != "200"]
    if len(failed) > on_it["hung"] + on_it["killed"] + _QUEUED_AT_THE_HUNG:
        faults.append(f"{len(failed)} first attempts failed, with {on_it} in flight")
    failed_tries = [(server, end) for tries in log.values() for server, status, _, end in tries if status >= 500]
    cut = Counter(f"{server} {end}" for server, end in failed_tries if end[1] in _CUT)
    drained = f"replica{farm.replicas[1].number}"
    if any(server == drained and end[0] == "D" for server, end in failed_tries):
        faults.append(f"the balancer gave the drained replica up: {dict(cut)}")
    times = sorted(record.seconds for record in records)
    by_server = Counter(server for tries in log.values() for server, status, *_ in tries if status == 200)
    return Result(
        {
            "requests": len(records),
            "answered": len(answered),
            "in_flight_on_it": on_it,
            "first_attempts": dict(Counter(record.attempts[0] for record in records)),
            "repeated_by_the_client": sum(len(record.attempts) > 1 for record in records),
            "repeated_by_the_balancer": sum(any(retries for _, _, retries, _ in tries) for tries in log.values()),
            "cut_on": dict(cut),
            "turned_away_by": dict(Counter(server for server, end in failed_tries if end[1] not in _CUT)),
            "served_by": dict(sorted(by_server.items())),
            "images": len(names),
            "images_without_an_answer": len(orphans),
            "units_billed": units,
            "median_seconds": round(times[len(times) // 2], 3),
            "slowest_seconds": round(times[-1], 2),
        },
        faults,
    )


def _balancer_log(farm: Farm) -> dict[str, list[Try]]:
    """Each attempt of each key."""
    found: dict[str, list[Try]] = {}
    for key, server, status, retries, end in _LINE.findall(farm.balancer_log.read_text()):
        found.setdefault(key, []).append((server, int(status), int(retries), end))
    return found


def _working(url: str) -> int:
    """How many pictures a replica works on."""
    text = httpx.get(f"{url}/metrics", headers={"Authorization": f"Key {KEY}"}, timeout=30).text
    return round(sum(map(float, _WORKING.findall(text))))


def _wait_until_busy(replica: Replica) -> int:
    """How many requests are on it; more than none."""
    deadline = time.monotonic() + 30
    while not (working := _working(replica.url)):
        if time.monotonic() > deadline:
            raise RuntimeError(f"replica {replica.number} never had anything to do")
    return working


def _wait_until_idle(url: str) -> None:
    """Until it works on nothing: what a hung replica had begun is given up or finished by then."""
    deadline = time.monotonic() + 60
    while working := _working(url):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{url} still works on {working}")
        time.sleep(0.1)


def _replays(farm: Farm, answered: list[Record], urls: list[str]) -> list[str]:
    """Each key once more, through the balancer and each replica: the same answer, and nothing drawn."""
    before = farm.stored()

    def ask(record: Record) -> list[str]:
        faults = []
        for url in urls:
            answer = httpx.post(url + record.route, json=record.body, headers=headers(record.key), timeout=60)
            replayed = answer.headers.get("idempotent-replayed")
            if answer.status_code != 200 or replayed != "true" or answer.json() != record.answer:
                faults.append(f"key {record.key} is answered otherwise through {url}: {answer.status_code}, {replayed}")
        return faults

    with ThreadPoolExecutor(4) as pool:
        faults = [fault for found in pool.map(ask, answered) for fault in found]
    drawn = farm.stored() - before
    return [*faults, *(f"{name} was drawn for a repetition" for name in drawn)]


def _files(answered: list[Record], urls: list[str]) -> list[str]:
    """Each image through the balancer and each replica: the same bytes, whoever wrote it."""

    def ask(name: str) -> list[str]:
        digests = set()
        for url in urls:
            answer = httpx.get(f"{url}/files/{name}", timeout=60)
            digests.add(hashlib.sha256(answer.content).hexdigest() if answer.status_code == 200 else answer.status_code)
        return [] if len(digests) == 1 and 404 not in digests else [f"{name} differs: {digests}"]

    names = [name for record in answered for name in record.names]
    with ThreadPoolExecutor(4) as pool:
        return [fault for found in pool.map(ask, names) for fault in found]
