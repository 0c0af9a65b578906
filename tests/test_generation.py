"""What becomes of a request whose storage does not answer, and what an answer says of its pictures."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from typing import Any

import numpy as np
import pytest

from sana_service import generation as module
from sana_service.contract.answers import answer_headers
from sana_service.contract.errors import Unavailable
from sana_service.contract.idempotency import Superseded
from sana_service.contract.schemas import ImageFile, SanaSprintOutput, SprintInput
from sana_service.engine.job import Artifact, Job
from sana_service.generation import Generation
from sana_service.images import EncodedImage
from sana_service.settings import load_settings
from sana_service.storage import StorageError

FILE = ImageFile(
    url="http://a/files/0.png", content_type="image/png", file_name="0.png", file_size=1, width=1, height=1
)
PICTURE = EncodedImage(b"picture", "image/png", "png", 1, 1)


class Shelf:
    """A storage whose puts wait until they may go on, and fail from the n-th on."""

    def __init__(self, fails_from: int = 1000) -> None:
        self.may_go_on = threading.Event()
        self.files: set[str] = set()
        self.deleted = threading.Event()
        self._fails_from = fails_from
        self._puts = 0
        self._lock = threading.Lock()

    def put(self, data: bytes, extension: str) -> str:
        with self._lock:
            number = self._puts
            self._puts += 1
        if number >= self._fails_from:
            raise StorageError("/secret/folder cannot be written to: No space left on device")
        assert self.may_go_on.wait(20)
        self.files.add(f"{number}.{extension}")
        return f"{number}.{extension}"

    def delete(self, name: str) -> None:
        self.files.discard(name)
        self.deleted.set()


def publish(shelf: Shelf, images: int) -> Any:
    return Generation(None, None, shelf, load_settings({}), {})._publish([PICTURE] * images, False, "http://a")  # type: ignore[arg-type]


def test_a_storage_that_hangs_holds_no_request_beyond_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WITHDRAW_SECONDS", 0.1)
    shelf = Shelf()

    async def late() -> float:
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await publish(shelf, 1)
        took = time.monotonic() - started
        # what hung is done at last, and nobody wants it
        shelf.may_go_on.set()
        assert await asyncio.to_thread(shelf.deleted.wait, 20)
        return took

    assert asyncio.run(late()) < 5
    assert shelf.files == set()


def test_one_image_that_cannot_be_stored_withdraws_the_others() -> None:
    shelf = Shelf(fails_from=2)
    shelf.may_go_on.set()

    async def partly() -> None:
        with pytest.raises(Unavailable) as refused:
            await publish(shelf, 3)
        assert "secret" not in str(refused.value.detail)
        assert int(refused.value.headers["retry-after"]) >= 1

    asyncio.run(partly())
    assert shelf.files == set()


@pytest.mark.parametrize("client_stays", [True, False])
def test_what_another_replica_has_answered_leaves_no_images_here(client_stays: bool) -> None:
    shelf = Shelf()
    shelf.files = {"0.png", "1.png"}
    output = SanaSprintOutput(images=[FILE], seed=1, has_nsfw_concepts=[False], prompt="a", timings={})

    async def settling() -> None:
        asked, told = asyncio.Event(), asyncio.Event()

        async def settle(_: Any) -> None:
            asked.set()
            await told.wait()
            raise Superseded

        generation = Generation(None, None, shelf, load_settings({}), {})  # type: ignore[arg-type]
        waiting = asyncio.create_task(generation._settle(output, settle))
        await asked.wait()
        if not client_stays:
            waiting.cancel()
        told.set()
        with pytest.raises(Superseded if client_stays else asyncio.CancelledError):
            await waiting
        assert await asyncio.to_thread(shelf.deleted.wait, 20)

    asyncio.run(settling())
    assert shelf.files == {"1.png"}


@pytest.mark.parametrize(("precision", "says"), [("exact", None), ("fp8", "fp8")])
def test_an_answer_says_where_it_is_less_exact(precision: str, says: str | None) -> None:
    request = SprintInput(prompt="a")
    job = Job("sprint", "a", "", 8, 8, 1, 1.0, (7,), check_safety=False, deadline=math.inf)
    artifact = Artifact(np.zeros((1, 8, 8, 3), np.uint8), (False,), {}, 2.0)
    generation = Generation(None, None, None, load_settings({"SANA_PRECISION": precision}), {})  # type: ignore[arg-type]
    output = generation._output(request, job, artifact, [FILE], {"denoise": 0.01})
    assert answer_headers(request, output).get("x-sana-precision") == says
    assert output.batch_images == 2.0
