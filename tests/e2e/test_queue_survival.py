"""`kill -9` with 20 jobs queued and 2 running: after the restart every one ends exactly once."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import threading
import time
from pathlib import Path

import httpx
import psutil

from tests import services

QUEUE = "/queue/fal-ai/sana"
QUEUED, RUNNING = 20, 2
LONG = {"prompt": "a", "image_size": "square", "num_inference_steps": 50, "num_images": 2, "seed": 1}
SHORT = {"prompt": "a", "image_size": "square", "num_inference_steps": 1, "seed": 2}


def kill_all(server: services.Server) -> None:
    """The worker first: its supervisor would otherwise have time to be told."""
    processes = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    for process in reversed(processes):
        with contextlib.suppress(psutil.NoSuchProcess):
            os.kill(process.pid, signal.SIGKILL)
    server.process.wait(10)


class Poller(threading.Thread):
    """A client that polls one job through the crash, as fal's do."""

    def __init__(self, urls: dict[str, str], job_id: str) -> None:
        super().__init__(daemon=True)
        self._urls = urls
        self._path = f"{QUEUE}/requests/{job_id}/status"
        self.seen: list[str] = []

    def run(self) -> None:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and self.seen[-1:] != ["COMPLETED"]:
            with contextlib.suppress(httpx.TransportError):
                status = httpx.get(self._urls["now"] + self._path, timeout=10).json()["status"]
                if self.seen[-1:] != [status]:
                    self.seen.append(status)
            time.sleep(0.1)


def test_every_job_ends_exactly_once_after_kill_9(tmp_path: Path, pair_variables: dict[str, str]) -> None:
    database = tmp_path / "jobs" / "jobs.db"
    variables = {
        **pair_variables,
        "SANA_JOBS_URL": f"sqlite://{database}",
        "SANA_JOBS_CONCURRENCY": str(RUNNING),
        "SANA_STORAGE_URL": (tmp_path / "files").as_uri(),
    }
    urls: dict[str, str] = {}
    with services.server(tmp_path / "first", variables) as first:
        urls["now"] = first.url
        with first.client() as http:
            ids = [http.post(QUEUE, json=LONG).json()["request_id"] for _ in range(RUNNING)]
            deadline = time.monotonic() + 30
            while {http.get(f"{QUEUE}/requests/{job}/status").json()["status"] for job in ids} != {"IN_PROGRESS"}:
                assert time.monotonic() < deadline
            ids += [http.post(QUEUE, json=SHORT).json()["request_id"] for _ in range(QUEUED)]
            pollers = [Poller(urls, job) for job in (ids[0], ids[-1])]
            for poller in pollers:
                poller.start()
            states = [http.get(f"{QUEUE}/requests/{job}/status").json()["status"] for job in ids]
            assert states == ["IN_PROGRESS"] * RUNNING + ["IN_QUEUE"] * QUEUED
        kill_all(first)
    count_ends(database)
    with services.server(tmp_path / "second", variables) as second:
        urls["now"] = second.url
        with second.client() as http:
            deadline = time.monotonic() + 150
            pending = set(ids)
            while pending:
                assert time.monotonic() < deadline, (len(pending), second.log[-3000:])
                done = {job for job in pending if http.get(f"{QUEUE}/requests/{job}/status").status_code == 200}
                pending -= done
                time.sleep(0.2)
            answers = [http.get(f"{QUEUE}/requests/{job}") for job in ids]
            assert {answer.status_code for answer in answers} == {200}
            assert [len(answer.json()["images"]) for answer in answers] == [2] * RUNNING + [1] * QUEUED
            assert http.get(answers[0].json()["images"][0]["url"].replace(first.url, second.url)).status_code == 200
    for poller in pollers:
        poller.join(20)
        assert poller.seen[-1] == "COMPLETED"
    with contextlib.closing(sqlite3.connect(database)) as sql:
        assert sql.execute("SELECT id, number FROM ends").fetchall() != []
        assert dict(sql.execute("SELECT id, number FROM ends")) == dict.fromkeys(ids, 1)


def count_ends(database: Path) -> None:
    """Let the database itself count how often each job becomes done."""
    with contextlib.closing(sqlite3.connect(database)) as sql:
        sql.executescript(
            """CREATE TABLE ends (id TEXT PRIMARY KEY, number INTEGER NOT NULL);
            CREATE TRIGGER counted AFTER UPDATE OF state ON jobs WHEN new.state = 'done' BEGIN
                INSERT INTO ends VALUES (new.id, 1) ON CONFLICT (id) DO UPDATE SET number = number + 1;
            END;"""
        )
        assert sql.execute("SELECT count(*) FROM jobs WHERE state = 'done'").fetchone() == (0,)
