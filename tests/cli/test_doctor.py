"""`sana doctor`: each thing that can be wrong is found, named, and comes with what to do."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from sana_service import doctor
from sana_service.doctor import Finding, examine
from tests import services


def findings(tmp_path: Path, variables: Mapping[str, str], port: int | None = None) -> dict[str, Finding]:
    environ = {
        "SANA_STORAGE_URL": (tmp_path / "files").as_uri(),
        "SANA_JOBS_URL": f"sqlite://{tmp_path}/jobs.db",
        "SANA_MODELS": "bundled",
        "SANA_DEVICES": "cpu",
        **variables,
    }
    return {finding.name: finding for finding in examine(environ, "127.0.0.1", port or services.free_port())}


def test_a_healthy_machine_has_no_problem_and_no_image_is_left_behind(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a\nb\n")
    keys.chmod(0o600)
    found = findings(tmp_path, {"SANA_API_KEYS_FILE": str(keys)})
    assert {"settings", "device", "weights", "memory", "keys", "storage", "disk", "jobs", "port"} <= set(found)
    assert {name: one for name, one in found.items() if one.status == "problem"} == {}
    assert found["keys"] == Finding("keys", "ok", f"2 in {keys}")
    assert list((tmp_path / "files").iterdir()) == []
    assert all(bool(one.advice) == (one.status != "ok") for one in found.values())


@pytest.mark.parametrize(
    ("variables", "name", "says"),
    [
        ({"SANA_MAX_PIXELS": "7"}, "settings", "SANA_MAX_PIXELS='7'"),
        ({"SANA_DEVICES": "cuda:7"}, "device", "cuda:7"),
        ({"SANA_PRECISION": "fp8"}, "precision", "not cpu"),
        ({"SANA_MODELS": "hub", "SANA_BASE_MODEL": "{tmp}"}, "weights", "{tmp}"),
        ({"SANA_API_KEYS_FILE": "{tmp}/none"}, "keys", "cannot be read"),
        ({"SANA_STORAGE_URL": "file://{tmp}/file/below"}, "storage", "Not a directory"),
        ({"SANA_JOBS_URL": "sqlite://{tmp}/file/jobs.db"}, "jobs", "sqlite://{tmp}/file/jobs.db"),
        ({"SANA_C2PA_CERT": "{tmp}/cert.pem"}, "signing", "both"),
        ({"SANA_MAX_CONCURRENT_PER_KEY": "2"}, "keys", "needs SANA_API_KEYS_FILE"),
        ({"SANA_SAFETY_MODEL": "{tmp}/none"}, "safety model", "{tmp}/none"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317"}, "tracing", "must be a URL"),
    ],
)
def test_what_keeps_the_service_from_starting(tmp_path: Path, variables: dict[str, str], name: str, says: str) -> None:
    (tmp_path / "file").write_text("")
    tmp = str(tmp_path)
    found = findings(tmp_path, {key: value.replace("{tmp}", tmp) for key, value in variables.items()})
    assert found[name].status == "problem"
    assert says.replace("{tmp}", tmp) in found[name].message
    assert found[name].advice
    assert "\n" not in found[name].message
    assert [one.name for one in found.values() if one.status == "problem"] == [name]


@pytest.mark.parametrize("url", ["file://localhost{folder}", "file://{folder}%20b"])
def test_every_way_to_write_a_folder(tmp_path: Path, url: str) -> None:
    found = findings(tmp_path, {"SANA_STORAGE_URL": url.replace("{folder}", str(tmp_path / "a"))})
    assert (found["storage"].status, found["disk"].status) == ("ok", "ok")


def test_a_password_in_a_url_is_not_shown(tmp_path: Path) -> None:
    found = findings(tmp_path, {"SANA_STORAGE_URL": "nowhere://somebody:secret@b"})
    assert found["storage"].status == "problem"
    assert "secret" not in found["storage"].message


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = findings(tmp_path, {}, port)
    assert found["port"].status == "problem"
    assert str(port) in found["port"].message
    assert "--port" in found["port"].advice


def test_what_an_operator_may_not_want_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a\n")
    keys.chmod(0o644)
    found = findings(tmp_path, {"SANA_API_KEYS_FILE": str(keys)})
    assert (found["keys"].status, "chmod 600" in found["keys"].advice) == ("warning", True)
    assert "everybody" in findings(tmp_path, {})["keys"].message
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**8})())
    assert findings(tmp_path, {})["disk"].status == "warning"
    assert findings(tmp_path, {"SANA_MODELS": "random"})["weights"].status == "warning"


def test_a_gpu_that_torch_does_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_nvidia_driver", lambda: "575.57")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    finding = next(one for one in examine({"SANA_MODELS": "bundled"}, "127.0.0.1", 0) if one.name == "device")
    assert finding.status == "warning"
    assert "NVIDIA GPU" in finding.message
    assert "TORCH_INDEX_URL" in finding.advice


def test_too_little_memory_for_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", type("Memory", (), {"available": 10**6}))
    finding = findings(tmp_path, {})["memory"]
    assert finding.status == "problem"
    assert "1 MB available" in finding.message


def test_passwords_in_urls_are_not_told(tmp_path: Path) -> None:
    found = findings(tmp_path, {"SANA_JOBS_URL": f"redis://user:secret@127.0.0.1:{services.free_port()}/0"})
    assert found["jobs"].status == "problem"
    assert "127.0.0.1" in found["jobs"].message
    assert "secret" not in str(found)


@pytest.mark.parametrize(("variables", "code"), [({}, 0), ({"SANA_MAX_QUEUE": "none"}, 1)])
def test_the_command(tmp_path: Path, variables: dict[str, str], code: int) -> None:
    environ = services.environment(tmp_path, {"SANA_MODELS": "bundled", "PYTHONPATH": ".", **variables})
    arguments = ["doctor", "--json", "--port", str(services.free_port()), "--host", "127.0.0.1"]
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "sana_service", *arguments],
        cwd=services.REPOSITORY, env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    told = json.loads(finished.stdout)
    assert (finished.returncode, told["ok"]) == (code, not code)
    assert {finding["status"] for finding in told["findings"]} <= {"ok", "warning", "problem"}
    assert ("problem" in {finding["status"] for finding in told["findings"]}) is bool(code)
