"""Repository ids, against a hub on this machine that serves the hub's protocol from folders."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sana_service.models.checkpoint import ModelLoadError
from sana_service.models.hub import locate
from tests.pairs import Pair, write_pair

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BASE_ID, SPRINT_ID = "maker/sana", "maker/sprint"


class Hub:
    """Serves folders as repositories at one commit, `main`; remembers what was downloaded."""

    def __init__(self, repositories: dict[str, Path]) -> None:
        self.repositories = repositories
        self.downloaded: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            def do_HEAD(self) -> None:
                hub.answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        parts = request.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._metadata(request, "/".join(parts[2:4]), *parts[4:6])
        else:
            self._file(request, "/".join(parts[:2]), "/".join(parts[4:]))

    def _metadata(
        self, request: BaseHTTPRequestHandler, repository: str, kind: str = "revision", revision: str = "main"
    ) -> None:
        folder = self.repositories.get(repository)
        if folder is None:
            return _send(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if revision not in {"main", COMMIT}:
            return _send(request, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        body: Any = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
        if kind == "tree":
            body = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": _digest(path)}
                for name, path in files.items()
            ]
        return _send(request, 200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _file(self, request: BaseHTTPRequestHandler, repository: str, name: str) -> None:
        path = self.repositories[repository] / name
        if request.command == "GET":
            self.downloaded.append(f"{repository}/{name}")
        _send(request, 200, path.read_bytes(), {"ETag": f'"{_digest(path)}"', "X-Repo-Commit": COMMIT})


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _send(request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]) -> None:
    request.send_response(status)
    for name, value in {**headers, "Content-Length": str(len(body))}.items():
        request.send_header(name, value)
    request.end_headers()
    if request.command == "GET":
        request.wfile.write(body)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def hub(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub({BASE_ID: pair.base, SPRINT_ID: pair.sprint})
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    yield hub
    hub.close()


def test_a_repository_is_downloaded_and_its_commit_is_told(hub, pair, caplog):
    with caplog.at_level(logging.INFO, logger="sana.models"):
        layout = locate("base", BASE_ID, "main", prefer_bf16=False)
    assert layout.commit == COMMIT
    assert layout.name == BASE_ID
    for path in pair.base.rglob("*"):
        if path.is_file():
            assert (layout.folder / path.relative_to(pair.base)).read_bytes() == path.read_bytes()
    assert f"SANA_BASE_REVISION={COMMIT}" in caplog.text


def test_a_pinned_commit_is_used_without_advice(hub, caplog):
    with caplog.at_level(logging.INFO, logger="sana.models"):
        assert locate("sprint", SPRINT_ID, COMMIT, prefer_bf16=False).commit == COMMIT
    assert "SANA_SPRINT_REVISION" not in caplog.text


def test_sprints_text_encoder_is_not_downloaded(hub):
    layout = locate("sprint", SPRINT_ID, None, prefer_bf16=False)
    components = {name.removeprefix(f"{SPRINT_ID}/").split("/")[0] for name in hub.downloaded}
    assert components == {"model_index.json", "transformer", "vae", "scheduler"}
    assert not layout.has("text_encoder")


def test_files_that_nothing_reads_are_not_downloaded(hub, pair, tmp_path):
    import shutil

    crowded = tmp_path / "crowded"
    shutil.copytree(pair.base, crowded)
    weights = crowded / "transformer" / "diffusion_pytorch_model.safetensors"
    for name in ("diffusion_pytorch_model.bf16.safetensors", "diffusion_pytorch_model.bin", "code.py"):
        shutil.copy(weights, weights.with_name(name))
    (crowded / "README.md").write_text("read me")
    (crowded / "setup.py").write_text("raise SystemExit")
    hub.repositories["maker/crowded"] = crowded
    locate("base", "maker/crowded", None, prefer_bf16=True)
    fetched = {name.removeprefix("maker/crowded/") for name in hub.downloaded}
    assert {name for name in fetched if name.startswith("transformer/")} == {
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.bf16.safetensors",
    }
    assert not {"README.md", "setup.py"} & fetched


def test_a_repository_with_pickles_only_is_refused_before_the_download(hub, pair, tmp_path):
    import shutil

    pickled = tmp_path / "pickled"
    shutil.copytree(pair.base, pickled)
    (pickled / "vae" / "diffusion_pytorch_model.safetensors").rename(pickled / "vae" / "diffusion_pytorch_model.bin")
    hub.repositories["maker/pickled"] = pickled
    with pytest.raises(ModelLoadError, match=r"^SANA_BASE_MODEL=maker/pickled: its vae .*\.bin only; pickles"):
        locate("base", "maker/pickled", None, prefer_bf16=False)
    assert hub.downloaded == []


def test_unknown_repositories_and_revisions_are_told_apart(hub):
    with pytest.raises(ModelLoadError, match=r"SANA_SPRINT_MODEL=maker/other: .*neither a folder nor a repository"):
        locate("sprint", "maker/other", None, prefer_bf16=False)
    with pytest.raises(ModelLoadError, match=r"no revision v9, see SANA_BASE_REVISION"):
        locate("base", BASE_ID, "v9", prefer_bf16=False)


def test_a_hub_that_is_gone_leaves_what_was_downloaded_earlier(hub, caplog):
    first = locate("base", BASE_ID, "main", prefer_bf16=False)
    hub.close()
    again = locate("base", BASE_ID, "main", prefer_bf16=False)
    assert (again.folder, again.commit) == (first.folder, COMMIT)
    assert "does not answer" in caplog.text
    with pytest.raises(ModelLoadError, match="SANA_SPRINT_MODEL=maker/sprint: the hub does not answer") as told:
        locate("sprint", SPRINT_ID, "main", prefer_bf16=False)
    assert "\n" not in str(told.value)
