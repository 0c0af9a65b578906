"""What libraries read from the environment at their import: nothing is told to anybody, no foreign code runs.

Called before they are imported, by whatever starts a process.
"""

from __future__ import annotations

from collections.abc import MutableMapping

QUIET = {
    "BENTOML_DO_NOT_TRACK": "true",
    "DIFFUSERS_DISABLE_REMOTE_CODE": "true",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def keep_quiet(environ: MutableMapping[str, str]) -> None:
    """Turn telemetry and remote code off, where the operator has not set the variable."""
    for name, value in QUIET.items():
        environ.setdefault(name, value)
