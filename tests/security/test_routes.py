"""Every route that is registered, asked without a key, with a wrong one, and with what may not be read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import services

KEY = "the-only-key"

PUBLIC = {
    "/", "/docs", "/livez", "/readyz", "/openapi.json", "/.well-known/jwks.json",
    "/files/00000000000000000000000000000000.png", "/assets/page.css",
}  # fmt: skip
"""What anybody may read; nothing else, and nothing but reading. A route that is not here must want a key."""

REFUSED = {401, 404, 405}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("walk")
    keys = folder / "keys"
    keys.write_text(f"{KEY}\n")
    variables = {
        "SANA_API_KEYS_FILE": str(keys),
        "SANA_JOBS_URL": f"sqlite://{folder}/jobs.db",
        "PYTHONPATH": str(services.REPOSITORY),
        "PYTHONWARNINGS": "ignore",
    }
    finished = subprocess.run(
        [sys.executable, "-m", "tests.security.walk", KEY],
        cwd=services.REPOSITORY, env=services.environment(folder, variables), capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-5000:]
    answers: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return answers


def test_the_walk_finds_the_routes_of_both_layers(told: dict[str, Any]) -> None:
    """BentoML's own and this project's: or the tests below would show nothing."""
    ours = {"/docs", "/.well-known/jwks.json", "/files/00000000000000000000000000000000.png"}
    bentomls = {"/livez", "/readyz", "/healthz", "/schema.json", "/generate", "/sprint", "/metrics"}
    assert ours | bentomls <= set(told["routers"])


def test_without_a_key_every_route_is_refused_or_public(told: dict[str, Any]) -> None:
    assert len(told["anonymous"]) > 200
    for method, path, status in told["anonymous"]:
        if path in PUBLIC and method in {"GET", "HEAD"}:
            assert status != 401, (method, path)
        else:
            assert status in REFUSED, (method, path, status)


def test_a_wrong_key_opens_nothing(told: dict[str, Any]) -> None:
    assert [path for path, status in told["wrong"] if path not in PUBLIC and status not in REFUSED] == []


def test_no_route_reads_pickles_forms_or_anything_but_json(told: dict[str, Any]) -> None:
    statuses = {status for *_, status in told["foreign"]}
    assert statuses == {404, 405, 415}
    read = {path for _, path, _, status in told["foreign"] if status == 415}
    assert {"/", "/generate", "/sprint", "/v1/images/generations", "/queue/fal-ai/sana", "/fal-ai/sana"} <= read
    assert {path for path in read if path.endswith("/cancel")}


def test_pages_tell_the_browser_to_trust_this_host_alone(told: dict[str, Any]) -> None:
    for headers in told["pages"].values():
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == "'self'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-opener-policy"] == "same-origin"


def test_nothing_is_listed(told: dict[str, Any]) -> None:
    assert told["listings"] == [["/files", 404], ["/files/", 404], ["/assets", 404], ["/assets/", 404]]


def test_no_other_origin_is_let_in_by_default(told: dict[str, Any]) -> None:
    status, headers = told["preflight"]
    assert status == 405
    assert [name for name in headers if name.startswith("access-control")] == []


def test_a_key_file_is_the_only_place_of_a_key(tmp_path: Path) -> None:
    """What is kept in memory, and may be kept in the file, is a digest that opens nothing."""
    from sana_service.http.keys import read_key_digests

    file = tmp_path / "keys"
    file.write_text(f"{KEY}\n")
    digests = read_key_digests(file)
    assert KEY.encode() not in b"".join(digests)
    file.write_text("".join(f"sha256:{digest.hex()}\n" for digest in digests))
    assert read_key_digests(file) == digests
