"""What a start would find: each thing that the service needs, looked at by itself, with what to do about it.

Nothing is loaded or downloaded. The storage is written to and cleaned up; its folder and an empty file of jobs are
made, as a start would make them. A finding is `problem` where the service would not start or not serve, `warning` where
it would, and the operator may not want that.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

    from sana_service.settings import Settings

Status = Literal["ok", "warning", "problem"]

_LOW_DISK_BYTES = 2**30
_LOW_HANDLES = 1024
_BESIDES_WEIGHTS = 1.2
"""How much more than its weights a process needs: activations and libraries, roughly."""


@dataclass(frozen=True)
class Finding:
    """What was seen.

    Args:
        name: of what was looked at.
        status: how it is.
        message: one line.
        advice: what to do; empty where all is well.
    """

    name: str
    status: Status
    message: str
    advice: str = ""


def examine(environ: Mapping[str, str], host: str, port: int) -> Iterator[Finding]:
    """Look at everything, in the order in which a start would need it.

    Args:
        environ: with the operator's `SANA_` variables.
        host, port: where the service would listen.
    """
    from sana_service.settings import SettingsError, load_settings

    try:
        settings = load_settings(environ)
    except SettingsError as error:
        yield Finding("settings", "problem", str(error), "correct the variable; the README lists them all")
        return
    yield Finding("settings", "ok", "every SANA_ variable has an allowed value")
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        lambda: _devices(settings),
        lambda: _weights(settings),
        lambda: _keys(settings),
        lambda: _storage(settings),
        lambda: _jobs(settings),
        lambda: _signing(settings),
        lambda: _tracing(environ),
        lambda: _port(host, port),
        _handles,
    )
    for check in checks:
        yield from check()


def _devices(settings: Settings) -> Iterator[Finding]:
    import torch

    from sana_service.models.checkpoint import ModelLoadError
    from sana_service.models.load import resolve_devices

    drivers = _nvidia_driver()
    try:
        names = resolve_devices(settings.devices)
    except ModelLoadError as error:
        yield Finding("device", "problem", str(error), "set SANA_DEVICES to a device that is there, or to auto")
        return
    if drivers is not None and names == ["cpu"] and settings.devices == ("auto",):
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build for CPUs"
        advice = "install a build of torch that fits the driver (TORCH_INDEX_URL), and check `nvidia-smi`"
        yield Finding("device", "warning", f"there is an NVIDIA GPU, but torch {torch.__version__}, {build}, sees none",
                      advice)  # fmt: skip
    for name in names:
        yield _device(torch.device(name), drivers)
        if settings.precision == "fp8":
            yield _precision(torch.device(name))


def _device(device: torch.device, driver: str | None) -> Finding:
    import torch

    from sana_service.engine.faults import answers

    if not answers(device):
        return Finding("device", "problem", f"{device} does not compute", "check `nvidia-smi`, restart the machine")
    if device.type == "cpu":
        cores = len(os.sched_getaffinity(0))
        if cores == 1:
            return Finding("device", "warning", "cpu, 1 core", "give the process two: pictures and probes share one")
        return Finding("device", "ok", f"cpu, {cores} cores")
    free, total = torch.cuda.mem_get_info(device)
    message = f"{device}, {torch.cuda.get_device_name(device)}, driver {driver}, {_gb(free)} of {_gb(total)} free"
    if free < total / 2:
        return Finding("device", "warning", message, "end what else uses the GPU, see `nvidia-smi`")
    return Finding("device", "ok", message)


def _precision(device: torch.device) -> Finding:
    from sana_service.engine.backend import UnsupportedPrecision, require_fp8

    try:
        require_fp8(device)
    except UnsupportedPrecision as error:
        return Finding("precision", "problem", str(error), "leave SANA_PRECISION out")
    return Finding("precision", "ok", f"{device} has 8-bit matrix products")


def _nvidia_driver() -> str | None:
    """Version of the driver; None where there is no NVIDIA GPU."""
    try:
        import pynvml  # type: ignore[import-untyped]

        pynvml.nvmlInit()
        if not pynvml.nvmlDeviceGetCount():
            return None
        version = pynvml.nvmlSystemGetDriverVersion()
    except Exception:  # no library, no driver, no permission: each has an error of its own
        return None
    return version if isinstance(version, str) else str(version, "utf-8", "replace")


def _weights(settings: Settings) -> Iterator[Finding]:
    from sana_service.models.checkpoint import ModelLoadError
    from sana_service.models.load import resolve_devices, resolve_kind

    try:
        kind = resolve_kind(settings.models, resolve_devices(settings.devices)[0])
    except ModelLoadError:
        return  # said by the device
    if kind == "random":
        advice = "set SANA_MODELS to hub or bundled for pictures"
        yield Finding("weights", "warning", "random weights: for timing only", advice)
        return
    folders = []
    try:
        if kind == "bundled":
            folders = _bundled()
            yield Finding("weights", "ok", "the bundled pair is whole")
        else:
            for model, name, revision in (
                ("base", settings.base_model, settings.base_revision),
                ("sprint", settings.sprint_model, settings.sprint_revision),
            ):
                folder, finding = _checkpoint(model, name, revision)
                folders += [] if folder is None else [folder]
                yield finding
    except (ModelLoadError, ValueError, OSError) as error:
        yield Finding("weights", "problem", " ".join(str(error).split()), "correct the name, or download it again")
    if (wrong := _safety(settings.safety_model)) is not None:
        yield wrong
    weights_bytes = sum(file.stat().st_size for folder in folders for file in folder.rglob("*.safetensors"))
    if weights_bytes:
        yield _memory(weights_bytes, resolve_devices(settings.devices)[0])


def _bundled() -> list[Path]:
    from sana_service.models import bundled

    bundled.verify()
    return [bundled.base_folder(), bundled.sprint_folder()]


def _checkpoint(model: str, name: str, revision: str) -> tuple[Path | None, Finding]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    from sana_service.models.hub import is_repository
    from sana_service.models.layout import OWN, WEIGHTS, read_layout

    folder = Path(name).expanduser()
    if not folder.is_dir() and is_repository(name):
        try:
            folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
        except LocalEntryNotFoundError:
            advice = "`sana download` gets it beforehand, and checks it"
            message = f"{name} is not here yet and will be downloaded at the first start"
            return None, Finding(f"{model} weights", "warning", message, advice)
    layout = read_layout("base" if model == "base" else "sprint", name, folder, None)
    for component in WEIGHTS if model == "base" else [one for one in WEIGHTS if one in OWN]:
        layout.weights(component, True)
    return folder, Finding(f"{model} weights", "ok", f"{name}, safetensors, in {folder}")


def _safety(name: str) -> Finding | None:
    """What is wrong with a safety model of the operator's."""
    from sana_service.models.hub import is_repository

    if name in {"auto", "off", "opennsfw"} or is_repository(name):
        return None
    if (Path(name).expanduser() / "config.json").is_file():
        return None
    advice = "set SANA_SAFETY_MODEL to auto, off, opennsfw, owner/name or a folder that `sana download` made"
    return Finding("safety model", "problem", f"{name} is no folder with a config.json, and no repository", advice)


