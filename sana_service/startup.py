"""What is checked before any worker exists: settings, key file, storage.

The supervisor imports `service.py`, and an exception in a worker's constructor would only make
BentoML start it again. So a wrong setting ends the supervisor, with one line.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType

from sana_service import tracing
from sana_service.http.keys import read_key_digests
from sana_service.jobs.record import StoreError
from sana_service.jobs.store import default_url, open_store
from sana_service.provenance import Signer, SigningError
from sana_service.settings import Settings, SettingsError, load_settings
from sana_service.storage import Storage, StorageError
from sana_service.telemetry import configure_logging


def prepare(environ: Mapping[str, str]) -> tuple[Settings, Storage]:
    """The settings and the storage they name; ends the process when a setting is wrong."""
    try:
        settings = load_settings(environ)
        storage = check(settings)
        check_tracing(environ)
    except SettingsError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from error
    configure_logging(settings.log_format)
    sys.excepthook = _say_that_the_worker_ended
    return settings, storage


def check(settings: Settings) -> Storage:
    """The storage, when everything that the settings point at is usable.

    Raises:
        SettingsError: a file or URL that a setting names is not; the message is one line.
    """
    check_keys(settings)
    jobs_url = settings.jobs_url or default_url(settings.storage_url)
    try:
        # A Redis server may come up later; a file is made here, so that a wrong path is told now.
        open_store(jobs_url).close()
    except (ValueError, StoreError) as error:
        # What stands before an @ may be a password.
        scheme, _, rest = jobs_url.partition("://")
        raise SettingsError(f"SANA_JOBS_URL={scheme}://{rest.rpartition('@')[2]}: {error}") from error
    try:
        signer = load_signer(settings)
        if signer is not None:
            signer.check()
    except SigningError as error:
        paths = f"SANA_C2PA_CERT={str(settings.c2pa_cert)!r}, SANA_C2PA_KEY={str(settings.c2pa_key)!r}"
        raise SettingsError(f"{paths}: {error}") from error
    try:
        return Storage(settings.storage_url, settings.file_ttl_seconds)
    except (ValueError, StorageError) as error:
        raise SettingsError(f"SANA_STORAGE_URL={settings.storage_url!r}: {error}") from error


def check_keys(settings: Settings) -> int:
    """How many API keys there are; 0 for a service that is open to everybody.

    Raises:
        SettingsError: their file cannot be used, or a setting needs one; the message is one line.
    """
    if settings.api_keys_file is not None:
        try:
            return len(read_key_digests(settings.api_keys_file))
        except ValueError as error:
            raise SettingsError(f"SANA_API_KEYS_FILE={str(settings.api_keys_file)!r}: {error}") from error
    if settings.max_concurrent_per_key is not None:
        raise SettingsError(
            f"SANA_MAX_CONCURRENT_PER_KEY={str(settings.max_concurrent_per_key)!r}: needs SANA_API_KEYS_FILE"
        )
    return 0


def check_tracing(environ: Mapping[str, str]) -> None:
    """Raise `SettingsError` where the collector of traces cannot be spoken to."""
    try:
        tracing.is_on(environ)
    except ValueError as error:
        raise SettingsError(str(error)) from error


def load_signer(settings: Settings) -> Signer | None:
    """What puts C2PA manifests into images; None where the operator wants none.

    Raises:
        SigningError: certificate and key cannot be used, or one of them is missing.
    """
    if settings.c2pa_cert is None and settings.c2pa_key is None:
        return None
    if settings.c2pa_cert is None or settings.c2pa_key is None:
        raise SigningError("certificate and key are needed both")
    return Signer(settings.c2pa_cert, settings.c2pa_key)


def _say_that_the_worker_ended(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """One line where the supervisor gives up on a dead worker: a trace would bury the worker's last words."""
    if kind is RuntimeError and str(error).startswith("No active process"):
        print("the worker process has ended, stopping", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
