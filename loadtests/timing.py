"""What the server says of its own time: the `Server-Timing` header. Pure Python."""

from __future__ import annotations

import re

_TIMING = re.compile(r'\s*([^\s;,=]+)((?:\s*;\s*[a-z]+\s*=\s*(?:"[^"]*"|[^;,]*))*)\s*(?:,|$)', re.IGNORECASE)
_PARAMETER = re.compile(r';\s*([a-z]+)\s*=\s*(?:"([^"]*)"|([^;,]*))', re.IGNORECASE)
_BATCH = re.compile(r"batch[^0-9]{0,6}([0-9]+(?:\.[0-9]+)?)", re.IGNORECASE)


def server_timing(header: str) -> tuple[dict[str, float], float | None]:
    """Stage names to seconds, and the batch size, of a `Server-Timing` header.

    The batch size is the description of an entry `batch`, or what follows the word in another one's.
    """
    stages: dict[str, float] = {}
    batch_size = None
    for name, parameters in _TIMING.findall(header):
        values = {key.lower(): quoted or plain.strip() for key, quoted, plain in _PARAMETER.findall(parameters)}
        try:
            if "dur" in values:
                stages[name] = stages.get(name, 0.0) + float(values["dur"]) / 1000
        except ValueError:
            continue
        described = f"{name} {values.get('desc', '')}" if name.lower() == "batch" else values.get("desc", "")
        match = _BATCH.search(described)
        if match:
            batch_size = float(match[1])
    return stages, batch_size
