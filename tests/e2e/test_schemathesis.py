"""schemathesis reads the OpenAPI document and tries to catch the service breaking it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.services import REPOSITORY, Server

EXAMPLES = int(os.environ.get("SANA_FUZZ_EXAMPLES", "25"))

at_length = pytest.mark.skipif(EXAMPLES < 300, reason="`make fuzz` follows the links between operations, too")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("phases", "examples"),
    [
        pytest.param("examples,coverage,fuzzing", EXAMPLES, id="operations"),
        # the links are learned from the answers of the phases before
        pytest.param("examples,coverage,fuzzing,stateful", 10, id="links", marks=at_length),
    ],
)
def test_schemathesis_finds_nothing(quick_server: Server, tmp_path: Path, phases: str, examples: int) -> None:
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        "run",
        f"{quick_server.url}/openapi.json",
        "--checks=all",
        f"--phases={phases}",
        f"--max-examples={examples}",
        "--seed=20",
        "--request-timeout=60",
        # its own ten seconds are for a machine that does nothing else
        "--max-response-time=60",
        "--suppress-health-check=all",
        "--no-color",
    ]
    hooks = {"SCHEMATHESIS_HOOKS": "tests.e2e.schemathesis_hooks", "PYTHONPATH": str(REPOSITORY)}
    finished = subprocess.run(
        command, cwd=tmp_path, env=os.environ | hooks, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout[-20_000:] + finished.stderr[-5_000:]
    counts = re.search(r"(\d+) generated, (\d+) passed", finished.stdout)
    assert counts is not None, finished.stdout[-5_000:]
    assert int(counts[2]) == int(counts[1]) > 0
