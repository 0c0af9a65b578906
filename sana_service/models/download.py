"""Checkpoints from the hub into a folder: resumed where they broke off, verified, nothing half-written.

    FOLDER/base, FOLDER/sprint, FOLDER/safety    each in the hub's layout, with `download.json` once it is whole

A file grows as `NAME.<digest>.part`, is hashed when it is as long as the hub says, and only then gets its name; so a
file under its own name is whole and right. `download.json` is written last and tells what there is. Needs neither torch
nor a GPU.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from sana_service.models.checkpoint import ModelLoadError

Part = Literal["base", "sprint", "safety"]
Algorithm = Literal["sha256", "git-sha1"]
Tell = Callable[[str], None]

MANIFEST = "download.json"
_LOCK = ".download.lock"
_SAFETY_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
_CHUNK_BYTES = 8 * 1024 * 1024


class DownloadError(Exception):
    """A checkpoint is not there; the message is one line that says which, why and what to do."""


@dataclass(frozen=True)
class Source:
    """What to fetch.

    Args:
        part: which of the three.
        repository: its id on the hub.
        revision: branch, tag or commit.
    """

    part: Part
    repository: str
    revision: str

    def error(self, what: str) -> DownloadError:
        return DownloadError(f"{self.part}, {self.repository}: {' '.join(what.split())}")


@dataclass(frozen=True)
class File:
    """A file as the hub describes it.

    Args:
        size: bytes.
        algorithm: SHA-256 of the content, or git's SHA-1 of a small file's blob.
        digest: hexadecimal.
    """

    size: int
    algorithm: Algorithm
    digest: str

    def matches(self, path: Path) -> bool:
        """Whether a file on the disk is this one. Reads all of it."""
        if not self.has_size(path):
            return False
        digest = hashlib.sha256() if self.algorithm == "sha256" else hashlib.sha1(usedforsecurity=False)
        if self.algorithm == "git-sha1":
            digest.update(f"blob {self.size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest() == self.digest

    def has_size(self, path: Path) -> bool:
        return path.is_file() and path.stat().st_size == self.size


@dataclass(frozen=True)
class Checkpoint:
    """What is in a folder, as `download.json` has it.

    Args:
        commit: that the revision stood for.
        files: by name relative to the folder.
    """

    repository: str
    revision: str
    commit: str
    files: Mapping[str, File]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files.values())


def fetch(source: Source, folder: Path, *, prefer_bf16: bool, verify: bool, tell: Tell) -> Checkpoint:
    """Bring a checkpoint into a folder; what is there and right is not fetched again.

    Args:
        prefer_bf16: take bf16 variants where there are any.
        verify: hash what an earlier download left, too; otherwise its sizes are enough.
        tell: is given a line for each file that was fetched.

    Raises:
        DownloadError: it could not be brought there. What has arrived of a file is kept for the next attempt.
    """
    with _faults(source), _locked(folder):
        known = _read_manifest(folder)
        if known is not None and (known.repository != source.repository or not _sizes_match(known, folder)):
            known = None
        pinned = known is not None and source.revision == known.commit
        if known is None or not pinned or verify:
            known = _bring(source, folder, known, prefer_bf16=prefer_bf16, verify=verify, tell=tell)
        return known


def _bring(
    source: Source, folder: Path, known: Checkpoint | None, *, prefer_bf16: bool, verify: bool, tell: Tell
) -> Checkpoint:
    try:
        wanted = _describe(source, prefer_bf16)
    except _HubSilentError as silence:
        if known is None or source.revision not in {known.revision, known.commit}:
            raise source.error(f"the hub does not answer ({silence}); run the command again, it resumes") from silence
        tell(f"{source.part}: the hub does not answer, {folder} is used as it was downloaded")
        wanted = known
        if not verify:
            return known
    trusted = {} if known is None or verify else known.files
    missing = {
        name: file
        for name, file in wanted.files.items()
        if not (trusted.get(name) == file and file.has_size(folder / name)) and not file.matches(folder / name)
    }
    # Until it is whole again nothing says that it is.
    if missing or wanted != known:
        (folder / MANIFEST).unlink(missing_ok=True)
    _check_space(source, folder, missing)
    for name, file in missing.items():
        _fetch_file(source, wanted.commit, folder / name, name, file)
        tell(f"{source.part}/{name}  {size_text(file.size)}")
    _remove_leftovers(folder, wanted, known)
    _write_manifest(folder, wanted)
    return wanted


def _describe(source: Source, prefer_bf16: bool) -> Checkpoint:
    """Files, sizes and digests of a revision.

    Raises:
        _HubSilentError: the network or the hub is down.
        DownloadError: there is no such repository or revision, or nothing in it that can be used.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        info = huggingface_hub.HfApi().model_info(source.repository, revision=source.revision, files_metadata=True)
    except HfHubHTTPError as error:
        raise _refusal(source, error) from error
    except (OSError, OfflineModeIsEnabled) as error:
        raise _HubSilentError(f"{type(error).__name__}: {error}") from error
    except Exception as error:
        # Whatever the client library raises for a network that is down; it changes with its version.
        raise _HubSilentError(f"{type(error).__name__}: {error}") from error
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    names = _wanted(source, list(siblings), prefer_bf16)
    files: dict[str, File] = {}
    for name in names:
        sibling: Any = siblings.get(name)
        if sibling is None:
            raise source.error(f"it has no {name}")
        files[name] = _file(source, sibling)
    return Checkpoint(source.repository, source.revision, str(info.sha), files)


