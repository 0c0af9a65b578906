"""A key is served once: by one process, by several on one Redis, and when one of them falls silent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sana_service.contract.errors import DeadlinePassed, Overloaded, Unavailable
from sana_service.contract.idempotency import InvalidKey, KeyReused, Superseded, read_idempotency_key
from sana_service.jobs.keys import Answer, KeyStore, MemoryKeys
from sana_service.jobs.once import MAX_WAITING, Once, Settle, fingerprint, key_name
from sana_service.jobs.record import StoreError

ANSWER = Answer('{"images": []}', {"x-fal-billable-units": "1"})
OTHER = Answer('{"images": [1]}', {"x-fal-billable-units": "2"})


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> Iterator[KeyStore]:
    if request.param == "memory":
        yield MemoryKeys()
        return
    from sana_service.jobs.keys_redis import RedisKeys

    keys = RedisKeys(request.getfixturevalue("redis_url"))
    yield keys
    keys.close()


def answering(answer: Answer, served: list[str]) -> Callable[[Settle], Any]:
    async def work(settle: Settle) -> None:
        served.append(answer.body)
        await asyncio.sleep(0.05)
        await settle(answer)

    return work


async def serve(
    once: Once, name: str, fingerprint: str, work: Callable[[Settle], Any], seconds: float = 30.0
) -> Answer | None:
    return await once.serve(name, fingerprint, work, time.monotonic() + seconds)


def test_many_with_one_key_are_served_once(store):
    served: list[str] = []

    async def main() -> list[Answer | None]:
        once = [Once(store, 60) for _ in range(3)]
        return await asyncio.gather(*(serve(once[i % 3], "k", "f", answering(ANSWER, served)) for i in range(12)))

    answers = asyncio.run(main())
    assert served == [ANSWER.body]
    assert answers.count(None) == 1
    assert answers.count(ANSWER) == 11


def test_another_request_under_the_key_is_refused_before_and_after_the_answer(store):
    async def main() -> None:
        once = Once(store, 60)
        held = asyncio.create_task(serve(once, "k", "f", answering(ANSWER, [])))
        while store.claim("k", "f", "stranger", 60) is None:
            store.release("k", "stranger")
            await asyncio.sleep(0)
        with pytest.raises(KeyReused):
            await serve(once, "k", "g", answering(OTHER, []))
        assert await held is None
        with pytest.raises(KeyReused):
            await serve(once, "k", "g", answering(OTHER, []))
        assert await serve(once, "other", "g", answering(OTHER, [])) is None

    asyncio.run(main())


def test_an_error_frees_the_key(store):
    async def refuse(settle: Settle) -> None:
        raise Overloaded("full")

    async def main() -> None:
        once = Once(store, 60)
        with pytest.raises(Overloaded):
            await serve(once, "k", "f", refuse)
        served: list[str] = []
        assert await serve(once, "k", "f", answering(ANSWER, served)) is None
        assert served == [ANSWER.body]

    asyncio.run(main())


def test_a_client_that_leaves_frees_the_key(store):
    async def main() -> None:
        once = Once(store, 60)
        began = asyncio.Event()

        async def hang(settle: Settle) -> None:
            began.set()
            await asyncio.Event().wait()

        left = asyncio.create_task(serve(once, "k", "f", hang))
        await began.wait()
        left.cancel()
        await asyncio.wait({left})
        assert await asyncio.wait_for(serve(once, "k", "f", answering(ANSWER, [])), 5) is None

    asyncio.run(main())


def test_work_that_outlives_its_lease_keeps_the_key(store):
    """The lease is renewed for as long as the process lives."""
    served: list[str] = []

    async def main() -> tuple[Answer | None, Answer | None]:
        once = Once(store, 60, lease_seconds=0.2)
        began = asyncio.Event()

        async def slow(settle: Settle) -> None:
            served.append("slow")
            began.set()
            await asyncio.sleep(1)
            await settle(ANSWER)

        first = asyncio.create_task(serve(once, "k", "f", slow))
        await began.wait()
        second = await serve(once, "k", "f", answering(OTHER, served))
        return await first, second

    assert asyncio.run(main()) == (None, ANSWER)
    assert served == ["slow"]


def test_a_silent_owner_is_superseded_and_answers_with_the_other(store):
    """The owner's lease lapses as that of a stopped process does; it then comes back with an answer of its own."""

    async def main() -> None:
        assert store.claim("k", "f", "silent", 0.1) is None
        once = Once(store, 60)
        served: list[str] = []
        assert await serve(once, "k", "f", answering(ANSWER, served)) is None
        assert served == [ANSWER.body]
        assert not store.keep("k", "f", "silent", OTHER, 60)

        async def late(settle: Settle) -> None:
            store.keep("late", "f", "winner", OTHER, 60)
            with pytest.raises(Superseded):
                await settle(ANSWER)
            raise Superseded

        # Its key vanishes under its hands, and another's answer stands there when it has its own.
        silent = Once(_Forgetful(store), 60)
        assert await serve(silent, "late", "f", late) == OTHER

    asyncio.run(main())


