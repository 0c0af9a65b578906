"""Checkpoints on disk to modules on a device, with what base and sprint share held once.

Tokenizer and text encoder are always base's: the checkpoints are trained with the same ones, and
sprint's copies are not even read. The VAE is shared where class, configuration and every weight
agree, which is found out from the files, before a second one is loaded. Importing this module costs
little; torch, diffusers and transformers are imported when something is loaded.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from sana_service.environment import keep_quiet
from sana_service.models.checkpoint import Checkpoint, ModelLoadError, Models
from sana_service.models.layout import Component, Layout, read_layout

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from sana_service.models.checkpoint import AutoencoderDC, Tokenizer
    from sana_service.models.names import ModelName

__all__ = ["Kind", "ModelLoadError", "Models", "load_models", "resolve_devices", "resolve_kind"]

Kind = Literal["hub", "bundled", "random"]

_LOG = logging.getLogger("sana.models")


def resolve_devices(names: Sequence[str]) -> list[str]:
    """The devices of a list, or those that "auto" stands for: all CUDA devices, or the CPU where there is none.

    Raises:
        ModelLoadError: a CUDA device is named that this machine does not have.
    """
    import torch

    count = torch.cuda.device_count()
    if list(names) == ["auto"]:
        return [f"cuda:{i}" for i in range(count)] or ["cpu"]
    for name in names:
        if name.startswith("cuda") and (torch.device(name).index or 0) >= count:
            raise ModelLoadError(f"SANA_DEVICES: this machine has {count} CUDA devices that torch can use, no {name}")
    return list(names)


def resolve_kind(kind: Literal["auto"] | Kind, device: str) -> Kind:
    """Where "auto" takes the models from: the hub for a CUDA device, the package for a CPU."""
    if kind != "auto":
        return kind
    return "hub" if device.startswith("cuda") else "bundled"


def load_models(
    kind: Kind,
    base: str,
    sprint: str,
    base_revision: str | None,
    sprint_revision: str | None,
    device: str,
    progress: bool = True,
) -> Models:
    """Load both checkpoints onto a device, in bfloat16 on CUDA and float32 on a CPU.

    Args:
        kind: hub (ids or folders in `base` and `sprint`), bundled, or random weights for timing.
        base, sprint: repository ids or folders; read with `hub` only.
        base_revision, sprint_revision: of repositories; None is the main branch.
        device: "cpu" or "cuda:0".
        progress: show bars for download and load where a terminal can see them.

    Raises:
        ModelLoadError: a checkpoint cannot be used.
    """
    # Read when diffusers is first imported: no code from a repository, whoever may ask for it.
    keep_quiet(os.environ)
    import torch

    target = torch.device(device)
    dtype = torch.bfloat16 if target.type == "cuda" else torch.float32
    started = time.monotonic()
    if kind == "random":
        from sana_service.models.random import random_models

        return random_models(target, dtype)
    with _library_bars(progress):
        if kind == "bundled":
            layouts = _bundled()
        else:
            from sana_service.models.hub import locate

            prefer_bf16 = dtype == torch.bfloat16
            layouts = (
                locate("base", base, base_revision, prefer_bf16=prefer_bf16),
                locate("sprint", sprint, sprint_revision, prefer_bf16=prefer_bf16),
            )
        models = _Loader(target, dtype, progress).load(*layouts)
    _LOG.info("models loaded on %s in %.1f s", target, time.monotonic() - started)
    return models


def _bundled() -> tuple[Layout, Layout]:
    from sana_service.models import bundled

    try:
        bundled.verify()
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"SANA_MODELS=bundled: {error}; install the package again") from error
    base, sprint = bundled.base_folder(), bundled.sprint_folder()
    return read_layout("base", "bundled", base, None), read_layout("sprint", "bundled", sprint, None)


class _Loader:
    """Loads components one after another, each straight onto the device."""

    def __init__(self, device: torch.device, dtype: torch.dtype, progress: bool) -> None:
        self._device = device
        self._dtype = dtype
        self._progress = progress

    def load(self, base: Layout, sprint: Layout) -> Models:
        import torch
        from tqdm.auto import tqdm  # type: ignore[import-untyped]

        from sana_service.models.compare import same_weights

        shared_vae = not sprint.has("vae") or same_weights(base, sprint, "vae", self._dtype)
        with tqdm(total=5 if shared_vae else 6, desc="loading", disable=None if self._progress else True) as bar:

            def done(component: Any) -> Any:
                bar.update()
                return component

            tokenizer = done(load_tokenizer(base))
            text_encoder = done(self._module(base, "text_encoder"))
            vae = done(self._vae(base))
            checkpoints: dict[ModelName, Checkpoint] = {
                "base": self._checkpoint(base, done(self._module(base, "transformer")), vae),
                "sprint": self._checkpoint(
                    sprint,
                    done(self._module(sprint, "transformer")),
                    vae if shared_vae else done(self._vae(sprint)),
                ),
            }
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return Models(tokenizer, text_encoder, checkpoints, self._device, self._dtype)

    def _checkpoint(self, layout: Layout, transformer: Any, vae: AutoencoderDC) -> Checkpoint:
        import diffusers

        scheduler = getattr(diffusers, layout.class_name("scheduler"))
        with layout.reading("scheduler"):
            template = scheduler.from_pretrained(layout.folder, subfolder="scheduler")
        return Checkpoint(layout.name, layout.commit, transformer, vae, template)

    def _vae(self, layout: Layout) -> AutoencoderDC:
        vae = self._module(layout, "vae")
        # Half of its weights; only pictures that come in would need it.
        del vae.encoder
        return vae

    def _module(self, layout: Layout, component: Component) -> Any:
        """A component with its weights on the device, for inference."""
        import diffusers
        import transformers

        library: Any = transformers if component == "text_encoder" else diffusers
        weights = layout.weights(component, self._prefers_bf16)
        with layout.reading(component):
            try:
                module, report = getattr(library, layout.class_name(component)).from_pretrained(
                    layout.folder,
                    subfolder=component,
                    variant=weights.variant,
                    use_safetensors=True,
                    dtype=self._dtype,
                    # accelerate reads each tensor to its place: no second copy on the host.
                    device_map={"": self._device},
                    output_loading_info=True,
                )
            except NotImplementedError as error:
                # diffusers leaves a weight that no file has without data, and then tries to move it.
                raise layout.error(f"its {component} lacks weights that its configuration asks for") from error
        # transformers fills such gaps with random numbers and a warning.
        gaps = [*report["missing_keys"], *report["mismatched_keys"]]
        if gaps:
            raise layout.error(f"its {component} lacks {len(gaps)} weights, {gaps[0]} the first")
        return module.eval().requires_grad_(False)

    @property
    def _prefers_bf16(self) -> bool:
        return self._device.type == "cuda"


def load_tokenizer(layout: Layout) -> Tokenizer:
    """The tokenizer, padding on the right as the pipelines do; a folder with only tokenizer.model will do.

    Raises:
        ModelLoadError: it cannot be read.
    """
    import transformers

    folder = layout.folder / "tokenizer"
    options: dict[str, Any] = {}
    with layout.reading("tokenizer"):
        if not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer_config.json").is_file():
            # Gemma expects <bos>; transformers 5 leaves it out where no file says so.
            options["add_bos_token"] = True
        tokenizer = getattr(transformers, layout.class_name("tokenizer")).from_pretrained(folder, **options)
    tokenizer.padding_side = "right"
    return tokenizer


@contextmanager
def _library_bars(progress: bool) -> Iterator[None]:
    """Silence the libraries' own bars; the hub's stay where a terminal can see them."""
    import diffusers.utils.logging
    import huggingface_hub.utils
    import transformers.utils.logging

    hub: Any = huggingface_hub.utils
    libraries: tuple[Any, ...] = (diffusers.utils.logging, transformers.utils.logging)
    hub_bars = not hub.are_progress_bars_disabled()
    silent = hub_bars and not (progress and sys.stderr.isatty())
    for library in libraries:
        library.disable_progress_bar()
    if silent:
        hub.disable_progress_bars()
    try:
        yield
    finally:
        if silent:
            hub.enable_progress_bars()
