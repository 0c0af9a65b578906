"""What the headers of a served request say, on whichever route it came."""

from __future__ import annotations

from sana_service.contract.billing import BILLING_HEADER, billable_units
from sana_service.contract.schemas import BaseInput, Output
from sana_service.contract.sizes import resolve_size


def answer_headers(request: BaseInput, output: Output) -> dict[str, str]:
    """The bill, and the stages in milliseconds, denoising with the images it was shared by."""
    size = resolve_size(request.image_size)
    stages = {stage: f"{stage};dur={seconds * 1000:.1f}" for stage, seconds in output.timings.items()}
    if "denoise" in stages:
        stages["denoise"] += f';desc="batch {output.batch_images:.2f}"'
    return {
        BILLING_HEADER: str(billable_units(size.width, size.height, request.num_images)),
        "server-timing": ", ".join(stages.values()),
    }
