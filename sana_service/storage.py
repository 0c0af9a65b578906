"""Where generated images are kept until they expire: a local folder, or any fsspec filesystem.

    put: bytes --> name        open: name --> StoredFile | None        expire: deletes what is old

    StorageError        the backend failed: disk full, permission, server unreachable, wrong answer

Names are 128 random bits and are the only key to a file: no other name is ever looked up and nothing
is listed to anybody, so knowing a name is the permission to read it. A file is whole or absent:
locally it is written under another name and renamed; an object store's upload is atomic by itself.

The methods block and may be called from any thread. Expiry of remote files is the bucket's lifecycle
rule, not this module's.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit
from urllib.request import url2pathname

from sana_service.metrics import STORAGE_ERRORS, STORAGE_RETRIES, StorageOperation
from sana_service.telemetry import get_logger

logger = get_logger("storage")


_CONTENT_TYPES = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
_NAME = re.compile(r"[0-9a-f]{32}\.(jpg|png|webp)")
_TEMPORARY_NAME = re.compile(r"\.[0-9a-f]{32}\.(jpg|png|webp)\.part")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://")
_PROBE = b"sana-service storage probe"

_LOCAL_SCHEMES = ("file", "local")
_S3_SCHEMES = ("s3", "s3a")
# Waiting for a dead server is bounded, so that the client still gets its 503 within its own patience.
_S3_OPTIONS = {
    "skip_instance_cache": True,
    "use_listings_cache": False,
    # A file is then one GET: no HEAD for its size before, and no listing when it is missing.
    "max_concurrency": 1,
    "config_kwargs": {"connect_timeout": 5, "read_timeout": 30, "retries": {"total_max_attempts": 1}},
}
_RETRY_AFTER_SECONDS = 0.2
_ANSWER_SECONDS = 30.0
"""Of one try. The options above bound neither a server that accepts and says nothing nor one that trickles."""
# S3's, most others', fsspec's memory filesystem's.
_MODIFIED_KEYS = ("LastModified", "mtime", "created")


class StorageError(Exception):
    """The storage could not do what was asked; the message is one line, without credentials."""


@dataclass(frozen=True)
class StoredFile:
    """One stored image.

    Args:
        data: its content.
        content_type: its media type.
        modified: POSIX seconds of when it was stored.
    """

    data: bytes
    content_type: str
    modified: float

    @property
    def size_bytes(self) -> int:
        return len(self.data)


class _Backend(Protocol):
    """Files by name; a missing file is FileNotFoundError, any other failure StorageError."""

    def write(self, name: str, data: bytes, content_type: str) -> None: ...

    def read(self, name: str) -> tuple[bytes, float]:
        """Content, and POSIX seconds of its last change."""

    def remove(self, name: str) -> None: ...

    def expire(self, now: float) -> int: ...


class Storage:
    """Images by unguessable name.

    Args:
        url: `file:///path`, `s3://bucket/prefix`, or what else fsspec knows. A local folder is made
            when it is missing, readable by its owner alone. Nothing remote is contacted before first use.
        ttl_seconds: age at which local files are no longer answered, and are deleted by `expire`.

    Raises:
        ValueError: no such kind of URL, or its filesystem's package is missing.
        StorageError: the local folder cannot be made.
    """

    def __init__(self, url: str, ttl_seconds: int) -> None:
        match = _SCHEME.match(url)
        if match is None:
            raise ValueError(f"{url!r} is no URL such as file:///var/lib/sana or s3://bucket/prefix")
        scheme = match[1]
        local = scheme in _LOCAL_SCHEMES
        self._backend: _Backend = _Folder(url, ttl_seconds) if local else _Remote(url, scheme)

    @property
    def folder(self) -> Path | None:
        """Where local files are; None for remote ones."""
        return self._backend.folder if isinstance(self._backend, _Folder) else None

    def put(self, data: bytes, extension: str) -> str:
        """Store an image.

        Args:
            data: its content.
            extension: "jpg", "png" or "webp".

        Returns:
            The name to open it by.

        Raises:
            ValueError: another extension.
            StorageError: it could not be stored; nothing of it is left.
        """
        if extension not in _CONTENT_TYPES:
            raise ValueError(f"extension must be one of {', '.join(_CONTENT_TYPES)}, not {extension!r}")
        name = f"{secrets.token_hex(16)}.{extension}"
        with _counted("put"):
            self._backend.write(name, data, _CONTENT_TYPES[extension])
        return name

    def open(self, name: str) -> StoredFile | None:
        """The image of that name; None when it is absent or expired, or the name is none of ours.

        Raises:
            StorageError: the backend did not answer.
        """
        if not _NAME.fullmatch(name):
            return None
        try:
            with _counted("open"):
                data, modified = self._backend.read(name)
        except FileNotFoundError:
            return None
        return StoredFile(data, _CONTENT_TYPES[name.rpartition(".")[2]], modified)

    def delete(self, name: str) -> None:
        """Delete the image of that name, if there is one.

        Raises:
            StorageError: the backend did not answer, or refuses to delete.
        """
        if _NAME.fullmatch(name):
            try:
                with _counted("delete"):
                    self._backend.remove(name)
            except FileNotFoundError:
                return

    def check(self) -> None:
        """Write, read and delete a probe.

        Raises:
            StorageError: one of the three does not work.
        """
        name = self.put(_PROBE, "png")
        try:
            probe = self.open(name)
            if probe is None or probe.data != _PROBE:
                raise StorageError("what was written to the storage did not come back")
        finally:
            self.delete(name)

    def expire(self, now: float) -> int:
        """Delete local images older than the TTL, and what interrupted writes left behind.

        Other files in the folder are not touched. Remote storage is left to its lifecycle rule.

        Args:
            now: POSIX seconds.

        Returns:
            How many files were deleted.

        Raises:
            StorageError: the folder cannot be read, or a file in it cannot be deleted.
        """
        with _counted("expire"):
            return self._backend.expire(now)


@contextmanager
def _counted(operation: StorageOperation) -> Iterator[None]:
    try:
        yield
    except StorageError:
        STORAGE_ERRORS.labels(operation).inc()
        raise


class _Folder:
    """A local folder."""

    def __init__(self, url: str, ttl_seconds: int) -> None:
        parts = urlsplit(url)
        ours = parts.netloc in ("", "localhost") and parts.path.startswith("/")
        if not ours or parts.query or parts.fragment:
            raise ValueError(f"{url!r} must be an absolute path with three slashes, such as file:///var/lib/sana")
        self.folder = Path(url2pathname(parts.path))
        self._ttl_seconds = ttl_seconds
        with self._failures("made"):
            self._make_folder()

    def _make_folder(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(self, name: str, data: bytes, content_type: str) -> None:
        with self._failures("written to"):
            try:
                self._place(name, data)
            except (FileNotFoundError, NotADirectoryError):
                # Cleaners of temporary folders may have taken it since the last write.
                self._make_folder()
                self._place(name, data)

    def _place(self, name: str, data: bytes) -> None:
        temporary = self.folder / f".{name}.part"
        try:
            temporary.write_bytes(data)
            os.replace(temporary, self.folder / name)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def read(self, name: str) -> tuple[bytes, float]:
        path = self.folder / name
        with (
            self._failures("read", absence_is_an_answer=True),
            open(path, "rb", opener=_open_no_link) as file,
        ):
            modified = os.fstat(file.fileno()).st_mtime
            if time.time() - modified > self._ttl_seconds:
                raise FileNotFoundError(name)
            return file.read(), modified

    def remove(self, name: str) -> None:
        with self._failures("deleted from", absence_is_an_answer=True):
            (self.folder / name).unlink()

    def expire(self, now: float) -> int:
        expired = 0
        try:
            with self._failures("swept", absence_is_an_answer=True), os.scandir(self.folder) as entries:
                for entry in entries:
                    if _NAME.fullmatch(entry.name) or _TEMPORARY_NAME.fullmatch(entry.name):
                        expired += self._expire(entry, now)
        except FileNotFoundError:
            # The folder is gone, and with it what could expire; the next write makes it anew.
            return expired
        return expired

    def _expire(self, entry: os.DirEntry[str], now: float) -> int:
        try:
            status = entry.stat(follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode) or now - status.st_mtime <= self._ttl_seconds:
                return 0
            os.unlink(entry.path)
        except FileNotFoundError:
            # Another replica on the same volume was quicker.
            return 0
        return 1

    @contextmanager
    def _failures(self, action: str, *, absence_is_an_answer: bool = False) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if absence_is_an_answer and isinstance(error, FileNotFoundError):
                raise
            raise StorageError(f"{self.folder} cannot be {action}: {error.strerror or error}") from error


def _open_no_link(path: str, flags: int) -> int:
    # A link in the folder was not made here; following it could give out any file of the machine.
    return os.open(path, flags | os.O_NOFOLLOW)


class _Remote:
    """Any other fsspec filesystem, object stores above all."""

    def __init__(self, url: str, scheme: str) -> None:
        import fsspec

        place = url.removeprefix(f"{scheme}://").split("/")[0]
        self._url = url
        self._is_s3 = scheme in _S3_SCHEMES
        # What stands before an @ may be a password, and errors are logged.
        self._label = f"{scheme}://{place.rpartition('@')[2]}"
        try:
            fsspec.get_filesystem_class(scheme)
        except (ValueError, ImportError) as error:
            raise ValueError(f"{scheme}:// is no kind of storage that can be used: {error}") from error
        if self._is_s3 and not place:
            raise ValueError(f"{url!r} names no bucket; it must be such as s3://bucket/prefix")

    @cached_property
    def _root(self) -> tuple[Any, str]:
        """The filesystem and the path that names are appended to.

        Made at first use, so that a process which only reads its settings opens no connection.
        """
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(self._url, **(_S3_OPTIONS if self._is_s3 else {}))
        if self._is_s3:
            # One more try is made here for every backend alike; s3fs and botocore would each make five.
            filesystem.retries = 1
        return filesystem, path.rstrip("/")

    def write(self, name: str, data: bytes, content_type: str) -> None:
        options = {"ContentType": content_type} if self._is_s3 else {}
        try:
            self._call("put", "pipe_file", name, data, **options)
        except FileNotFoundError as error:
            raise StorageError(f"{self._label} does not exist: {_line(error)}") from error

    def read(self, name: str) -> tuple[bytes, float]:
        data: bytes = self._call("open", "cat_file", name)
        facts: dict[str, Any] = self._call("open", "info", name)
        modified = next((facts[key] for key in _MODIFIED_KEYS if facts.get(key)), None)
        if isinstance(modified, datetime):
            modified = modified.timestamp()
        return data, modified if isinstance(modified, int | float) else time.time()

    def remove(self, name: str) -> None:
        self._call("delete", "rm_file", name)

    def expire(self, now: float) -> int:
        return 0

    def _call(self, kind: StorageOperation, method: str, name: str, *arguments: Any, **options: Any) -> Any:
        """What a method of the filesystem gives for a name, tried twice unless its failure is an answer."""
        try:
            return self._try(method, name, *arguments, **options)
        except FileNotFoundError:
            raise
        except PermissionError as error:
            raise StorageError(f"{self._label} refuses: {_line(error)}") from error
        # The exceptions of fsspec's many backends have no base of their own.
        except Exception as error:
            logger.warning("%s failed and is tried once more: %s", self._label, _line(error))
        STORAGE_RETRIES.labels(kind).inc()
        time.sleep(_RETRY_AFTER_SECONDS)
        try:
            return self._try(method, name, *arguments, **options)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise StorageError(f"{self._label} failed twice: {_line(error)}") from error

    def _try(self, method: str, name: str, *arguments: Any, **options: Any) -> Any:
        """Once, and not for ever where the filesystem is one that can be told to stop."""
        filesystem, root = self._root
        path = f"{root}/{name}"
        if not filesystem.async_impl:
            return getattr(filesystem, method)(path, *arguments, **options)
        from fsspec.asyn import sync
        from fsspec.exceptions import FSTimeoutError

        try:
            coroutine = getattr(filesystem, f"_{method}")
            return sync(filesystem.loop, coroutine, path, *arguments, timeout=_ANSWER_SECONDS, **options)
        except FSTimeoutError as error:
            raise TimeoutError(f"no answer within {_ANSWER_SECONDS:g} seconds") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
