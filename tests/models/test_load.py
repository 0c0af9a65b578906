"""Loading from folders in the hub's layout: what is shared, what is refused, and with which words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sana_service.models.bundled import base_folder, sprint_folder
from sana_service.models.checkpoint import ModelLoadError, Models
from sana_service.models.load import load_models, resolve_devices, resolve_kind
from tests.pairs import Pair, Stock, write_pair

DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def pair(written: Pair, tmp_path: Path) -> Pair:
    """A copy that a test may spoil."""
    return Pair(shutil.copytree(written.base, tmp_path / "base"), shutil.copytree(written.sprint, tmp_path / "sprint"))


def rewrite(file: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def shares_vae(models: Models) -> bool:
    return models.checkpoints["base"].vae is models.checkpoints["sprint"].vae


def test_weights_are_the_files_and_stocks_in_float32_on_the_cpu(written):
    models, stock = written.load(), Stock(written)
    assert models.device == torch.device("cpu")
    assert models.dtype == torch.float32
    base, sprint = models.checkpoints["base"], models.checkpoints["sprint"]
    for ours, theirs in [
        (models.text_encoder, stock.base.text_encoder),
        (base.transformer, stock.base.transformer),
        (base.vae.decoder, stock.base.vae.decoder),
        (sprint.transformer, stock.sprint.transformer),
        (sprint.vae.decoder, stock.sprint.vae.decoder),
    ]:
        expected = theirs.state_dict()
        assert ours.state_dict().keys() == expected.keys()
        for name, tensor in ours.state_dict().items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, expected[name]), name
        assert not ours.training
        assert not any(parameter.requires_grad for parameter in ours.parameters())
    assert base.scheduler.config == stock.base.scheduler.config
    assert sprint.scheduler.config == stock.sprint.scheduler.config
    assert (base.name, base.commit) == (str(written.base), None)
    assert models.tokenizer.padding_side == "right"


def test_no_hooks_stay_on_the_modules(written):
    """Those of accelerate, which places weights: in the forward path they would cost time in each call."""
    models = written.load()
    for module in (models.text_encoder, models.checkpoints["base"].transformer):
        assert not any(hasattr(part, "_hf_hook") for part in module.modules())


def test_equal_vaes_are_one_object_without_its_encoder(written):
    models = written.load()
    assert shares_vae(models)
    assert not hasattr(models.checkpoints["base"].vae, "encoder")


def test_unequal_vaes_are_both_kept(tmp_path):
    pair = write_pair(tmp_path, shared_vae=False)
    models, stock = pair.load(), Stock(pair)
    assert not shares_vae(models)
    base, sprint = models.checkpoints["base"], models.checkpoints["sprint"]
    for checkpoint, pipeline in ((base, stock.base), (sprint, stock.sprint)):
        ours = checkpoint.vae.decoder.state_dict()
        for key, tensor in pipeline.vae.decoder.state_dict().items():
            assert torch.equal(ours[key], tensor)


def test_one_differing_weight_is_enough_to_keep_both_vaes(pair):
    def change(tensors):
        next(iter(tensors.values())).view(-1)[0] += 1
        return tensors

    rewrite(pair.sprint / "vae" / DIFFUSERS_WEIGHTS, change)
    assert not shares_vae(pair.load())


def test_a_differing_configuration_keeps_both_vaes(pair):
    edit(pair.sprint / "vae" / "config.json", scaling_factor=0.5)
    assert not shares_vae(pair.load())


def test_the_same_weights_saved_otherwise_are_one_vae(pair):
    """In float32 instead of bfloat16, by another version of diffusers: other bytes, equal tensors."""
    file = pair.sprint / "vae" / DIFFUSERS_WEIGHTS
    before = file.read_bytes()
    rewrite(file, lambda tensors: {name: tensor.float() for name, tensor in tensors.items()})
    edit(pair.sprint / "vae" / "config.json", _diffusers_version="0.33.0", _name_or_path="elsewhere")
    assert file.read_bytes() != before
    assert shares_vae(pair.load())


def test_sprints_tokenizer_and_text_encoder_are_not_even_read(pair):
    for name in ("tokenizer", "text_encoder"):
        for file in (pair.sprint / name).iterdir():
            file.write_bytes(b"broken")
    models = pair.load()
    assert models.text_encoder is not None


def test_what_sprint_lacks_is_bases(pair):
    """The layout of the bundled pair."""
    for name in ("tokenizer", "text_encoder", "vae"):
        shutil.rmtree(pair.sprint / name)
    assert shares_vae(pair.load())


def test_the_bundled_pair_loads():
    models = load_models("bundled", "unused", "unused", None, None, "cpu")
    assert shares_vae(models)
    base, sprint = models.checkpoints["base"], models.checkpoints["sprint"]
    for checkpoint, folder in ((base, base_folder()), (sprint, sprint_folder())):
        file = load_file(folder / "transformer" / DIFFUSERS_WEIGHTS)
        ours = checkpoint.transformer.state_dict()
        assert all(torch.equal(ours[key], tensor.float()) for key, tensor in file.items())


def test_plain_files_win_on_a_cpu_and_a_bf16_variant_alone_will_do(pair):
    folder = pair.base / "transformer"
    variant = folder / "diffusion_pytorch_model.bf16.safetensors"
    tensors = load_file(folder / DIFFUSERS_WEIGHTS)
    save_file({name: tensor * 2 for name, tensor in tensors.items()}, variant, metadata={"format": "pt"})
    name = "proj_out.weight"

    def weight() -> torch.Tensor:
        loaded: torch.Tensor = pair.load().checkpoints["base"].transformer.state_dict()[name]
        return loaded

    assert torch.equal(weight(), tensors[name].float())
    (folder / DIFFUSERS_WEIGHTS).unlink()
    assert torch.equal(weight(), tensors[name].float() * 2)


def test_sharded_weights_load(pair):
    from diffusers import SanaTransformer2DModel

    folder = pair.base / "transformer"
    module: Any = SanaTransformer2DModel.from_pretrained(folder)
    (folder / DIFFUSERS_WEIGHTS).unlink()
    module.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*-of-*.safetensors"))) > 1
    ours = pair.load().checkpoints["base"].transformer.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in module.state_dict().items())


def spoil_nothing_there(pair: Pair) -> None:
    shutil.rmtree(pair.base)


def spoil_index(pair: Pair) -> None:
    (pair.base / "model_index.json").unlink()


def spoil_json(pair: Pair) -> None:
    (pair.base / "model_index.json").write_text("{")


def spoil_pickle(pair: Pair) -> None:
    folder = pair.base / "transformer"
    torch.save(load_file(folder / DIFFUSERS_WEIGHTS), folder / "diffusion_pytorch_model.bin")
    (folder / DIFFUSERS_WEIGHTS).unlink()


def spoil_weights(pair: Pair) -> None:
    (pair.base / "vae" / DIFFUSERS_WEIGHTS).unlink()


def spoil_bytes(pair: Pair) -> None:
    file = pair.base / "transformer" / DIFFUSERS_WEIGHTS
    file.write_bytes(file.read_bytes()[:1000])


def spoil_tensor(pair: Pair) -> None:
    def drop(tensors):
        del tensors["proj_out.weight"]
        return tensors

    rewrite(pair.base / "transformer" / DIFFUSERS_WEIGHTS, drop)


def spoil_text(pair: Pair) -> None:
    def drop(tensors):
        del tensors["norm.weight"]
        return tensors

    rewrite(pair.base / "text_encoder" / "model.safetensors", drop)


def spoil_shape(pair: Pair) -> None:
    edit(pair.base / "transformer" / "config.json", caption_channels=48)


def spoil_class(pair: Pair) -> None:
    edit(pair.base / "model_index.json", transformer=["diffusers", "PixArtTransformer2DModel"])


def spoil_custom_class(pair: Pair) -> None:
    edit(pair.base / "model_index.json", transformer=["my_code", "MyTransformer"])


def spoil_size(pair: Pair) -> None:
    edit(pair.base / "transformer" / "config.json", sample_size=33)


def spoil_guidance(pair: Pair) -> None:
    edit(pair.sprint / "transformer" / "config.json", guidance_embeds=False)


def spoil_scheduler(pair: Pair) -> None:
    edit(pair.sprint / "model_index.json", scheduler=["diffusers", "DPMSolverMultistepScheduler"])


def spoil_swap(pair: Pair) -> None:
    shutil.rmtree(pair.sprint)
    shutil.copytree(pair.base, pair.sprint)


def spoil_component(pair: Pair) -> None:
    shutil.rmtree(pair.base / "text_encoder")


def spoil_tokenizer(pair: Pair) -> None:
    (pair.base / "tokenizer" / "tokenizer.json").write_text("[]")


@pytest.mark.parametrize(
    ("spoil", "which", "words"),
    [
        (spoil_nothing_there, "BASE", "there is no such folder"),
        (spoil_index, "BASE", "no model_index.json"),
        (spoil_json, "BASE", "model_index.json of base cannot be read"),
        (spoil_pickle, "BASE", "transformer has weights as diffusion_pytorch_model.bin only; pickles are not"),
        (spoil_weights, "BASE", "vae has no safetensors weights"),
        (spoil_bytes, "BASE", "transformer cannot be loaded"),
        (spoil_tensor, "BASE", "transformer lacks weights that its configuration asks for"),
        (spoil_text, "BASE", "text_encoder lacks 1 weights, norm.weight the first"),
        (spoil_shape, "BASE", "transformer cannot be loaded"),
        (spoil_class, "BASE", "transformer is of class PixArtTransformer2DModel, not SanaTransformer2DModel"),
        (spoil_custom_class, "BASE", "transformer is of class MyTransformer, not"),
        (spoil_size, "BASE", "transformer has sample_size 33, not one of (16, 32, 64, 128)"),
        (spoil_guidance, "SPRINT", "transformer is not one with guidance_embeds"),
        (spoil_scheduler, "SPRINT", "scheduler is of class DPMSolverMultistepScheduler, not SCMScheduler"),
        (spoil_swap, "SPRINT", "it is a SanaPipeline, not a SanaSprintPipeline"),
        (spoil_component, "BASE", "it has no text_encoder"),
        (spoil_tokenizer, "BASE", "tokenizer cannot be loaded"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line_that_names_it(spoil, which, words, pair):
    spoil(pair)
    with pytest.raises(ModelLoadError) as told:
        pair.load()
    message = str(told.value)
    folder = pair.base if which == "BASE" else pair.sprint
    assert message.startswith(f"SANA_{which}_MODEL={folder}: ")
    assert words in message
    assert "\n" not in message
    assert len(message) < 600


def test_code_in_a_repository_is_never_run(pair):
    marker = pair.base / "ran"
    for name in ("transformer/transformer.py", "tokenizer/tokenization.py", "pipeline.py"):
        (pair.base / name).write_text(f"open({str(marker)!r}, 'w')\nclass Custom: pass\n")
    edit(pair.base / "transformer" / "config.json", auto_map={"AutoModel": "transformer.Custom"})
    edit(pair.base / "tokenizer" / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization.Custom", None]})
    pair.load()
    assert not marker.exists()


def test_the_bundled_pairs_manifest_is_checked(monkeypatch):
    def fail() -> None:
        raise ValueError("bundled model: base/model_index.json is missing")

    monkeypatch.setattr("sana_service.models.bundled.verify", fail)
    with pytest.raises(ModelLoadError, match=r"SANA_MODELS=bundled: .*model_index.json is missing; install"):
        load_models("bundled", "", "", None, None, "cpu")


@pytest.mark.parametrize(
    ("kind", "device", "expected"),
    [
        ("auto", "cuda:0", "hub"),
        ("auto", "cpu", "bundled"),
        ("hub", "cpu", "hub"),
        ("random", "cuda:1", "random"),
    ],
)
def test_auto_means_the_hub_on_cuda_and_the_package_on_a_cpu(kind, device, expected):
    assert resolve_kind(kind, device) == expected


def test_devices_are_resolved_against_what_the_machine_has(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert resolve_devices(("auto",)) == ["cuda:0", "cuda:1"]
    assert resolve_devices(("cpu",)) == ["cpu"]
    assert resolve_devices(("cuda:1", "cuda:0")) == ["cuda:1", "cuda:0"]
    with pytest.raises(ModelLoadError, match=r"SANA_DEVICES: this machine has 2 CUDA devices .* no cuda:2"):
        resolve_devices(("cuda:0", "cuda:2"))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert resolve_devices(("auto",)) == ["cpu"]
