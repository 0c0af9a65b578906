"""The small Sana and SANA-Sprint that travel with the package, so that the service draws without a download.

Light on purpose: paths and the manifest's check, no torch. How the pair was made stands in docs/bundled-model.md.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

MANIFEST = "MANIFEST.sha256"


def base_folder() -> Path:
    """The complete base pipeline in diffusers' layout; also home of what the sprint pipeline shares with it."""
    return Path(__file__).parent / "base"


def sprint_folder() -> Path:
    """The sprint pipeline's transformer and scheduler; tokenizer, text encoder and VAE are the base's."""
    return Path(__file__).parent / "sprint"


def verify(folder: Path | None = None) -> None:
    """Compare every data file with the manifest.

    Args:
        folder: where `MANIFEST.sha256`, `base` and `sprint` are; the package's own by default.

    Raises:
        ValueError: naming the first file that is missing, unlisted or altered.
    """
    folder = folder or Path(__file__).parent
    listed = {}
    for line in (folder / MANIFEST).read_text(encoding="utf-8").splitlines():
        digest, name = line.split("  ", 1)
        listed[name] = digest
    present = {path.relative_to(folder).as_posix() for path in data_files(folder)}
    for name in sorted(present ^ listed.keys()):
        raise ValueError(f"bundled model: {name} is {'not in the manifest' if name in present else 'missing'}")
    for name, digest in listed.items():
        if sha256(folder / name) != digest:
            raise ValueError(f"bundled model: {name} differs from its SHA-256 in {MANIFEST}")


def write_manifest(folder: Path) -> None:
    """Write `MANIFEST.sha256` for what stands in the folder now, in `sha256sum`'s format."""
    lines = [f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in data_files(folder)]
    (folder / MANIFEST).write_text("".join(lines), encoding="utf-8")


def data_files(folder: Path) -> list[Path]:
    """Every file of the two pipelines, sorted."""
    return sorted(path for name in ("base", "sprint") for path in (folder / name).rglob("*") if path.is_file())


def sha256(path: Path) -> str:
    """The file's digest in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
