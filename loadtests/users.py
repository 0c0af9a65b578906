"""The Locust users of scenarios. They belong to one session; Locust's runner starts, counts and stops them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from locust import User, task
from locust.exception import StopUser

if TYPE_CHECKING:
    from locust.env import Environment

    from loadtests.records import Record
    from loadtests.session import Session


class OpenLoopUser(User):
    """Sends a process's share of the schedule; one for each process."""

    @task
    def run_schedule(self) -> None:
        session: Session = self.environment.session
        session.dispatch()
        raise StopUser


class ClosedLoopUser(User):
    """Asks, waits and asks again; as many as there are to be requests in flight."""

    @task
    def ask_again_and_again(self) -> None:
        session: Session = self.environment.session
        session.loop()
        raise StopUser


def show(environment: Environment, record: Record) -> None:
    """Put a record into Locust's statistics and onto its page, with the latency from the intended start."""
    environment.events.request.fire(
        request_type="POST",
        name=record.endpoint,
        response_time=record.latency * 1000,
        response_length=record.response_bytes,
        exception=RuntimeError(record.error) if record.error else None,
        context={},
        response=None,
    )
