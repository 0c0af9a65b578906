"""The compose files keep to the compose specification, and to what the image, the settings and Prometheus want."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from sana_service.http.keys import read_key_digests
from sana_service.settings import load_settings
from tests.container.podman import HEALTH_SCRIPT
from tests.deploy.tools import DEPLOY
from tests.services import REPOSITORY

FOLDER = DEPLOY / "compose"
SCHEMA = json.loads(Path(__file__).with_name("schemas").joinpath("compose.json").read_text())
FILES = ("compose.yaml", "compose.gpu.yaml", "compose.s3.yaml")
COMBINATIONS = (FILES[:1], FILES[:2], (FILES[0], FILES[2]), FILES)

Object = dict[str, Any]


def load(name: str) -> Object:
    document: Object = yaml.safe_load((FOLDER / name).read_text())
    return document


def merged(names: tuple[str, ...]) -> Object:
    """What compose makes of several files, as far as these use its rules: mappings join, lists are appended."""

    def join(one: Any, other: Any) -> Any:
        if isinstance(one, dict) and isinstance(other, dict):
            return {key: join(one[key], other[key]) if key in one and key in other else one.get(key, other.get(key))
                    for key in {**one, **other}}  # fmt: skip
        return one + other if isinstance(one, list) and isinstance(other, list) else other

    whole: Object = {}
    for name in names:
        whole = join(whole, load(name))
    return whole


@pytest.mark.parametrize("name", FILES)
def test_a_file_keeps_to_the_specification(name: str):
    assert [error.message for error in Draft7Validator(SCHEMA).iter_errors(load(name))] == []


def test_the_check_itself_finds_faults():
    broken = load("compose.yaml")
    broken["services"]["sana"]["read_onyl"] = True
    broken["services"]["sana"]["healthcheck"]["interval"] = 10
    messages = [error.message for error in Draft7Validator(SCHEMA).iter_errors(broken)]
    assert any("read_onyl" in message for message in messages)
    assert len(messages) > 1


@pytest.mark.parametrize("names", COMBINATIONS, ids=lambda names: names[-1])
def test_what_is_named_is_there(names: tuple[str, ...]):
    whole = merged(names)
    for service in whole["services"].values():
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (FOLDER / source).resolve().is_file(), source
            else:
                assert source in whole["volumes"]
        for secret in service.get("secrets", ()):
            assert secret in whole["secrets"]
        assert set(service.get("depends_on", ())) <= set(whole["services"])
        assert ":" in service["image"].removeprefix("${SANA_IMAGE:-sana}") or service["image"].endswith("-sana}")


@pytest.mark.parametrize("names", COMBINATIONS, ids=lambda names: names[-1])
def test_the_service_understands_its_variables(names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    service = merged(names)["services"]["sana"]
    variables = {name: "" if value.startswith("${") else value for name, value in service["environment"].items()}
    settings = load_settings(variables)
    gpu, s3 = "compose.gpu.yaml" in names, "compose.s3.yaml" in names
    assert (settings.models, settings.devices) == (("hub", ("auto",)) if gpu else ("bundled", ("cpu",)))
    assert settings.storage_url == ("s3://sana/images" if s3 else "file:///data/files")
    assert settings.jobs_url == "sqlite:///data/jobs.db"
    assert float(service["stop_grace_period"].removesuffix("s")) >= settings.request_timeout_seconds + 30
    mounted = {mount.split(":")[1] for mount in service["volumes"]}
    assert mounted == ({"/data", "/models"} if gpu else {"/data"})


@pytest.mark.parametrize("names", COMBINATIONS, ids=lambda names: names[-1])
def test_what_runs_the_image_may_do_no_more_than_it_must(names: tuple[str, ...]):
    for name, service in merged(names)["services"].items():
        if service["image"] == "${SANA_IMAGE:-sana}":
            assert service["read_only"] is True, name
            assert service["cap_drop"] == ["ALL"], name
            assert service["security_opt"] == ["no-new-privileges:true"], name
        # Only the service itself is reached from outside.
        if name != "sana":
            assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name


def test_the_download_has_options_that_there_are():
    from typer.main import get_command

    from sana_service.cli import app

    download = load("compose.gpu.yaml")["services"]["download"]
    assert download["entrypoint"][:4] == ["python", "-m", "sana_service", "download"]
    command: Any = get_command(app)
    parsed = command.commands["download"].make_context("download", download["entrypoint"][4:]).params
    assert parsed["safety_revision"] == "${SANA_SAFETY_REVISION:-main}"
    assert download["environment"]["SANA_BASE_REVISION"] == "${SANA_BASE_REVISION:-main}"
    # Set to nothing it would be the hub's address; compose leaves out what has no value.
    assert download["environment"]["HF_ENDPOINT"] is None


@pytest.mark.parametrize(
    ("livez", "readyz", "healthy", "ended"),
    [(200, 200, True, False), (200, 503, False, False), (503, 503, False, True), (500, 200, False, False)],
)
def test_the_health_check_ends_a_process_that_only_a_new_one_helps(livez: int, readyz: int, healthy: bool, ended: bool):
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response({"/livez": livez, "/readyz": readyz}[self.path])
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    ending = "os.kill(1, 15)"
    assert HEALTH_SCRIPT.count(ending) == HEALTH_SCRIPT.count("os.") == 1
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as service:
        threading.Thread(target=service.serve_forever, args=(0.05,), daemon=True).start()
        script = HEALTH_SCRIPT.replace(ending, "print('ended')").replace(":3000", f":{service.server_port}")
        checked = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        service.shutdown()
    assert (checked.returncode == 0) is healthy
    assert (checked.stdout == "ended\n") is ended


def test_the_health_check_is_the_same_everywhere():
    service = load("compose.yaml")["services"]["sana"]
    assert service["healthcheck"]["test"] == ["CMD", "python", "-c", HEALTH_SCRIPT]
    assert service["restart"] == "unless-stopped"
    assert HEALTH_SCRIPT.strip() in (REPOSITORY / "docs" / "deployment.md").read_text()


def test_the_bucket_gets_its_rule_once(tmp_path: Path):
    """Its command with an `mc` that knows one rule at most, and fails where there is none to list."""
    [command] = load("compose.s3.yaml")["services"]["bucket"]["command"]
    (tmp_path / "mc").write_text(
        '#!/bin/sh\ncase "$3" in\nls) cat rules 2>/dev/null ;;\nadd) echo "| images/ |" >> rules ;;\nesac\n'
    )
    (tmp_path / "mc").chmod(0o755)
    (tmp_path / "sh").symlink_to("/bin/sh")
    (tmp_path / "cat").symlink_to(shutil.which("cat") or "/bin/cat")
    for _ in range(2):
        done = subprocess.run(
            ["/bin/sh", "-ec", command.replace("$$", "$")],
            cwd=tmp_path,
            env={"PATH": str(tmp_path), "MINIO_PASSWORD": "x"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "rules").read_text() == "| images/ |\n"


def test_prometheus_and_grafana_find_what_they_read():
    services = load("compose.yaml")["services"]
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text())
    [scrape] = prometheus["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": ["sana:3000"]}]
    assert Path(scrape["authorization"]["credentials_file"]).name in services["prometheus"]["secrets"]
    mounted = {Path(mount.split(":")[1]).name for mount in services["prometheus"]["volumes"]}
    assert set(prometheus["rule_files"]) <= mounted
    [source] = yaml.safe_load((FOLDER / "grafana" / "datasource.yaml").read_text())["datasources"]
    assert (source["type"], source["url"], source["isDefault"]) == ("prometheus", "http://prometheus:9090", True)
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]
    [provider] = yaml.safe_load((FOLDER / "grafana" / "dashboards.yaml").read_text())["providers"]
    dashboard = next(mount for mount in services["grafana"]["volumes"] if "dashboard.json" in mount)
    assert dashboard.split(":")[1].startswith(provider["options"]["path"])


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """Where `make_keys` puts what it makes."""
    shutil.copy(FOLDER / "make-keys.sh", tmp_path)
    return tmp_path / "secrets"


def make_keys(secrets: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([secrets.parent / "make-keys.sh"], capture_output=True, text=True, check=False)


def contents(secrets: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in secrets.iterdir()}


def test_the_keys_that_are_made_are_the_services(secrets: Path):
    made = make_keys(secrets)
    key = made.stdout.split()[-1]
    digests = read_key_digests(secrets / "api-keys")
    for one in (key, (secrets / "metrics-key").read_text()):
        assert hashlib.sha256(one.encode()).digest() in digests
        assert len(one) == 64
    assert len(digests) == 2
    modes = {path.name: path.stat().st_mode & 0o777 for path in secrets.iterdir()}
    assert modes == {"api-keys": 0o644, "client-key": 0o600, "metrics-key": 0o644, "grafana-password": 0o644}
    before = contents(secrets)
    assert make_keys(secrets).stdout == made.stdout
    assert contents(secrets) == before, "what is there stays"


def test_a_key_that_was_handed_out_and_deleted_is_not_made_again(secrets: Path):
    make_keys(secrets)
    (secrets / "client-key").unlink()
    before = contents(secrets)
    again = make_keys(secrets)
    assert again.returncode == 0
    assert "was handed out and deleted" in again.stdout
    assert contents(secrets) == before


def test_one_missing_password_is_made_again(secrets: Path):
    make_keys(secrets)
    before = contents(secrets)
    (secrets / "grafana-password").unlink()
    assert make_keys(secrets).returncode == 0
    after = contents(secrets)
    assert after.pop("grafana-password") != before.pop("grafana-password")
    assert after == before


def test_a_key_that_the_service_would_not_know_is_not_made(secrets: Path):
    make_keys(secrets)
    (secrets / "metrics-key").unlink()
    before = contents(secrets)
    stopped = make_keys(secrets)
    assert stopped.returncode == 1
    assert len(stopped.stderr.splitlines()) == 1
    assert "secrets/metrics-key is missing" in stopped.stderr
    assert contents(secrets) == before
    (secrets / "api-keys").unlink()
    assert make_keys(secrets).returncode == 0
    assert hashlib.sha256((secrets / "metrics-key").read_bytes()).digest() in read_key_digests(secrets / "api-keys")
