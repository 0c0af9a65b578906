"""`python:3.11-slim` from Debian's packages: for machines that reach Debian's mirror and no container registry.

What stands for the real image has Debian's Python 3.11 with pip and venv, certificates, and neither compiler nor git.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.container import podman

PACKAGES = ("ca-certificates", "python3", "python3-pip", "python3-venv")
SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
LABEL = "sana.base=debootstrap"


@contextlib.contextmanager
def made(image: str) -> Iterator[None]:
    """The base image is there; what was made for this goes again, so that nothing else takes it for the real one.

    Raises:
        subprocess.CalledProcessError: debootstrap or podman failed.
    """
    missing = not podman.has_image(image)
    try:
        if missing:
            _make(image)
        yield
    finally:
        if missing:
            # Without force: where an image that was built on it is kept, its name alone goes.
            podman.call("rmi", image, check=False)


def _make(image: str) -> None:
    """Make the base image under the name that the Bento's Dockerfile asks for.

    Raises:
        subprocess.CalledProcessError: debootstrap or podman failed; what it said stands on stderr.
    """
    with tempfile.TemporaryDirectory(prefix="sana-base-") as folder:
        root = Path(folder, "root")
        command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(root), MIRROR]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        # As in the real image, pip may install beside the system's packages.
        for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            marker.unlink()
        # A mirror or proxy of the build host may have a certificate of its own.
        shutil.copy(CERTIFICATES, root / CERTIFICATES.relative_to("/"))
        for leftovers in ("var/lib/apt/lists", "var/cache/apt/archives"):
            shutil.rmtree(root / leftovers)
            (root / leftovers / "partial").mkdir(parents=True)
        changes = (f"ENV SSL_CERT_FILE={CERTIFICATES}", "CMD python3", f"LABEL {LABEL}")
        options = [option for change in changes for option in ("--change", change)]
        with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as tar:
            subprocess.run(
                ["podman", "import", *options, "-", image], check=True, stdin=tar.stdout, stdout=subprocess.DEVNULL
            )
