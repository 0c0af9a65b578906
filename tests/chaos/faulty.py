"""The service, with faults on demand: `bentoml serve tests.chaos.faulty:Sana`.

A prompt names the fault of its own job, `fault:oom-decode`; a file in the folder that `FAULTS_FOLDER` names switches on
one that meets everybody, `disk-full`. Only calls at the edge of the project's own code are exchanged: what a device, a
disk or a clock would do.

    fault:oom-STAGE       STAGE is out of memory, always         text, denoise, decode
    fault:short-STAGE     the same, the first time
    fault:kernel-STAGE    STAGE fails with an error of CUDA, which still answers
    fault:nan             the latents are not numbers
    fault:wait-STAGE      STAGE writes the file at-STAGE and waits for the file go-STAGE; encode and store, too

    disk-full             half of a file can be written
    disk-slow             a file takes half a second
    device-lost           every step fails, and the device answers nothing any more
    clock                 holds seconds that the wall clock is wrong by
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import service
from service import Sana, SanaService

__all__ = ["Sana"]

WAIT_SECONDS = 20.0
CUDA_ERROR = "CUDA error: an illegal memory access was encountered"

_folder = Path(os.environ["FAULTS_FOLDER"])
_to_asgi = SanaService.to_asgi


def _serve_with_faults(self: SanaService, is_main: bool = True) -> Any:
    """Only the worker makes an application; the supervisor need not load torch."""
    _Faults().install()
    return _to_asgi(self, is_main)


service.SanaService.to_asgi = _serve_with_faults  # type: ignore[method-assign]


class _Faults:
    def __init__(self) -> None:
        self._times: Counter[tuple[int, str]] = Counter()
        self._lock = threading.Lock()

    def install(self) -> None:
        """Exchange what a fault would come from."""
        from sana_service import generation, images, storage
        from sana_service.engine import loop
        from sana_service.engine.stages import Stages

        stages: Any = Stages
        encode_text, step, decode = stages.encode_text, stages.step, stages.decode

        def faulty_text(self_: Any, flight: Any) -> None:
            self._meet("text", flight.job)
            encode_text(self_, flight)

        def faulty_step(self_: Any, rows: Any) -> Any:
            if (_folder / "device-lost").exists():
                raise _cuda_error()
            for row in rows:
                self._meet("denoise", row.flight.job)
            return step(self_, rows)

        def faulty_decode(self_: Any, shot: Any, **options: Any) -> Any:
            from dataclasses import replace

            self._meet("decode", shot.flight.job)
            if shot.flight.job.prompt.endswith("fault:nan"):
                shot = replace(shot, latents=shot.latents * float("nan"))
            return decode(self_, shot, **options)

        stages.encode_text, stages.step, stages.decode = faulty_text, faulty_step, faulty_decode
        vars(loop)["answers"] = lambda device: not (_folder / "device-lost").exists()
        self._install_outside_of_the_device(generation, images, storage)

    def _install_outside_of_the_device(self, generation: Any, images: Any, storage: Any) -> None:
        encode, write_bytes, put, wall_clock = images.encode, Path.write_bytes, storage.Storage.put, time.time

        def faulty_encode(pixels: Any, kind: Any, told: Any, *rest: Any) -> Any:
            if told is not None:
                self._wait("encode", told.prompt)
            return encode(pixels, kind, told, *rest)

        def faulty_put(self_: Any, data: bytes, extension: str) -> Any:
            self._wait("store", "fault:wait-store" if b"fault:wait-store" in data else "")
            return put(self_, data, extension)

        def faulty_write(path: Path, data: Any) -> int:
            if path.name.endswith(".part") and (_folder / "disk-full").exists():
                write_bytes(path, data[: len(data) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            if path.name.endswith(".part") and (_folder / "disk-slow").exists():
                time.sleep(0.5)
            return write_bytes(path, data)

        def faulty_clock() -> float:
            try:
                return wall_clock() + float((_folder / "clock").read_text())
            except (OSError, ValueError):
                return wall_clock()

        images.encode, storage.Storage.put = faulty_encode, faulty_put
        Path.write_bytes, time.time = faulty_write, faulty_clock  # type: ignore[method-assign, assignment]

    def _meet(self, stage: str, job: Any) -> None:
        """What a job's prompt asks for in this stage."""
        import torch

        prompt = job.prompt
        if prompt.endswith(f"fault:oom-{stage}"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        if prompt.endswith(f"fault:short-{stage}"):
            with self._lock:
                self._times[id(job), stage] += 1
            if self._times[id(job), stage] == 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        if prompt.endswith(f"fault:kernel-{stage}"):
            raise _cuda_error()
        self._wait(stage, prompt)

    def _wait(self, stage: str, prompt: str) -> None:
        if not prompt.endswith(f"fault:wait-{stage}"):
            return
        (_folder / f"at-{stage}").touch()
        deadline = time.monotonic() + WAIT_SECONDS
        while not (_folder / f"go-{stage}").exists() and time.monotonic() < deadline:
            time.sleep(0.01)


def _cuda_error() -> Exception:
    import torch

    return torch.AcceleratorError(CUDA_ERROR)
