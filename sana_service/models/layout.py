"""A checkpoint in the hub's (diffusers') layout: what must be there, and which files of it count.

Pure Python, file names and small JSON only. Weights come from safetensors or not at all: pickles run
code when read, and so does a repository's own Python, which no path here ever asks for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from sana_service.models.checkpoint import ModelLoadError

if TYPE_CHECKING:
    from sana_service.models.names import ModelName

Component = Literal["tokenizer", "text_encoder", "transformer", "vae", "scheduler"]
COMPONENTS: tuple[Component, ...] = get_args(Component)
WEIGHTS: tuple[Component, ...] = ("text_encoder", "transformer", "vae")
OWN: tuple[Component, ...] = ("transformer", "scheduler")
"""What each checkpoint must bring itself; the rest may come from the other one."""

MODEL_INDEX = "model_index.json"

PIPELINES: Mapping[ModelName, tuple[str, ...]] = {
    "base": ("SanaPipeline", "SanaPAGPipeline"),
    "sprint": ("SanaSprintPipeline", "SanaSprintImg2ImgPipeline"),
}
_CLASSES: Mapping[Component, tuple[str, ...]] = {
    "tokenizer": ("GemmaTokenizer", "GemmaTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"),
    "text_encoder": ("Gemma2Model",),
    "transformer": ("SanaTransformer2DModel",),
    "vae": ("AutoencoderDC",),
}
_SCHEDULERS: Mapping[ModelName, tuple[str, ...]] = {
    "base": ("DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"),
    "sprint": ("SCMScheduler",),
}

SAMPLE_SIZES = (16, 32, 64, 128)
"""Sides of the latents of a square picture for which sizes to draw at are known: 512 to 4096 pixels."""

_SHARD = r"-\d{5}-of-\d{5}"
_PLAIN = re.compile(rf"(model|diffusion_pytorch_model)({_SHARD})?\.safetensors(\.index\.json)?")
_BF16 = re.compile(
    rf"(model|diffusion_pytorch_model)(\.bf16({_SHARD})?|{_SHARD}\.bf16)?\.safetensors(\.index\.bf16\.json)?"
)


@dataclass(frozen=True)
class Weights:
    """A component's weight files.

    Args:
        files: safetensors, with their index where they are sharded.
        variant: "bf16", or None for the files without a variant in their names.
    """

    files: tuple[str, ...]
    variant: str | None

    @property
    def tensors(self) -> tuple[str, ...]:
        """The files that hold tensors."""
        return tuple(name for name in self.files if name.endswith(".safetensors"))


def pick_weights(names: Iterable[str], prefer_bf16: bool) -> Weights | None:
    """Which of a component folder's files to read; None where it has no safetensors.

    Args:
        names: file names in the folder.
        prefer_bf16: where a bf16 variant stands beside the plain files, take it.
    """
    names = sorted(names)
    plain = tuple(name for name in names if _PLAIN.fullmatch(name))
    bf16 = tuple(name for name in names if _BF16.fullmatch(name) and ".bf16" in name)
    for files, variant in ((bf16, "bf16"), (plain, None)) if prefer_bf16 else ((plain, None), (bf16, "bf16")):
        weights = Weights(files, variant)
        if weights.tensors:
            return weights
    return None


@dataclass(frozen=True)
class Layout:
    """A checkpoint's folder, its index read and checked.

    Args:
        model: base or sprint.
        name: repository id or folder, as configured.
        folder: where the files are.
        commit: of the repository; None for a folder of the operator's.
        index: model_index.json.
    """

    model: ModelName
    name: str
    folder: Path
    commit: str | None
    index: Mapping[str, Any]

    def has(self, component: Component) -> bool:
        return component in self.index and (self.folder / component).is_dir()

    def class_name(self, component: Component) -> str:
        """The component's class, one of those that this service knows.

        Raises:
            ModelLoadError: the index names another.
        """
        entry = self.index.get(component)
        name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        known = _SCHEDULERS[self.model] if component == "scheduler" else _CLASSES[component]
        if name not in known:
            raise self.error(f"its {component} is of class {name}, not {' or '.join(known)}")
        return str(name)

    def weights(self, component: Component, prefer_bf16: bool) -> Weights:
        """The component's safetensors.

        Raises:
            ModelLoadError: it has none.
        """
        names = [path.name for path in (self.folder / component).iterdir()]
        weights = pick_weights(names, prefer_bf16)
        if weights is None:
            raise self.error(no_safetensors(component, names))
        return weights

    def config(self, component: Component) -> dict[str, Any]:
        """config.json without the notes that saving leaves in it."""
        path = self.folder / component / "config.json"
        config = read_json(path, self.error)
        return {key: value for key, value in config.items() if not key.startswith("_") or key == "_class_name"}

    def error(self, what: str) -> ModelLoadError:
        return load_error(self.model, self.name, what)

    @contextmanager
    def reading(self, component: Component) -> Iterator[None]:
        """Turn whatever a library says about broken files into one line that names the checkpoint."""
        try:
            yield
        except ModelLoadError:
            raise
        except Exception as error:
            raise self.error(f"its {component} cannot be loaded: {type(error).__name__}: {error}") from error


def read_layout(model: ModelName, name: str, folder: Path, commit: str | None) -> Layout:
    """Read and check a checkpoint's index and folders.

    Raises:
        ModelLoadError: the folder is no Sana checkpoint, or lacks a part that it must have.
    """
    if not folder.is_dir():
        raise load_error(model, name, "there is no such folder")
    if not (folder / MODEL_INDEX).is_file():
        raise load_error(model, name, f"the folder has no {MODEL_INDEX}, so it is no diffusers checkpoint")
    index = read_json(folder / MODEL_INDEX, lambda what: load_error(model, name, what))
    layout = Layout(model, name, folder, commit, index)
    if index.get("_class_name") not in PIPELINES[model]:
        expected = " or ".join(PIPELINES[model])
        raise layout.error(f"it is a {index.get('_class_name')}, not a {expected}")
    for component in OWN if model == "sprint" else COMPONENTS:
        if not layout.has(component):
            raise layout.error(f"it has no {component}")
    for component in COMPONENTS:
        if layout.has(component):
            layout.class_name(component)
    _check_transformer(layout)
    return layout


def _check_transformer(layout: Layout) -> None:
    config = layout.config("transformer")
    if config.get("sample_size") not in SAMPLE_SIZES:
        raise layout.error(f"its transformer has sample_size {config.get('sample_size')}, not one of {SAMPLE_SIZES}")
    if bool(config.get("guidance_embeds")) != (layout.model == "sprint"):
        expected = "with" if layout.model == "sprint" else "without"
        raise layout.error(f"its transformer is not one {expected} guidance_embeds")


def no_safetensors(component: str, names: Iterable[str]) -> str:
    pickles = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
    if pickles:
        return f"its {component} has weights as {pickles[0]} only; pickles are not read, convert them to safetensors"
    return f"its {component} has no safetensors weights"


def load_error(model: ModelName, name: str, what: str) -> ModelLoadError:
    """One line that names the variable, the checkpoint and the fault."""
    return ModelLoadError(f"SANA_{model.upper()}_MODEL={name}: {' '.join(what.split())}")


def read_json(path: Path, error: Any) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise error(f"{path.name} of {path.parent.name} cannot be read: {fault}") from fault
    if not isinstance(value, dict):
        raise error(f"{path.name} of {path.parent.name} holds no object")
    return value
