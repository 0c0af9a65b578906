"""Measure this GPU: `python -m tests.performance.gpu`, again until no part is left.

Each part is a program of its own and takes less than nine minutes; its figures go to a file in the folder of results.
A part that was measured at the present commit is not measured again. At the end: a table against the goals, and one
line of JSON with all figures. The exit code is 1 where a part failed or a goal is missed, 75 where parts are left.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from loadtests.provenance import commit
from tests.performance.gpu.bench import GIVE_UP_SECONDS, ROOT

PARTS = {"exactness": 150, "speed": 400, "precision": 250, "bundled": 300, "serving": 420}
"""Seconds that each takes on an H100, about and at most."""

EXIT_MISSED, EXIT_LEFT = 1, 75

Figures = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Goal:
    """A line of the table.

    Args:
        name: what is measured.
        part: the part that measures it.
        keys: where the figure stands among the part's.
        must: bound that has to be kept.
        aim: bound that is wished for.
        at_most: whether bounds are from above.
    """

    name: str
    part: str
    keys: tuple[str, ...]
    must: float
    aim: float
    at_most: bool = True

    def line(self, figures: Figures) -> tuple[str, bool]:
        """A row of Markdown, and whether the goal is kept; what was not measured is not."""
        try:
            value: Any = reduce(getitem, self.keys, figures[self.part])
        except KeyError:
            return f"| {self.name} | not measured | {self.must:g} | {self.aim:g} | |", False
        sign = 1 if self.at_most else -1
        kept, wished = (sign * value <= sign * bound for bound in (self.must, self.aim))
        verdict = "aim" if wished else "kept" if kept else "MISSED"
        return f"| {self.name} | {value:.3g} | {self.must:g} | {self.aim:g} | {verdict} |", kept


GOALS = (
    Goal("base 1024x1024, one request, of stock", "speed", ("base 1024x1024 alone", "ratio"), 0.42, 0.33),
    Goal("sprint 1024x1024, of stock", "speed", ("sprint 1024x1024 alone", "ratio"), 0.26, 0.18),
    Goal("base, HTTP, of the reference", "serving", ("base HTTP 3840x2160 JPEG", "ratio"), 0.35, 0.24),
    Goal("sprint, HTTP, of the reference", "serving", ("sprint HTTP 3840x2160 JPEG", "ratio"), 0.20, 0.12),
    Goal("base 1024x1024, times stock", "speed", ("base 1024x1024 saturated", "times_stock"), 2.7, 3.2, at_most=False),
    Goal("sprint 3840x2160, times stock", "speed", ("sprint 3840x2160 saturated", "times_stock"), 8, 14, at_most=False),
    Goal("sprint beside base, seconds above idle", "speed", ("sprint beside base", "added"), 0.06, 0.03),
    Goal("base, of the floor", "speed", ("base 1024x1024 saturated", "share_of_floor"), 0.5, 0.65, at_most=False),
    Goal("sprint, of the floor", "speed", ("sprint 1024x1024 saturated", "share_of_floor"), 0.4, 0.6, at_most=False),
    Goal("base saturated, time busy", "speed", ("base 1024x1024 busy", "share"), 0.95, 0.99, at_most=False),
    Goal("sprint saturated, time busy", "speed", ("sprint 3840x2160 busy", "share"), 0.95, 0.99, at_most=False),
    Goal("memory reserved, GiB", "speed", ("reserved_gib",), 20, 20),
    Goal("seconds to ready, warm caches", "serving", ("ready, warm",), 60, 30),
    Goal("seconds to ready, cold caches", "serving", ("ready, cold",), 240, 120),
    *(
        Goal(f"{decoder} from stock, of 255", "exactness", (decoder, "most_of_255", "ours to stock"), 3, 3)
        for decoder in ("decoder 1024x1024", "decoder 1344x768")
    ),
)


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.performance.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}; all of them by default")
    parser.add_argument("--out", type=Path, default=Path("results/gpu"), help="folder of the results")
    parser.add_argument("--limit-seconds", type=float, default=540.0, help="begin no part that may take longer")
    given = parser.parse_args(argv)
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return given


def read(folder: Path) -> Figures:
    """Figures of the parts that there are files of."""
    files = {part: folder / f"{part}.json" for part in PARTS}
    return {part: json.loads(file.read_text()) for part, file in files.items() if file.is_file()}


def exact(figures: Figures) -> bool:
    """Whether all comparisons of the exactness part are good."""
    found = figures.get("exactness", {})
    verdicts = [one["good"] for one in found.values() if isinstance(one, dict)]
    bits = [one for name, one in found.items() if name.endswith("equal bits")]
    return bool(verdicts) and all(verdicts) and all(bits)


def main(argv: Sequence[str]) -> int:
    """Run what is left, print the table."""
    given = arguments(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    began, present = time.monotonic(), commit(ROOT)
    begun, failed, left = 0, [], []
    for part in given.parts or PARTS:
        known = read(given.out).get(part, {})
        if known.get("done") and known["commit"] == present:
            print(f"{part}: done before", flush=True)
            continue
        if begun and time.monotonic() - began + PARTS[part] > given.limit_seconds:
            left.append(part)
            continue
        begun += 1
        print(f"{part}:", flush=True)
        command = [sys.executable, "-m", f"tests.performance.gpu.{part}", str(given.out / f"{part}.json")]
        if subprocess.run(command, cwd=ROOT, check=False, timeout=GIVE_UP_SECONDS + 30).returncode:
            failed.append(part)
    figures = read(given.out)
    lines = [goal.line(figures) for goal in GOALS]
    print("\n| | measured | must | aim | |\n| --- | --- | --- | --- | --- |")
    print("\n".join(line for line, _ in lines))
    good = exact(figures)
    print(f"| exactness | {'within its bounds' if good else 'MISSED'} | | | |\n")
    if left:
        print(f"left for the next call: {', '.join(left)}")
    if failed:
        print(f"failed: {', '.join(failed)}")
    print(json.dumps(figures))
    if left:
        return EXIT_LEFT
    return EXIT_MISSED if failed or not good or not all(kept for _, kept in lines) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
