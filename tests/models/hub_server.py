"""A hub on this machine: the hub's protocol from folders, with ranges, digests and the faults that a test wants."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """Serves folders as repositories at one commit, `main`.

    Args:
        repositories: folders by id.

    Attributes:
        asked: (path, first byte asked for) of each file request.
        questions: of the metadata of repositories.
        stop_after: bytes after which the answer to a file of this name breaks off, once.
        hang_after: bytes after which the answer to a file of this name goes on no more, once.
        changed: names of files whose content has one bit flipped.
        gated: ids of repositories whose files need a permission.
    """

    def __init__(self, repositories: dict[str, Path]) -> None:
        self.repositories = repositories
        self.asked: list[tuple[str, int]] = []
        self.questions = 0
        self.stop_after: dict[str, int] = {}
        self.hang_after: dict[str, int] = {}
        self.hanging = threading.Event()
        self.changed: set[str] = set()
        self.gated: set[str] = set()
        self._closed = threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with contextlib.suppress(ConnectionError):
                    hub.answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        parts = request.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self.questions += 1
            self._describe(request, "/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main")
        elif "/".join(parts[:2]) not in self.repositories:
            _send(request, 404, b"{}", {})
        else:
            self._send_file(request, "/".join(parts[:2]), "/".join(parts[4:]))

    def _describe(self, request: BaseHTTPRequestHandler, repository: str, revision: str) -> None:
        folder = self.repositories.get(repository)
        if folder is None:
            return _send(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if revision not in {"main", COMMIT}:
            return _send(request, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        siblings = [_sibling(path, folder) for path in sorted(folder.rglob("*")) if path.is_file()]
        body = json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}).encode()
        return _send(request, 200, body, {"Content-Type": "application/json"})

    def _send_file(self, request: BaseHTTPRequestHandler, repository: str, name: str) -> None:
        if repository in self.gated:
            return _send(request, 403, b"{}", {"X-Error-Code": "GatedRepo"})
        content = bytearray((self.repositories[repository] / name).read_bytes())
        if name in self.changed:
            content[len(content) // 2] ^= 1
        first = int(request.headers.get("Range", "bytes=0-")[6:].partition("-")[0])
        self.asked.append((f"{repository}/{name}", first))
        request.send_response(206 if first else 200)
        request.send_header("Content-Length", str(len(content) - first))
        if first:
            request.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        request.end_headers()
        stop, hang = self.stop_after.pop(name, None), self.hang_after.pop(name, None)
        request.wfile.write(content[first : stop or hang])
        if hang is not None:
            request.wfile.flush()
            self.hanging.set()
            self._closed.wait(60)
        if stop is not None or hang is not None:
            request.close_connection = True
        return None


def _sibling(path: Path, folder: Path) -> dict[str, Any]:
    content = path.read_bytes()
    described: dict[str, Any] = {
        "rfilename": path.relative_to(folder).as_posix(),
        "size": len(content),
        "blobId": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
    }
    if path.suffix == ".safetensors":
        described["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return described


def _send(request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]) -> None:
    request.send_response(status)
    for name, value in {**headers, "Content-Length": str(len(body))}.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(body)
