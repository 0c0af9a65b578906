"""From a repository id or a folder to a checkpoint's files on this machine.

Only the files that loading reads are downloaded: of each component the safetensors of one precision,
and of sprint neither tokenizer nor text encoder, which are base's.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sana_service.models.checkpoint import ModelLoadError
from sana_service.models.layout import (
    COMPONENTS,
    MODEL_INDEX,
    WEIGHTS,
    Component,
    Layout,
    load_error,
    no_safetensors,
    pick_weights,
    read_layout,
)

if TYPE_CHECKING:
    from sana_service.models.names import ModelName

_LOG = logging.getLogger("sana.models")

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_SMALL_FILES = (".json", ".model", ".txt")

SHARED: tuple[Component, ...] = ("tokenizer", "text_encoder")
"""Always base's, so never fetched for sprint."""


def locate(model: ModelName, name: str, revision: str | None, *, prefer_bf16: bool) -> Layout:
    """Find a checkpoint, downloading what is missing.

    Args:
        model: base or sprint.
        name: repository id, or a folder in the hub's layout.
        revision: branch, tag or commit of a repository; None is its main branch.
        prefer_bf16: take bf16 variants where there are any.

    Raises:
        ModelLoadError: not found, not reachable, or no usable checkpoint.
    """
    folder = Path(name).expanduser()
    if folder.is_dir() or not is_repository(name):
        return read_layout(model, name, folder, None)
    folder, commit = _download(model, name, revision, prefer_bf16)
    layout = read_layout(model, name, folder, commit)
    if commit != revision:
        _LOG.info(
            "%s is %s at commit %s; pin it with SANA_%s_REVISION=%s",
            model,
            name,
            commit,
            model.upper(),
            commit,
        )
    return layout


def is_repository(name: str) -> bool:
    """Whether a name has the form of a repository id."""
    return _REPOSITORY.fullmatch(name) is not None


def _download(model: ModelName, name: str, revision: str | None, prefer_bf16: bool) -> tuple[Path, str]:
    """The snapshot's folder, which is named after the commit that the revision resolved to."""
    import huggingface_hub
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info = huggingface_hub.HfApi().model_info(name, revision=revision)
        files = wanted_files(model, name, [sibling.rfilename for sibling in info.siblings or []], prefer_bf16)
        # By the revision's name, so that the cache knows it when the hub does not answer.
        folder = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=files))
    except ModelLoadError:
        raise
    except GatedRepoError as error:
        raise load_error(model, name, "access to it must be granted on the hub, then set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        what = "there is neither a folder nor a repository of this name (a private one needs HF_TOKEN)"
        raise load_error(model, name, what) from error
    except RevisionNotFoundError as error:
        raise load_error(model, name, f"it has no revision {revision}, see SANA_{model.upper()}_REVISION") from error
    except Exception as error:
        # Whatever the client library raises for a network that is down; it changes with its version.
        return _cached(model, name, revision, error)
    return folder, folder.name


def _cached(model: ModelName, name: str, revision: str | None, error: Exception) -> tuple[Path, str]:
    """What an earlier start downloaded, for when the hub does not answer."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(huggingface_hub.snapshot_download(name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        what = (
            f"the hub does not answer ({type(error).__name__}: {error}) and no earlier download is here; "
            "check the network or name a local folder"
        )
        raise load_error(model, name, what) from error
    _LOG.warning("the hub does not answer, %s is used as downloaded earlier (%s)", name, folder.name)
    return folder, folder.name


def wanted_files(model: ModelName, name: str, files: Iterable[str], prefer_bf16: bool) -> list[str]:
    """The repository's files that loading will read."""
    files = list(files)
    wanted = [MODEL_INDEX]
    for component in COMPONENTS:
        if model == "sprint" and component in SHARED:
            continue
        prefix = f"{component}/"
        own = [file.removeprefix(prefix) for file in files if file.startswith(prefix)]
        own = [file for file in own if "/" not in file]
        if component in WEIGHTS and own:
            weights = pick_weights(own, prefer_bf16)
            if weights is None:
                raise load_error(model, name, no_safetensors(component, own))
            wanted += [prefix + file for file in weights.files]
        wanted += [prefix + file for file in own if file.endswith(_SMALL_FILES) and ".index." not in file]
    return wanted