def _wanted(source: Source, names: list[str], prefer_bf16: bool) -> list[str]:
    if source.part == "safety":
        return list(_SAFETY_FILES)
    from sana_service.models.hub import wanted_files

    try:
        return wanted_files(source.part, source.repository, names, prefer_bf16)
    except ModelLoadError as error:
        raise DownloadError(str(error)) from error


def _file(source: Source, sibling: Any) -> File:
    name = sibling.rfilename
    if name.startswith("/") or ".." in Path(name).parts:
        raise source.error(f"the hub names a file {name!r}")
    lfs = sibling.lfs
    if lfs is not None:
        return File(int(lfs["size"]), "sha256", str(lfs["sha256"]))
    if sibling.size is None or sibling.blob_id is None:
        raise source.error(f"the hub tells neither size nor digest of {name}")
    return File(int(sibling.size), "git-sha1", str(sibling.blob_id))


def _fetch_file(source: Source, commit: str, path: Path, name: str, file: File) -> None:
    """Fetch one file under another name, from where an earlier attempt broke off; rename it when it is right."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get

    utils: Any = huggingface_hub.utils
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{file.digest[:16]}.part")
    if part.exists() and part.stat().st_size > file.size:
        part.unlink()
    with part.open("ab") as output:
        try:
            http_get(
                huggingface_hub.hf_hub_url(source.repository, name, revision=commit),
                output,
                resume_size=output.tell(),
                headers=utils.build_hf_headers(),
                expected_size=file.size,
                displayed_filename=f"{source.part}/{name}",
            )
        except HfHubHTTPError as error:
            raise _refusal(source, error) from error
        output.flush()
        os.fsync(output.fileno())
    if not file.matches(part):
        part.unlink()
        raise source.error(f"{name} arrived with another content than the hub promises; run the command again")
    part.replace(path)


class _HubSilentError(Exception):
    """The hub did not answer."""


def _refusal(source: Source, error: Any) -> Exception:
    """What the hub's answer means for the operator."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    match error:
        case GatedRepoError():
            return source.error("access to it must be granted on the hub, then set HF_TOKEN")
        case RepositoryNotFoundError():
            return source.error("there is no such repository (a private one needs HF_TOKEN)")
        case RevisionNotFoundError():
            return source.error(f"it has no revision {source.revision}")
    status = error.response.status_code
    if status >= 500 or status == 429:
        return _HubSilentError(f"HTTP {status}")
    return source.error(f"the hub answered {status}")


@contextlib.contextmanager
def _faults(source: Source) -> Iterator[None]:
    """One line for what the disk or the network did."""
    try:
        yield
    except DownloadError:
        raise
    except _HubSilentError as error:
        raise source.error(f"the hub does not answer ({error}); run the command again, it resumes") from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise source.error(f"{where}{error.strerror or error}; run the command again, it resumes") from error
    except Exception as error:
        # The client library's transport errors have no common base that it promises.
        if not type(error).__module__.startswith(("httpx", "httpcore", "huggingface_hub")):
            raise
        what = f"the download broke off ({type(error).__name__}: {error}); run the command again, it resumes"
        raise source.error(what) from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time: two pods may start on one volume."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check_space(source: Source, folder: Path, missing: Mapping[str, File]) -> None:
    begun = sum(path.stat().st_size for path in folder.rglob("*.part"))
    needed = sum(file.size for file in missing.values()) - begun
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise source.error(f"{size_text(needed)} are missing, and {folder} has room for {size_text(free)}")


def _remove_leftovers(folder: Path, wanted: Checkpoint, known: Checkpoint | None) -> None:
    """Parts of files that are no longer wanted, and the files of an earlier commit that this one lacks."""
    for path in folder.rglob("*.part"):
        path.unlink()
    for name in set(() if known is None else known.files) - set(wanted.files):
        (folder / name).unlink(missing_ok=True)


def _read_manifest(folder: Path) -> Checkpoint | None:
    try:
        values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {name: File(**file) for name, file in values.pop("files").items()}
        return Checkpoint(**values, files=files)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _write_manifest(folder: Path, checkpoint: Checkpoint) -> None:
    path = folder / MANIFEST
    temporary = path.with_suffix(".json.part")
    temporary.write_text(json.dumps(asdict(checkpoint), indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def _sizes_match(checkpoint: Checkpoint, folder: Path) -> bool:
    return all(file.has_size(folder / name) for name, file in checkpoint.files.items())


def size_text(size: int) -> str:
    """Bytes for people."""
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}" if unit != "B" else f"{size} B"
        value /= 1000
    return f"{value:.2f} GB"


@contextlib.contextmanager
def hub_bars(wanted: bool) -> Iterator[None]:
    """The hub client's progress bars, where a terminal can see them."""
    import huggingface_hub.utils

    hub: Any = huggingface_hub.utils
    hide = not (wanted and sys.stderr.isatty()) and not hub.are_progress_bars_disabled()
    if hide:
        hub.disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            hub.enable_progress_bars()
