"""What a figure depends on besides the scenario: commit, packages, machine, GPU and driver. Never a key."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from loadtests.monitor import Gpus

_ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = (
    *("locust", "gevent", "geventhttpclient", "numpy", "pydantic", "pillow"),
    *("bentoml", "torch", "diffusers", "transformers", "uvicorn", "starlette"),
)
HIDDEN = "(hidden)"


def provenance(host: str) -> dict[str, Any]:
    """Where and with what a run is made.

    Args:
        host: the server; its own version is asked of its OpenAPI document.
    """
    return {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(_ROOT),
        "server": {"host": host, "version": _server_version(host)},
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "generator_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "memory_bytes": psutil.virtual_memory().total,
            "load_average": list(os.getloadavg()),
        },
        "gpu": Gpus().describe(),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def commit(folder: Path) -> str | None:
    """The commit of a checkout, with "+changes" where files differ from it; None outside of one."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        head = _git(folder, "rev-parse", "HEAD")
        return head + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _processor() -> str:
    with contextlib.suppress(OSError):
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        if match:
            return match[1]
    return platform.processor() or platform.machine()


def _server_version(host: str) -> str | None:
    import requests

    with contextlib.suppress(requests.RequestException, ValueError, KeyError, TypeError):
        return str(requests.get(f"{host.rstrip('/')}/openapi.json", timeout=10).json()["info"]["version"])
    return None


def without_key(text: str, api_key: str) -> str:
    """The text without the key, wherever it may have got in."""
    return text.replace(api_key, HIDDEN) if api_key else text
