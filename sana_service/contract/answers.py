"""What the headers of a served request say, on whichever route it came."""

from __future__ import annotations

from sana_service.contract.billing import BILLING_HEADER, billable_units
from sana_service.contract.schemas import BaseInput, Output
from sana_service.contract.sizes import resolve_size

PRECISION_HEADER = "x-sana-precision"
"""Where an answer's pictures are not as exact as the checkpoint, how they were computed."""


def units_of(request: BaseInput) -> int:
    """What a request costs once it is served."""
    size = resolve_size(request.image_size)
    return billable_units(size.width, size.height, request.num_images)


def answer_headers(request: BaseInput, output: Output) -> dict[str, str]:
    """The bill, and the stages in milliseconds, denoising with the images it was shared by."""
    stages = {stage: f"{stage};dur={seconds * 1000:.1f}" for stage, seconds in output.timings.items()}
    if "denoise" in stages:
        stages["denoise"] += f';desc="batch {output.batch_images:.2f}"'
    headers = {
        BILLING_HEADER: str(units_of(request)),
        "server-timing": ", ".join(stages.values()),
    }
    if output.precision != "exact":
        headers[PRECISION_HEADER] = output.precision
    return headers
