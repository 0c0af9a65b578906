"""The baselines answer by the contract, and draw what the stock pipelines draw."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from loadtests.contract import Expected, answer_faults

# BentoML's own imports warn.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

BODY: dict[str, Any] = {"prompt": "a red circle on a blue background", "image_size": "square", "seed": 7}
EXPECTED = Expected(BODY["prompt"], 512, 512, 1, "jpeg", 7)


@pytest.fixture(scope="module", autouse=True)
def _environment(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BASELINE_DEVICE", "cpu")
        patch.setenv("BENTOML_HOME", str(tmp_path_factory.mktemp("bentoml")))
        yield


def file_of(answer: dict[str, Any], folder: Path) -> np.ndarray:
    return np.asarray(Image.open(folder / answer["images"][0]["file_name"]))


def test_the_references_way_and_the_plain_way_draw_the_same_picture():
    from starlette.testclient import TestClient

    from loadtests.baselines import plain, reference

    steps = {"generate": 1, "sprint": 2}
    with TestClient(reference.app) as http:
        answers = {name: http.post(f"/{name}", json=BODY | {"num_inference_steps": steps[name]}) for name in steps}
    plain_service: Any = plain.Plain
    service = plain_service.inner()
    for name, answer in answers.items():
        assert list(answer_faults(answer.status_code, answer.headers, answer.json(), EXPECTED)) == []
        url = SimpleNamespace(scheme="http", netloc="localhost")
        context = SimpleNamespace(response=SimpleNamespace(headers={}), request=SimpleNamespace(url=url))
        told = getattr(service, name)(context, **BODY, num_inference_steps=steps[name])
        assert list(answer_faults(200, context.response.headers, told, EXPECTED)) == []
        np.testing.assert_array_equal(file_of(told, plain._FOLDER), file_of(answer.json(), reference._FOLDER))


def test_random_weights_give_pipelines_that_draw(monkeypatch):
    """With the bundled architecture in place of the full one, which no test has the memory for."""
    import torch

    from loadtests.baselines import pipelines
    from sana_service.models import architecture
    from sana_service.models.bundled import base_folder, sprint_folder

    def configuration(path: Path) -> dict[str, Any]:
        values = json.loads(path.read_text())
        return {name: value for name, value in values.items() if not name.startswith("_")}

    base, sprint = base_folder(), sprint_folder()
    small = SimpleNamespace(
        text_encoder=configuration(base / "text_encoder" / "config.json"),
        vae=configuration(base / "vae" / "config.json"),
        base=configuration(base / "transformer" / "config.json"),
        sprint=configuration(sprint / "transformer" / "config.json"),
        base_scheduler=configuration(base / "scheduler" / "scheduler_config.json"),
        sprint_scheduler=configuration(sprint / "scheduler" / "scheduler_config.json"),
    )
    monkeypatch.setattr(architecture, "FULL_SIZE", small)
    monkeypatch.setenv("BASELINE_MODELS", "random")
    pipes, device = pipelines.load()
    assert device == "cpu"
    for pipe in pipes.values():
        steps = {"num_inference_steps": 2, "width": 512, "height": 512}
        picture = pipe(prompt="a", generator=torch.Generator().manual_seed(0), **steps).images[0]
        assert picture.size == (512, 512)
