"""`sana serve`: BentoML's server with the settings that the service needs."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

import sana_service
from sana_service.cli.output import fail, stderr

Models = Literal["auto", "hub", "bundled", "random"]


def serve(
    port: Annotated[int, typer.Option("--port", "-p", min=1, max=65535, help="Where to listen.")] = 3000,
    host: Annotated[str, typer.Option(help="Address to listen on; 127.0.0.1 for this machine alone.")] = "0.0.0.0",
    models: Annotated[Models | None, typer.Option(help="Which models; SANA_MODELS otherwise.")] = None,
    ssl_certfile: Annotated[Path | None, typer.Option(exists=True, help="PEM certificate, for https.")] = None,
    ssl_keyfile: Annotated[Path | None, typer.Option(exists=True, help="PEM key of the certificate.")] = None,
) -> None:
    """Start the service, and its page at `/`.

    Everything else is set by `SANA_` environment variables; the README lists them.

    Examples:
    * `sana serve`, the bundled model on a laptop
    * `SANA_MODELS=hub sana serve --port 8000`, the full checkpoints
    """
    folder = Path(sana_service.__file__).resolve().parents[1]
    if not (folder / "service.py").exists():
        fail(f"there is no service.py beside the package in {folder}: run from a checkout or a Bento")
    binary = shutil.which("bentoml", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if binary is None:
        fail("bentoml is not installed in this environment")
    command = [binary, "serve", "service:Sana", "--working-dir", str(folder), "--port", str(port), "--host", host]
    for option, path in (("--ssl-certfile", ssl_certfile), ("--ssl-keyfile", ssl_keyfile)):
        if path is not None:
            command += [option, str(path)]
    environment = dict(os.environ)
    environment.setdefault("BENTOML_CONTAINERIZED", "true")
    if models is not None:
        environment["SANA_MODELS"] = models
    scheme = "https" if ssl_certfile else "http"
    stderr.print(f"the page will be at {scheme}://localhost:{port}, the API's description at /docs")
    os.execve(binary, command, environment)
