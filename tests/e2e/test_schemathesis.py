"""schemathesis reads the OpenAPI document and tries to catch the service breaking it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.services import REPOSITORY, Server

# `make fuzz` asks for 300, and then also follows links from one operation to the next.
EXAMPLES = int(os.environ.get("SANA_FUZZ_EXAMPLES", "50"))
PHASES = "examples,coverage,fuzzing" + (",stateful" if EXAMPLES >= 300 else "")


@pytest.mark.timeout(3600)
def test_schemathesis_finds_nothing(quick_server: Server, tmp_path: Path) -> None:
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        "run",
        f"{quick_server.url}/openapi.json",
        "--checks=all",
        f"--max-examples={EXAMPLES}",
        f"--phases={PHASES}",
        "--seed=20",
        "--request-timeout=60",
        "--suppress-health-check=all",
        "--no-color",
    ]
    hooks = {"SCHEMATHESIS_HOOKS": "tests.e2e.schemathesis_hooks", "PYTHONPATH": str(REPOSITORY)}
    finished = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | hooks,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-20_000:] + finished.stderr[-5_000:]
    assert "Tested: 10" in finished.stdout
