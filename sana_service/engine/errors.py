"""Why a job ended without an artifact.

    EngineError
    |-- QueueFull            submit: no room; carries when to come back
    |   `-- DeadlineOutOfReach   submit: predicted to end too late
    |-- NotReady             submit: models still load, or the engine drains
    |-- JobCancelled         the client left
    |-- DeadlineExceeded     the job's deadline passed, queued or running
    |-- OutOfDeviceMemory    the job does not fit the device even alone
    `-- NotFinite            the latents hold NaN or infinity

The engine does not know HTTP: `contract.errors` translates.
"""

from __future__ import annotations


class EngineError(Exception):
    """Base of every error that a submitted job can end with."""


class QueueFull(EngineError):
    """No room in the queue.

    Args:
        retry_after_seconds: when room is expected.
    """

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__(f"the queue is full, room is expected in {retry_after_seconds:.0f} s")
        self.retry_after_seconds = retry_after_seconds


class DeadlineOutOfReach(QueueFull):
    """The jobs before this one, and this one itself, are predicted to take longer than its deadline allows."""


class NotReady(EngineError):
    """The models are not loaded yet, or the engine takes no more work."""


class JobCancelled(EngineError):
    """The job was cancelled by its submitter."""


class DeadlineExceeded(EngineError):
    """The job's deadline passed before its picture was done."""


class OutOfDeviceMemory(EngineError):
    """The device has too little memory for this job, even with nothing else on it."""


class NotFinite(EngineError):
    """Latents or pixels are not finite numbers: the weights or the precision are at fault."""
