"""What the container proof says of an image, and what it leaves behind; the proof itself is `make container-proof`."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container import base, podman
from tests.container.image import added_secrets

PYTHONS_OWN = ["PATH=/usr/local/bin:/usr/bin", "LANG=C.UTF-8", "GPG_KEY=A035C8C19219BA821ECEA86B64E628F8D684696D"]


def test_secrets_are_what_the_build_added():
    added = ["HF_TOKEN=x", "AWS_SECRET_ACCESS_KEY=x", "npm_token=x", "BENTOML_HOME=/home/monkey"]
    found = added_secrets([*PYTHONS_OWN, *added], PYTHONS_OWN)
    assert found == ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "npm_token"]
    assert added_secrets(PYTHONS_OWN, []) == ["GPG_KEY"]


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A name in podman's store that `made` gives to an empty image."""
    if shutil.which("podman") is None or os.geteuid() != 0:
        pytest.skip("needs root and podman")

    def make(image: str) -> None:
        (tmp_path / "empty").mkdir(exist_ok=True)
        with subprocess.Popen(["tar", "-C", str(tmp_path / "empty"), "-c", "."], stdout=subprocess.PIPE) as tar:
            subprocess.run(["podman", "import", "-", image], check=True, stdin=tar.stdout, capture_output=True)

    monkeypatch.setattr(base, "_make", make)
    name = f"localhost/sana-test-{uuid.uuid4().hex}:base"
    yield name
    podman.call("rmi", name, check=False)


def test_a_base_image_that_was_made_goes_again(name: str):
    with base.made(name):
        assert podman.has_image(name)
    assert not podman.has_image(name)


def test_a_base_image_goes_when_the_proof_fails(name: str):
    with pytest.raises(RuntimeError), base.made(name):
        raise RuntimeError
    assert not podman.has_image(name)


def test_a_base_image_that_was_there_stays(name: str):
    base._make(name)
    with base.made(name):
        pass
    assert podman.has_image(name)
