"""What every store promises, asked of both: SQLite, and a real Redis or Valkey server where there is one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sana_service.jobs.record import LOW_PRIORITY, Ending, Job, LogLine, Report, StoreError, StoreFull, new_job_id
from sana_service.jobs.sqlite import SqliteStore
from sana_service.jobs.store import JobStore, default_url, open_store, sqlite_path
from tests.services import free_port

DONE = Ending(200, {"content-type": "application/json"}, b'{"seed": 7}', inference_seconds=0.5)
FAILED = Ending(422, {}, b"{}", error="bad", error_type="bad_request")
LATER = 2_000_000_000.0


def job(**changes: object) -> Job:
    return replace(Job(new_job_id(), "base", '{"prompt": "a"}', "http://sana.test", 1000.0), **changes)  # type: ignore[arg-type]


@pytest.fixture(params=["sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[JobStore]:
    url = f"sqlite://{tmp_path}/jobs/jobs.db" if request.param == "sqlite" else request.getfixturevalue("redis_url")
    opened = open_store(url)
    yield opened
    opened.close()


def test_jobs_leave_in_the_order_they_came_low_priority_last(store):
    low, first, second = job(priority=LOW_PRIORITY), job(), job()
    assert [store.add(one, 10) for one in (low, first, second)] == [0, 0, 1]
    assert [store.position(one.id) for one in (low, first, second)] == [2, 0, 1]
    claimed = [store.claim("w", 0.0, 10.0) for _ in range(3)]
    assert [record.job for record in claimed] == [first, second, low]
    assert {record.state for record in claimed} == {"running"}
    assert store.claim("w", 0.0, 10.0) is None


def test_what_waits_is_bounded(store):
    store.add(job(), 2)
    store.add(job(), 2)
    with pytest.raises(StoreFull, match="2 jobs wait"):
        store.add(job(), 2)
    assert store.waiting() == 2
    assert store.claim("w", 0.0, 10.0) is not None
    store.add(job(), 2)


def test_a_job_comes_back_as_it_was_given(store):
    one = job(start_by=5.5, retry=False, lifetime_seconds=60.0, webhook="https://x.test/h", payload='{"prompt": "é"}')
    store.add(one, 10)
    record = store.get(one.id)
    assert (record.job, record.state, record.attempts, record.ending) == (one, "queued", 0, None)
    assert store.get("0" * 32) is None


def test_only_the_owner_ends_a_job_and_only_once(store):
    one = job()
    store.add(one, 10)
    assert not store.finish("w", one.id, DONE, 1.0, LATER)
    store.claim("w", 0.0, 10.0)
    assert not store.finish("other", one.id, FAILED, 1.0, LATER)
    assert store.finish("w", one.id, DONE, 1.0, LATER)
    assert not store.finish("w", one.id, FAILED, 1.0, LATER)
    record = store.get(one.id)
    assert (record.state, record.ending) == ("done", DONE)
    assert store.cancel(one.id, FAILED, 2.0, LATER) == "done"
    assert store.get(one.id).ending == DONE


def test_a_lapsed_lease_hands_the_job_on_and_the_former_owner_cannot_end_it(store):
    one = job()
    store.add(one, 10)
    store.claim("killed", 100.0, 10.0)
    assert store.claim("heir", 109.0, 10.0) is None
    assert store.renew("killed", [one.id], 120.0) == {one.id: False}
    assert store.claim("heir", 119.0, 10.0) is None
    heir = store.claim("heir", 120.0, 10.0)
    assert (heir.job, heir.attempts) == (one, 2)
    assert store.renew("killed", [one.id], 500.0) == {}
    assert not store.finish("killed", one.id, FAILED, 121.0, LATER)
    assert store.finish("heir", one.id, DONE, 121.0, LATER)


def test_a_released_job_waits_in_its_place(store):
    first, second = job(), job()
    store.add(first, 10)
    store.add(second, 10)
    store.claim("w", 0.0, 10.0)
    assert not store.release("other", first.id, 5.0, counted=False)
    assert store.release("w", first.id, 5.0, counted=False)
    assert store.get(first.id).state == "queued"
    assert store.claim("w", 4.0, 10.0).job == second
    again = store.claim("w", 5.0, 10.0)
    assert (again.job, again.attempts) == (first, 1)
    store.release("w", first.id, 5.0, counted=True)
    assert store.claim("w", 5.0, 10.0).attempts == 2


def test_cancelling_ends_a_queued_job_and_asks_a_running_one(store):
    queued, running = job(), job()
    store.add(running, 10)
    store.claim("w", 0.0, 10.0)
    store.add(queued, 10)
    assert store.cancel(queued.id, FAILED, 1.0, LATER) == "ended"
    assert store.cancel(running.id, FAILED, 1.0, LATER) == "requested"
    assert store.cancel("0" * 32, FAILED, 1.0, LATER) is None
    assert store.get(queued.id).ending == FAILED
    assert store.renew("w", [running.id], 20.0) == {running.id: True}
    assert store.claim("w", 1.0, 10.0) is None
    assert store.waiting() == 0


def test_overdue_jobs_are_found_wherever_they_stand(store):
    patient, hasty = job(), job(start_by=50.0)
    store.add(patient, 10)
    store.add(hasty, 10)
    assert store.claim("w", 49.0, 10.0, overdue=True) is None
    assert store.claim("w", 50.0, 10.0, overdue=True).job == hasty
    assert store.claim("w", 50.0, 10.0, overdue=True) is None
    store.release("w", hasty.id, 0.0, counted=False)
    assert store.claim("w", 50.0, 10.0, overdue=True).job == hasty


def test_reports_are_the_owners_and_end_with_the_claim(store):
    one = job()
    told = Report((LogLine("denoise", "2026-01-01T00:00:00Z"),), "denoise", 3, 18)
    store.add(one, 10)
    store.claim("w", 0.0, 10.0)
    store.report("w", one.id, told)
    store.report("other", one.id, Report())
    assert store.get(one.id).report == told
    store.release("w", one.id, 0.0, counted=True)
    assert store.get(one.id).report == Report()


def test_a_webhook_is_due_once_the_job_ended_until_it_was_delivered(store):
    told, silent = job(webhook="https://x.test/h"), job()
    for one in (told, silent):
        store.add(one, 10)
        store.claim("w", 0.0, 10.0)
    assert store.next_delivery(LATER, 60.0) is None
    for one in (told, silent):
        store.finish("w", one.id, DONE, 100.0, 101.0)
    assert store.purge(500.0) == 1
    first = store.next_delivery(100.0, 60.0)
    assert (first.record.job, first.record.ending, first.attempt) == (told, DONE, 0)
    assert store.next_delivery(159.0, 60.0) is None
    store.retry_delivery(told.id, 200.0)
    assert store.next_delivery(199.0, 60.0) is None
    assert store.next_delivery(200.0, 60.0).attempt == 1
    store.delivered(told.id)
    assert store.next_delivery(LATER, 60.0) is None
    assert store.purge(500.0) == 1
    assert store.get(told.id) is None


def test_a_job_that_ended_at_once_never_waits(store):
    store.add(job(), 1)
    one = job(webhook="https://x.test/h")
    assert store.add(one, 1, FAILED, expires_at=2000.0) == 0
    record = store.get(one.id)
    assert (record.state, record.ending) == ("done", FAILED)
    assert store.next_delivery(1000.0, 60.0).record.job == one
    assert store.waiting() == 1


def test_done_jobs_are_purged_when_they_expire_others_never(store):
    ended, waiting = job(), job()
    store.add(ended, 10)
    store.claim("w", 0.0, 10.0)
    store.add(waiting, 10)
    store.finish("w", ended.id, DONE, 1.0, 100.0)
    assert store.purge(99.0) == 0
    assert store.purge(100.0) == 1
    assert store.get(ended.id) is None
    assert store.get(waiting.id) is not None


def test_files_are_named_once_when_their_time_has_come(store):
    store.delete_later(["a.jpg", "b.jpg"], 10.0)
    store.delete_later(["c.jpg"], 20.0)
    assert store.due_files(9.0) == []
    assert sorted(store.due_files(10.0)) == ["a.jpg", "b.jpg"]
    assert store.due_files(10.0) == []


def test_a_secret_is_the_first_proposal(store):
    assert store.secret("key", b"\x00first") == b"\x00first"
    assert store.secret("key", b"second") == b"\x00first"


def test_many_workers_claim_each_job_once(store):
    jobs = {job().id for _ in range(40)}
    for job_id in jobs:
        store.add(job(id=job_id), 100)
    claimed: list[str] = []

    def work(owner: str) -> None:
        while (record := store.claim(owner, 0.0, 10.0)) is not None:
            claimed.append(record.job.id)
            assert store.finish(owner, record.job.id, DONE, 1.0, LATER)

    threads = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(jobs)


def test_jobs_survive_the_process(tmp_path):
    one = job()
    with_crash = SqliteStore(tmp_path / "jobs.db")
    with_crash.add(one, 10)
    with_crash.claim("killed", 0.0, 10.0)
    # never closed, as after kill -9
    again = SqliteStore(tmp_path / "jobs.db")
    heir = again.claim("heir", 10.0, 10.0)
    assert heir is not None
    assert heir.job == one
    again.close()
    with_crash.close()


def test_a_database_is_readable_by_its_owner_alone(tmp_path):
    store = open_store(f"sqlite://{tmp_path}/made/jobs.db")
    store.close()
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "made" / "jobs.db").stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_no_database_is_an_error_of_one_line(tmp_path):
    (tmp_path / "jobs.db").write_bytes(b"no database at all, " * 100)
    with pytest.raises(StoreError, match="cannot be opened"):
        open_store(f"sqlite://{tmp_path}/jobs.db")


@pytest.mark.parametrize("url", ["jobs.db", "postgres://x/y", "sqlite://host/path", "sqlite:///", "sqlite:relative"])
def test_other_urls_are_refused(url):
    with pytest.raises(ValueError, match="must be"):
        open_store(url)


def test_a_server_that_does_not_answer_is_a_store_error():
    store = open_store(f"redis://:secret@127.0.0.1:{free_port()}/0")
    with pytest.raises(StoreError) as caught:
        store.waiting()
    assert "secret" not in str(caught.value)


def test_each_storage_has_a_database_of_its_own():
    assert default_url("file:///a") != default_url("file:///b")
    assert sqlite_path(default_url("file:///a")).name == "jobs.db"
