"""A server over TLS with a certificate of its own authority: fal's clients speak https alone."""

from __future__ import annotations

import contextlib
import os
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import trustme

from tests import services


@dataclass(frozen=True)
class SecureServer:
    """A server over TLS.

    Args:
        server: its process, with an https URL.
        authority: the certificate that its own is signed with, a PEM file.
    """

    server: services.Server
    authority: Path

    @property
    def host(self) -> str:
        """Name and port; the name starts with `queue.` for the same port by `queue_host`."""
        return self.server.url.removeprefix("https://")

    @property
    def environment(self) -> dict[str, str]:
        """What a client's program is started with."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("FAL_", "OPENAI_"))}
        return inherited | {"SSL_CERT_FILE": str(self.authority), "NODE_EXTRA_CA_CERTS": str(self.authority)}

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + services.START_SECONDS
        with self.client() as http:
            while time.monotonic() < deadline:
                if self.server.process.poll() is not None:
                    break
                with contextlib.suppress(httpx.TransportError):
                    if http.get("/readyz").status_code == 200:
                        return
                time.sleep(0.1)
        raise RuntimeError(f"the server did not become ready:\n{self.server.log}")

    def client(self, **options: object) -> httpx.Client:
        context = ssl.create_default_context(cafile=self.authority)
        return httpx.Client(base_url=self.server.url, timeout=60, verify=context, **options)  # type: ignore[arg-type]


@contextlib.contextmanager
def secure_server(folder: Path, variables: Mapping[str, str]) -> Iterator[SecureServer]:
    """A ready server over TLS."""
    folder.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "queue.localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(folder / "authority.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(folder / "certificate.pem", append=True)
    command = ("bentoml", "serve", "service:Sana", "--ssl-certfile", str(folder / "certificate.pem"))
    with services.process(folder, variables, command=(*command, "--ssl-keyfile", str(folder / "key.pem"))) as started:
        secure = SecureServer(
            replace(started, url=started.url.replace("http://127.0.0.1", "https://localhost")), folder / "authority.pem"
        )
        secure.wait_until_ready()
        yield secure
