"""Who calls, by the digest of the API key, and how many of a caller's requests are served at a time.

The HTTP layer binds the caller to a request's context; what runs for nobody in particular, such as the
queue's worker and the warm-up, is not limited here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from sana_service.contract.errors import Overloaded

caller: ContextVar[bytes | None] = ContextVar("caller", default=None)
"""SHA-256 of the API key that a request came with; None for a public route, or a service without keys."""


class CallerLimit:
    """Counts the requests of each caller that are being served; for one event loop.

    Args:
        most: of one caller at a time; None lets in any number.
    """

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._served: Counter[bytes] = Counter()

    @contextmanager
    def place(self, retry_after_seconds: Callable[[], float]) -> Iterator[None]:
        """A place for the current caller's request.

        Args:
            retry_after_seconds: when one of the caller's places is expected to be free.

        Raises:
            Overloaded: the caller has all places that one may have.
        """
        who = caller.get()
        if who is None or self._most is None:
            yield
            return
        if self._served[who] >= self._most:
            raise Overloaded(
                f"{self._most} requests of this API key are being served, which is as many as one may have.",
                retry_after_seconds(),
            )
        self._served[who] += 1
        try:
            yield
        finally:
            self._served[who] -= 1
            if not self._served[who]:
                del self._served[who]