class _Forgetful:
    """A store in which a claim lapses at once."""

    def __init__(self, store: KeyStore) -> None:
        self._store = store

    def claim(self, name: str, fingerprint: str, owner: str, lease_seconds: float) -> Any:
        held = self._store.claim(name, fingerprint, owner, lease_seconds)
        self._store.release(name, owner)
        return held

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_waiting_has_an_end(store):
    async def main() -> None:
        assert store.claim("k", "f", "somebody", 60) is None
        with pytest.raises(DeadlinePassed, match="did not end in time"):
            await serve(Once(store, 60), "k", "f", answering(ANSWER, []), seconds=0.2)

    asyncio.run(main())


def test_not_all_may_wait(store):
    async def main() -> list[Answer | BaseException | None]:
        once = Once(store, 60)
        done = asyncio.Event()

        async def slow(settle: Settle) -> None:
            await done.wait()
            await settle(ANSWER)

        first = asyncio.create_task(serve(once, "k", "f", slow))
        while store.claim("k", "f", "stranger", 60) is None:
            store.release("k", "stranger")
            await asyncio.sleep(0)
        waiting = [asyncio.create_task(serve(once, "k", "f", slow)) for _ in range(MAX_WAITING + 44)]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        done.set()
        assert await first is None
        return await asyncio.gather(*waiting, return_exceptions=True)

    answers = asyncio.run(main())
    refused = [answer for answer in answers if isinstance(answer, Overloaded)]
    assert len(refused) > 0
    assert answers.count(ANSWER) == len(answers) - len(refused) >= MAX_WAITING


def test_an_answer_is_forgotten_with_its_images(store):
    async def main() -> None:
        served: list[str] = []
        once = Once(store, 0.2)
        assert await serve(once, "k", "f", answering(ANSWER, served)) is None
        assert await serve(once, "k", "f", answering(ANSWER, served)) == ANSWER
        async with asyncio.timeout(10):
            while await serve(once, "k", "f", answering(OTHER, served)) is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert served == [ANSWER.body, OTHER.body]

    asyncio.run(main())


def test_a_store_that_does_not_answer_is_503_and_loses_no_picture(monkeypatch):
    store = MemoryKeys()

    def fail(*_: object) -> Any:
        raise StoreError("redis://nowhere: timed out")

    async def main() -> None:
        once = Once(store, 60)
        served: list[str] = []
        monkeypatch.setattr(store, "keep", fail)
        assert await serve(once, "k", "f", answering(ANSWER, served)) is None
        assert served == [ANSWER.body]
        monkeypatch.setattr(store, "claim", fail)
        with pytest.raises(Unavailable, match="idempotency keys"):
            await serve(once, "k", "f", answering(ANSWER, served))

    asyncio.run(main())


def test_memory_is_bounded_and_forgets_the_oldest_answers_only():
    now = 0.0
    store = MemoryKeys(max_bytes=20_000, clock=lambda: now)
    assert store.claim("working", "f", "me", 1e9) is None
    for number in range(100):
        assert store.claim(str(number), "f", "me", 1e9) is None
        assert store.keep(str(number), "f", "me", Answer("\N{WHITE SUN WITH RAYS}" * 292, {}), 1e9)
    held = []
    for name in ("working", *map(str, range(100))):
        if store.claim(name, "f", "other", 1e9) is not None:
            held.append(name)
        store.release(name, "other")
    # 1,024 bytes for an entry and 3 * 292 of body: nine answers, and what is worked on, in 20,000
    assert held == ["working", *map(str, range(91, 100))]


def test_names_and_fingerprints_tell_callers_and_requests_apart():
    assert len({key_name(None, "a"), key_name(b"\1", "a"), key_name(b"\2", "a"), key_name(None, "b")}) == 4
    assert len({fingerprint("base", "{}"), fingerprint("sprint", "{}"), fingerprint("base", '{"a":1}')}) == 3


@pytest.mark.parametrize("values", [[""], ["a b"], ["ü"], ["x" * 129], ["a", "b"], ['"quoted"']])
def test_malformed_keys_are_refused(values):
    with pytest.raises(InvalidKey) as refused:
        read_idempotency_key(values, inline=False)
    assert refused.value.status == 400


def test_keys_are_read():
    assert read_idempotency_key([], inline=True) is None
    assert read_idempotency_key(["a1-._:Z" * 16], inline=False) == "a1-._:Z" * 16
    with pytest.raises(InvalidKey, match="sync_mode"):
        read_idempotency_key(["a"], inline=True)
