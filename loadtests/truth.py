"""Whether the pictures are pictures: a sample of a run's answers is downloaded, decoded and asked for again.

After the load, so that neither costs the run anything. Each sampled file must be a whole JPEG or PNG of
the right size and not flat; a few are asked for again with the same seed while the server is idle, and
the picture made under load must equal the one made alone within the scenario's tolerance. The size,
seed and prompt that the answer states are checked in every answer, see `contract`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from loadtests import measure
from loadtests.contract import Expected, answer_faults
from loadtests.records import Record
from loadtests.scenario import Truth

_FLAT_LEVELS = 1.0
_SECONDS = 330.0

Pixels = NDArray[np.int16]


@dataclass(frozen=True)
class Finding:
    """What became of the sample.

    Args:
        checked: files that were decoded.
        repeated: pictures that were asked for again alone.
        faults: a line for each thing that was wrong.
        greatest_difference: of any channel of any pixel, in levels of 255; None if nothing was repeated.
    """

    checked: int = 0
    repeated: int = 0
    faults: tuple[str, ...] = field(default_factory=tuple)
    greatest_difference: int | None = None


class Asking(Protocol):
    """The request of a record, to be asked again."""

    def __call__(self, record: Record) -> tuple[dict[str, Any], Expected]: ...


def decoded(content: bytes, expected: Expected) -> tuple[Pixels | None, str | None]:
    """Pixels of a file, or what is wrong with it."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as picture:
            kind = str(picture.format).lower()
            pixels = np.asarray(picture.convert("RGB")).astype(np.int16)
    except OSError:
        return None, "file is no whole JPEG or PNG"
    height, width = pixels.shape[:2]
    if (width, height) != (expected.width, expected.height):
        return None, f"file is {width}x{height}, not {expected.width}x{expected.height}"
    if kind != expected.output_format:
        return None, f"file is {kind}, not {expected.output_format}"
    return pixels, None


def is_flat(pixels: Pixels) -> bool:
    """One colour all over, give or take a level."""
    return bool(pixels.std(axis=(0, 1)).max() < _FLAT_LEVELS)


def differing(first: Pixels, second: Pixels, tolerance: int) -> tuple[float, int]:
    """Share of channel values that differ by more than the tolerance, and the greatest difference."""
    difference = np.abs(first - second)
    return float((difference > tolerance).mean()), int(difference.max())


def sample(records: Sequence[Record], count: int) -> list[Record]:
    """As many right answers, spread evenly over the run and over kinds of request."""
    answered = [record for record in records if record.ok and record.image_urls]
    groups = list(measure.grouped(answered, lambda record: record.kind).values())
    chosen: list[Record] = []
    for position, group in enumerate(groups):
        share = count // len(groups) + (position < count % len(groups))
        places = np.linspace(0, len(group) - 1, min(share, len(group))).round().astype(int)
        chosen += [group[place] for place in dict.fromkeys(places.tolist())]
    return chosen


def check(host: str, api_key: str, records: Sequence[Record], wanted: Truth, asking: Asking) -> Finding:
    """Look at a sample of a run's pictures.

    Args:
        host: the server, idle now.
        api_key: sent with requests, not with downloads.
        records: of the run.
        wanted: how many, and the tolerance.
        asking: gives a record's request.
    """
    import requests

    faults: list[str] = []
    checked = repeated = 0
    greatest: int | None = None
    with requests.Session() as http:
        for record in sample(records, wanted.sample):
            body, expected = asking(record)
            pixels, fault = _picture(http, record.image_urls[0], expected)
            if pixels is None:
                faults.append(f"request {record.index}: {fault}")
                continue
            checked += 1
            if is_flat(pixels) and not record.flagged:
                faults.append(f"request {record.index}: the picture is flat")
            if repeated >= wanted.repeated:
                continue
            alone, fault = _alone(http, host, api_key, record, body, expected)
            if alone is None:
                faults.append(f"request {record.index}, asked again alone: {fault}")
                continue
            repeated += 1
            share, difference = differing(pixels, alone, wanted.tolerance)
            greatest = max(greatest or 0, difference)
            if share > wanted.differing_share:
                faults.append(
                    f"request {record.index}: the picture under load differs from the one alone by more than "
                    f"{wanted.tolerance} of 255 in {share:.2%} of its values, at most by {difference}"
                )
    return Finding(checked, repeated, tuple(faults), greatest)


def _alone(
    http: Any, host: str, api_key: str, record: Record, body: dict[str, Any], expected: Expected
) -> tuple[Pixels | None, str | None]:
    import requests

    headers = {"Authorization": f"Key {api_key}"} if api_key else {}
    url = f"{host.rstrip('/')}/{record.endpoint}"
    try:
        answer = http.post(url, json=body | {"seed": record.seed}, headers=headers, timeout=_SECONDS)
        values = answer.json() if answer.status_code == 200 else None
    except (requests.RequestException, ValueError) as error:
        return None, type(error).__name__
    lowered = {name.lower(): value for name, value in answer.headers.items()}
    fault = next(answer_faults(answer.status_code, lowered, values, expected), None)
    if fault or values is None:
        return None, fault
    return _picture(http, values["images"][0]["url"], expected)


def _picture(http: Any, url: str, expected: Expected) -> tuple[Pixels | None, str | None]:
    import requests

    try:
        answer = http.get(url, timeout=_SECONDS)
    except requests.RequestException as error:
        return None, f"the file was not to be had: {type(error).__name__}"
    if answer.status_code != 200:
        return None, f"the file was not to be had: status {answer.status_code}"
    return decoded(answer.content, expected)
