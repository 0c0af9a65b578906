"""What loading yields: the modules on one device, shared where they agree.

No torch at run time here, so that the engine's data forms can be read without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import torch

    from sana_service.models.names import ModelName

# diffusers' and transformers' classes have no types that a checker could follow.
SanaTransformer2DModel: TypeAlias = Any
AutoencoderDC: TypeAlias = Any
Scheduler: TypeAlias = Any
Gemma2Model: TypeAlias = Any
Tokenizer: TypeAlias = Any


class ModelLoadError(Exception):
    """A checkpoint cannot be used; the message is one line that says which, why and what to do."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """One of the two models that draw.

    Args:
        name: repository id or folder, as configured.
        commit: what the revision resolved to; None for folders and random weights.
        transformer: on the device, in the models' dtype.
        vae: DC-AE without its encoder; one object for both checkpoints where they agree.
        scheduler: the configuration to copy from; its state is never touched.
    """

    name: str
    commit: str | None
    transformer: SanaTransformer2DModel
    vae: AutoencoderDC
    scheduler: Scheduler


@dataclass(frozen=True, eq=False)
class Models:
    """Everything one device loop needs.

    Args:
        tokenizer: Gemma's, padding on the right.
        text_encoder: Gemma 2 decoder without its head, shared by both checkpoints.
        checkpoints: by the name that jobs use.
        device: where the weights live.
        dtype: of the weights; bfloat16 on CUDA, float32 on a CPU.
    """

    tokenizer: Tokenizer
    text_encoder: Gemma2Model
    checkpoints: Mapping[ModelName, Checkpoint]
    device: torch.device
    dtype: torch.dtype
