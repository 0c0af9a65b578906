"""The README's table of settings is the code's, and its shell and Python blocks run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sana_service.settings import PREFIX, Settings
from tests.services import REPOSITORY, Server

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
# What a block must not do inside a test run: start this test run again, or a server that stays.
NOT_RUN = ("make test", "make serve")


def settings_table() -> str:
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    defaults = Settings()
    for name, field in Settings.model_fields.items():
        value = getattr(defaults, name)
        shown = ",".join(value) if isinstance(value, tuple) else str(value)
        default = f"`{shown.lower() if isinstance(value, bool) else shown}`" if value not in {None, ()} else "none"
        rows.append(f"| `{PREFIX}{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)


def test_the_table_of_settings_is_complete_and_true(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    table = settings_table()
    assert table in README, f"README.md should hold:\n{table}"


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [block for block in found if not any(command in block for command in NOT_RUN)]


@pytest.mark.parametrize("language", ["bash", "python"])
def test_the_blocks_run(language: str, bundled_server: Server, tmp_path: Path) -> None:
    assert blocks(language)
    for block in blocks(language):
        script = block.replace("http://localhost:3000", bundled_server.url)
        # A reader is in the repository; the files that the blocks make are not for there.
        script = script.replace("loadtests/locustfile.py", str(REPOSITORY / "loadtests/locustfile.py"))
        command = ["bash", "-euo", "pipefail", "-c", script] if language == "bash" else [sys.executable, "-c", script]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        finished = subprocess.run(
            command,
            cwd=tmp_path,
            env=os.environ | {"PATH": path, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert finished.returncode == 0, f"{block}\n{finished.stdout}\n{finished.stderr}"