def _memory(weights_bytes: int, device: str) -> Finding:
    """Of the host, and of a GPU: weights are kept in 16 bits there and in 32 on a CPU, and pass through the host."""
    import psutil

    needed = int(weights_bytes * _BESIDES_WEIGHTS) * (2 if device == "cpu" else 1)
    available = int(psutil.virtual_memory().available)
    message = f"{_gb(available)} available, the weights have {_gb(weights_bytes)} on disk"
    if device == "cpu" and available < needed:
        return Finding("memory", "problem", message, f"make {_gb(needed)} available, or use smaller models")
    if device != "cpu":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        if free < needed:
            message = f"{_gb(free)} free on {device}, the weights have {_gb(weights_bytes)} on disk"
            return Finding("memory", "problem", message, f"make {_gb(needed)} available there, see `nvidia-smi`")
        if available < weights_bytes:
            advice = "loading may be slow: checkpoints pass through the host's memory"
            return Finding("memory", "warning", message, advice)
    return Finding("memory", "ok", message)


def _keys(settings: Settings) -> Iterator[Finding]:
    from sana_service.settings import SettingsError
    from sana_service.startup import check_keys

    path = settings.api_keys_file
    try:
        number = check_keys(settings)
        mode = path.stat().st_mode if path is not None else 0
    except (SettingsError, OSError) as error:
        yield Finding("keys", "problem", str(error), "write a key a line into that file, readable for this user")
        return
    if path is None:
        advice = "set SANA_API_KEYS_FILE, or listen where only friends can reach it"
        yield Finding("keys", "warning", "none: the service is open to everybody", advice)
        return
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        yield Finding("keys", "warning", f"{number} in {path}, which others on this machine can read",
                      f"chmod 600 {path}, and keep digests instead of keys: sha256:<64 hex digits>")  # fmt: skip
    else:
        yield Finding("keys", "ok", f"{number} in {path}")


