"""Writes the chart's README: `python -m deploy.helm.readme`. The table of values is made of values.yaml's comments.

A comment that begins with `# --` says what the value under it means, and a value without one is an error, so that none
is left unexplained.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).with_name("sana")
PATH = CHART / "README.md"

_KEY = re.compile(r"^( *)([A-Za-z_][A-Za-z0-9_]*):")

TEXT = """\
# The chart

One replica is one pod with one process and, by default, one GPU. `helm install sana deploy/helm/sana` wants a cluster
of Kubernetes 1.30 or later with NVIDIA's device plugin; docs/deployment.md goes from there to a scaled deployment.

`ci/` has a set of values for each of the usual shapes, from a try-out without a GPU to replicas that KEDA scales; they
are what the tests render and check. Several replicas are interchangeable, so they need `storage.url` on S3, one Redis
(`jobs`) and the same `apiKeys`: the chart refuses to make them without the first two.

| value | default | meaning |
| --- | --- | --- |
"""


def explained(text: str) -> Iterator[tuple[str, str]]:
    """Path and meaning of each value that has a comment."""
    path: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            comment = [stripped[4:].strip()] if stripped.startswith("# --") else [*comment, stripped[1:].strip()]
            continue
        key = _KEY.match(line)
        if key is None:
            continue
        indent = len(key[1])
        path = [(depth, name) for depth, name in path if depth < indent] + [(indent, key[2])]
        if comment:
            yield ".".join(name for _, name in path), " ".join(comment)
        comment = []


def leaves(values: dict[str, Any], known: set[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Path and default of each value; what is explained as a whole is not taken apart."""
    for name, value in values.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict) and value and path not in known:
            yield from leaves(value, known, f"{path}.")
        else:
            yield path, value


def render() -> str:
    """The README's text.

    Raises:
        ValueError: a value has no comment.
    """
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    meanings = dict(explained(text))
    rows = []
    for path, default in leaves(yaml.safe_load(text), set(meanings)):
        if path not in meanings:
            raise ValueError(f"values.yaml: {path} has no comment")
        shown = yaml.safe_dump(default, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")
        rows.append(f"| `{path}` | `{shown}` | {meanings[path]} |")
    return TEXT + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
