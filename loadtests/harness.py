"""Runs loads with Locust's runners: in this process, or in worker processes here and on other machines.

The master tells each worker which share of the requests is its own and when to start; workers send their
records back as they come. The key goes to workers by their environment, never in a message.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gevent
from locust.env import Environment

from loadtests import records, scenario
from loadtests.errors import INTERRUPTED, HarnessError, Interrupted
from loadtests.monitor import Monitor
from loadtests.records import Record, RecordFile
from loadtests.rundata import RunData
from loadtests.session import Order, Session, probe
from loadtests.users import ClosedLoopUser, OpenLoopUser, show

__all__ = ["KEY_VARIABLE", "Harness", "HarnessError", "Judge", "Options", "RunData", "check_server", "work"]

KEY_VARIABLE = "SANA_LOAD_API_KEY"
Judge = Callable[[Record | None, Any], str | None]
"""Asked with each record, and with None now and then; a text ends the run early."""

STOPPED = "the run was stopped on Locust's page"

_LEAD_SECONDS = 0.25
_DISTRIBUTED_LEAD_SECONDS = 1.5
_POLL_SECONDS = 0.05
_REPORT_SECONDS = 0.5
_WORKERS_SECONDS = 60.0
_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Options:
    """How runs are made.

    Args:
        host: scheme, host and port of the server.
        api_key: of the service, empty for none.
        processes: worker processes on this machine; 0 sends from this process.
        remote_workers: workers that are started elsewhere.
        master_port: where the workers connect.
        web_port: of Locust's page, None for none.
        server_pid: the server's process, when it is on this machine and not found by its port.
    """

    host: str
    api_key: str = ""
    processes: int = 0
    remote_workers: int = 0
    master_port: int = 5557
    web_port: int | None = None
    server_pid: int | None = None


class Harness:
    """Makes runs, one after the other, against one server."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._workers = options.processes + options.remote_workers
        self._environment = Environment(user_classes=[OpenLoopUser, ClosedLoopUser], host=options.host)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._messages: list[tuple[str, str, Any]] = []
        if self._workers:
            bind = "127.0.0.1" if not options.remote_workers else "*"
            self._runner = self._environment.create_master_runner(bind, options.master_port)
            for name in ("run-records", "run-finished"):
                self._runner.register_message(name, self._on_message)
        else:
            self._runner = self._environment.create_local_runner()
        self._monitor = Monitor(options.host, options.server_pid)
        if options.web_port is not None:
            self._environment.create_web_ui("127.0.0.1", options.web_port)
        if self._workers:
            self._start_workers()

    def run(
        self,
        load: scenario.Load,
        repeat: int = 0,
        path: Path | None = None,
        judge: Judge | None = None,
        mark: str | None = None,
    ) -> RunData:
        """One run of a scenario.

        Args:
            load: the scenario.
            repeat: its number, from 0.
            path: file of the records, written as they come.
            judge: may end the run early; only asked where requests are sent from this process.
            mark: stands in the prompts, random if None.

        Raises:
            HarnessError: load workers are gone.
            Interrupted: with what was measured so far.
        """
        data = RunData(mark=secrets.token_hex(4) if mark is None else mark)
        file = RecordFile(path) if path else None
        self._monitor.begin()
        try:
            if self._workers:
                self._run_on_workers(load, repeat, data, file)
            else:
                self._run_here(load, repeat, data, file, judge)
        except KeyboardInterrupt as interrupt:
            data.stop_reason = INTERRUPTED
            raise Interrupted(data) from interrupt
        finally:
            data.samples = self._monitor.end()
            if file:
                file.close()
        return data

    def close(self) -> None:
        if self._workers:
            self._runner.quit()
        if self._environment.web_ui:
            self._environment.web_ui.stop()
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()

    def _order(self, load: scenario.Load, repeat: int, mark: str, share: int, start_at: float) -> Order:
        document = load.model_dump(mode="json")
        return Order(self.options.host, document, repeat, mark, share, max(1, self._workers), start_at)

    def _keep(self, data: RunData, file: RecordFile | None, record: Record) -> None:
        data.records.append(record)
        if file:
            file.write(record)

    def _run_here(
        self, load: scenario.Load, repeat: int, data: RunData, file: RecordFile | None, judge: Judge | None
    ) -> None:
        def on_record(record: Record) -> None:
            self._keep(data, file, record)
            show(self._environment, record)
            reason = judge(record, session) if judge else None
            if reason:
                session.stop(reason)

        data.started_at = time.time() + _LEAD_SECONDS
        order = self._order(load, repeat, data.mark, 0, data.started_at)
        session = Session(order, self.options.api_key, on_record)
        self._environment.session = session
        try:
            self._runner.start(*_users(load, 1))
            while not session.finished:
                gevent.sleep(_POLL_SECONDS)
                if file:
                    file.flush()
                reason = judge(None, session) if judge else None
                if reason:
                    session.stop(reason)
                if self._stopped_on_page():
                    session.stop(STOPPED)
                    break
            session.give_up()
        finally:
            self._runner.stop()
            session.close()
            data.lateness, data.stop_reason = session.lateness, session.stop_reason

    def _run_on_workers(self, load: scenario.Load, repeat: int, data: RunData, file: RecordFile | None) -> None:
        clients = sorted(self._runner.clients)
        if len(clients) < self._workers:
            raise HarnessError(f"{self._workers - len(clients)} of {self._workers} load workers are gone")
        self._messages.clear()
        data.started_at = time.time() + _DISTRIBUTED_LEAD_SECONDS
        for share, client in enumerate(clients):
            order = self._order(load, repeat, data.mark, share, data.started_at)
            self._runner.send_message("run-order", order.to_json(), client)
        self._runner.start(*_users(load, len(clients)))
        longest = load.duration_seconds + load.answer_timeout_seconds + _WORKERS_SECONDS
        finished: set[str] = set()
        try:
            while len(finished) < len(clients):
                gevent.sleep(_POLL_SECONDS)
                for client, name, values in self._take_messages():
                    if name == "run-records":
                        for each in values:
                            self._keep(data, file, records.from_json(each))
                    else:
                        finished.add(client)
                        data.lateness += values["lateness"]
                        data.stop_reason = data.stop_reason or values["stop_reason"]
                if file:
                    file.flush()
                if self._stopped_on_page():
                    data.stop_reason = STOPPED
                    break
                if time.time() > data.started_at + longest or len(self._runner.clients) < len(clients):
                    data.stop_reason = data.stop_reason or "a load worker is gone"
                    break
        finally:
            self._runner.stop()

    def _stopped_on_page(self) -> bool:
        return self._runner.state in {"stopping", "stopped", "cleanup"}

    def _take_messages(self) -> Iterator[tuple[str, str, Any]]:
        taken, self._messages = self._messages, []
        yield from taken

    def _on_message(self, msg: Any, **_: Any) -> None:
        self._messages.append((msg.node_id, msg.type, msg.data))

    def _start_workers(self) -> None:
        port = str(self.options.master_port)
        environment = os.environ | {KEY_VARIABLE: self.options.api_key, "PYTHONPATH": str(_ROOT)}
        for _ in range(self.options.processes):
            command = [sys.executable, "-m", "loadtests", "worker", "--master-port", port]
            # In a session of their own: Ctrl-C is for the master, which ends them after the report.
            self._processes.append(
                subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
            )
        deadline = time.monotonic() + _WORKERS_SECONDS
        while len(self._runner.clients) < self._workers:
            if time.monotonic() > deadline:
                connected = len(self._runner.clients)
                raise HarnessError(
                    f"{connected} of {self._workers} load workers connected within {_WORKERS_SECONDS:g} s"
                )
            gevent.sleep(0.1)