def _storage(settings: Settings) -> Iterator[Finding]:
    from sana_service.storage import Storage, StorageError

    try:
        storage = Storage(settings.storage_url, settings.file_ttl_seconds)
        storage.check()
    except (ValueError, StorageError) as error:
        advice = "make it writable for this user, or correct SANA_STORAGE_URL and its credentials"
        reason = str(error).replace(settings.storage_url, _without_password(settings.storage_url))
        yield Finding("storage", "problem", f"{_without_password(settings.storage_url)}: {reason}", advice)
        return
    yield Finding("storage", "ok", f"{_without_password(settings.storage_url)}: written, read and deleted")
    if (folder := storage.folder) is not None:
        free = shutil.disk_usage(folder).free
        if free < _LOW_DISK_BYTES:
            advice = "free some, lower SANA_FILE_TTL_SECONDS, or keep images elsewhere"
            yield Finding("disk", "warning", f"{_gb(free)} free at {folder}", advice)
        else:
            yield Finding("disk", "ok", f"{_gb(free)} free at {folder}")


def _jobs(settings: Settings) -> Iterator[Finding]:
    from sana_service.jobs.record import StoreError
    from sana_service.jobs.store import default_url, open_store

    url = settings.jobs_url or default_url(settings.storage_url)
    try:
        store = open_store(url)
        try:
            store.get("0" * 32)
        finally:
            store.close()
    except (ValueError, StoreError) as error:
        advice = "correct SANA_JOBS_URL, or start the server that it names"
        yield Finding("jobs", "problem", f"{_without_password(url)}: {' '.join(str(error).split())}", advice)
    else:
        yield Finding("jobs", "ok", f"{_without_password(url)} answers")


def _signing(settings: Settings) -> Iterator[Finding]:
    from sana_service.provenance import SigningError
    from sana_service.startup import load_signer

    try:
        signer = load_signer(settings)
        if signer is None:
            return
        signer.check()
    except SigningError as error:
        yield Finding("signing", "problem", str(error), "correct SANA_C2PA_CERT and SANA_C2PA_KEY, or leave both out")
    else:
        yield Finding("signing", "ok", f"images are signed with {settings.c2pa_cert}")


def _tracing(environ: Mapping[str, str]) -> Iterator[Finding]:
    from sana_service.settings import SettingsError
    from sana_service.startup import check_tracing

    try:
        check_tracing(environ)
    except SettingsError as error:
        yield Finding("tracing", "problem", str(error), "correct the variable, or unset it for no traces")


def _port(host: str, port: int) -> Iterator[Finding]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            advice = "end what listens there, or choose another with --port"
            yield Finding("port", "problem", f"{host}:{port} cannot be listened on: {reason}", advice)
        else:
            yield Finding("port", "ok", f"{host}:{port} is free")


def _handles() -> Iterator[Finding]:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _LOW_HANDLES:
        advice = f"`ulimit -n {_LOW_HANDLES}` or more: each connection takes one"
        yield Finding("file handles", "warning", f"at most {soft}", advice)
    else:
        yield Finding("file handles", "ok", f"at most {'any number' if soft == resource.RLIM_INFINITY else soft}")


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.0f} MB"
