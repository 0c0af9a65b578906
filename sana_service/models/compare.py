"""Whether two checkpoints hold the same component, found out from their files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from sana_service.models.layout import Component, Layout


def same_weights(one: Layout, other: Layout, component: Component, dtype: torch.dtype) -> bool:
    """Whether a component is the same in two checkpoints, as loaded in `dtype`; reads files only.

    Class and configuration first, then the files' hashes, then tensor by tensor, for files that were
    saved with another precision or sharding.
    """
    if one.class_name(component) != other.class_name(component):
        return False
    if one.config(component) != other.config(component):
        return False
    prefer_bf16 = dtype == torch.bfloat16
    one_files = [one.folder / component / name for name in one.weights(component, prefer_bf16).tensors]
    other_files = [other.folder / component / name for name in other.weights(component, prefer_bf16).tensors]
    if [_digest(file) for file in one_files] == [_digest(file) for file in other_files]:
        return True
    with other.reading(component):
        return _same_tensors(one_files, other_files, dtype)


def _same_tensors(one: list[Path], other: list[Path], dtype: torch.dtype) -> bool:
    def places(files: list[Path]) -> dict[str, Any]:
        opened: list[Any] = [safe_open(file, framework="pt") for file in files]
        return {key: file for file in opened for key in file.keys()}  # noqa: SIM118 - no mapping

    ours, theirs = places(one), places(other)
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[key].get_tensor(key).to(dtype), theirs[key].get_tensor(key).to(dtype)) for key in ours
    )


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
