"""Node and packages of npm for tests; a test that needs them is skipped where they are missing."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.services import REPOSITORY

FOLDER = REPOSITORY / "tests" / "clients" / "node_modules"
WANTED = json.loads((REPOSITORY / "tests" / "clients" / "package.json").read_text())["dependencies"]


def require_package(name: str) -> Path:
    """The folder of an npm package in the version that the tests name; skips without it."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed (apt-get install nodejs npm)")
    manifest = FOLDER / name / "package.json"
    if not manifest.exists():
        pytest.skip(f"{name} is not installed (make browser-tools)")
    assert json.loads(manifest.read_text())["version"] == WANTED[name]
    return manifest.parent


def run_script(script: Path, environment: dict[str, str], seconds: float) -> str:
    """What a module prints."""
    finished = subprocess.run(
        ["node", str(script)], env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout
