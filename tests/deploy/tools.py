"""The tools that `make deploy-tools` gets; a test that needs one is skipped where it is missing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.services import REPOSITORY

DEPLOY = REPOSITORY / "deploy"


def tool(name: str) -> str:
    """The path of a tool, in the virtual environment or the system."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is missing: make deploy-tools")
    return found


def run(command: Sequence[str | Path], cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """Run a tool to its end."""
    return subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
