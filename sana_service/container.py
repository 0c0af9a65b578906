"""The container image that `bentoml containerize` makes; packages and variables are bentofile.yaml's."""

from __future__ import annotations

import bentoml

BASE_IMAGE = "docker.io/library/python:3.11-slim"

# BentoML's Dockerfile installs whichever uv is the newest where there is none: x86-64, then arm64.
_UV = (
    "uv==0.13.9",
    "--hash=sha256:d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19",
    "--hash=sha256:5435c5ce14a56431208ca0996416d310f1598e8c2c8ba707688985a16bb82dbe",
    "--hash=sha256:ecb6028d79dc96fbeafffe5c8af62a7099487ebc05a701e76714eebcffd06375",
)


def image() -> bentoml.images.Image:
    """Debian's slim Python as it is.

    The distribution is one that BentoML has no recipe for: with `debian` its Dockerfile would install a compiler and
    git, and nothing here is built from source.
    """
    pinned = " ".join(_UV)
    return bentoml.images.Image(base_image=BASE_IMAGE, distro="none", python_version="3.11").run(
        f"echo '{pinned}' > /tmp/uv.txt && pip install --no-cache-dir --require-hashes -r /tmp/uv.txt && rm /tmp/uv.txt"
    )