def _users(load: scenario.Load, processes: int) -> tuple[int, float, bool, list[type]]:
    """Number of users, users a second, whether to wait, and their class."""
    if isinstance(load, scenario.ClosedLoop):
        return load.in_flight, float(load.in_flight), False, [ClosedLoopUser]
    return processes, float(processes), False, [OpenLoopUser]


def work(master_host: str, master_port: int, api_key: str) -> None:
    """Be a worker: take orders until the master goes away."""
    environment = Environment(user_classes=[OpenLoopUser, ClosedLoopUser])
    runner = environment.create_worker_runner(master_host, master_port)
    waiting: list[Record] = []

    def on_record(record: Record) -> None:
        waiting.append(record)
        show(environment, record)

    def send_records() -> None:
        sent = records.to_json(waiting)
        waiting.clear()
        if sent:
            runner.send_message("run-records", sent)

    def report(session: Session) -> None:
        while not session.finished:
            gevent.sleep(_REPORT_SECONDS)
            send_records()
        session.give_up()
        send_records()
        runner.send_message("run-finished", {"lateness": session.lateness, "stop_reason": session.stop_reason})
        session.close()

    def on_order(msg: Any, **_: Any) -> None:
        session = Session(Order(**msg.data), api_key, on_record)
        environment.session = session
        gevent.spawn(report, session)

    runner.register_message("run-order", on_order)
    runner.greenlet.join()


def check_server(host: str, api_key: str) -> None:
    """Find out before a run whether there is a server and whether it takes the key.

    Raises:
        HarnessError: one line that says what is wrong.
    """
    import requests

    fault = probe(host)
    if fault:
        raise HarnessError(f"{host} cannot be reached: {fault}")
    headers = {"Authorization": f"Key {api_key}"} if api_key else {}
    try:
        # An empty request is refused before any work, but after the key was looked at.
        answer = requests.post(f"{host.rstrip('/')}/sprint", json={}, headers=headers, timeout=30)
    except requests.RequestException as error:
        raise HarnessError(f"{host} does not speak HTTP: {type(error).__name__}") from error
    if answer.status_code in {401, 403}:
        which = "the key was refused" if api_key else f"a key is needed, set {KEY_VARIABLE}"
        raise HarnessError(f"{host}: {which} (status {answer.status_code})")
    if answer.status_code in {404, 405}:
        raise HarnessError(f"{host} has no POST /sprint (status {answer.status_code})")
