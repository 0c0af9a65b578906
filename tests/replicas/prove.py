"""`make replicas-proof`: the scenario at length; a summary, and one line of JSON at the end."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from sana_service.models.bundled.random_pair import build_random_pair
from tests.replicas import scenario
from tests.replicas.farm import farm, missing_tools


def main() -> int:
    """Prove, and say so."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=3.0, help="requests a second, Poisson")
    parser.add_argument("--phase-seconds", type=float, default=20.0, help="before and after each event")
    arguments = parser.parse_args()
    if missing := missing_tools():
        print(f"install first, from Debian: {' '.join(missing)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="sana-replicas-") as folder:
        base, sprint = build_random_pair(Path(folder, "pair"))
        pair = {
            "SANA_MODELS": "hub",
            "SANA_BASE_MODEL": str(base),
            "SANA_SPRINT_MODEL": str(sprint),
            "SANA_SAFETY_MODEL": "opennsfw",
        }
        with farm(Path(folder), pair) as running:
            result = scenario.run(running, arguments.rate, arguments.phase_seconds, restart=True)
    for name, value in result.summary.items():
        print(f"{name:26} {value}")
    for fault in result.faults:
        print(f"FAULT: {fault}")
    print(json.dumps({"ok": not result.faults, **result.summary, "faults": result.faults}))
    return 1 if result.faults else 0


if __name__ == "__main__":
    sys.exit(main())
