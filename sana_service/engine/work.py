"""A piece of work on a device: timed, and tried again with no other stage beside it where memory runs out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

from sana_service.engine.faults import forget_locals, is_out_of_memory

if TYPE_CHECKING:
    from sana_service.engine.stages import Stages

T = TypeVar("T")

Work = Literal["text", "denoise", "decode", "finish"]
"""What a loop's threads do on a device; `finish` is all that comes after decoding."""


class DeviceWork:
    """Runs what the threads of a loop do on its device.

    Args:
        stages: of the device; their gate lets the stages in together or one alone.
    """

    def __init__(self, stages: Stages) -> None:
        self._stages = stages
        self._lock = threading.Lock()
        self._shortages: dict[Work, int] = dict.fromkeys(get_args(Work), 0)

    @property
    def shortages(self) -> Mapping[Work, int]:
        """How often each ran out of memory so far, whether or not a later attempt had enough."""
        with self._lock:
            return dict(self._shortages)

    def run(
        self,
        stage: Work,
        work: Callable[[], T],
        *,
        alone_if_short: bool = True,
        last_resort: Callable[[], T] | None = None,
        settle: bool = True,
    ) -> tuple[T, float]:
        """Do a piece of work up to when the device has finished it; its result and the seconds it took.

        Args:
            stage: whose work; a shortage of memory is counted there.
            work: what to do.
            alone_if_short: where memory runs out, try once more with no other stage on the device.
            last_resort: tried after that, likewise.
            settle: False for work that itself waits for the device as far as it must.

        Raises:
            BaseException: what the last attempt raised; of others a shortage of memory alone is forgiven.
        """
        attempts = [work, *([work] if alone_if_short else []), *([last_resort] if last_resort else [])]
        for number, attempt in enumerate(attempts):
            with self._stages.gate.shared() if number == 0 else self._stages.gate.alone():
                try:
                    if number:
                        self._stages.release_memory()
                    started = time.perf_counter()
                    result = attempt()
                    if settle:
                        self._stages.synchronize()
                    return result, time.perf_counter() - started
                except BaseException as error:
                    short = is_out_of_memory(error)
                    if short:
                        with self._lock:
                            self._shortages[stage] += 1
                    if number == len(attempts) - 1 or not short:
                        raise
                    forget_locals(error)
        raise AssertionError("unreachable")
