"""What `/metrics` says: names, labels, help, and figures that add up."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sana_service import metrics
from sana_service.contract.schemas import ImageFile, SanaSprintOutput, SprintInput
from sana_service.images import Encoder

TABLE = Path(__file__).parents[1] / "docs" / "metrics.md"


def value(name: str, **labels: str) -> float:
    found = metrics.REGISTRY.get_sample_value(name, labels)
    assert found is not None, (name, labels)
    return found


class Idle:
    """An engine with something to tell."""

    queued, running, devices, devices_lost = 3, 2, 4, 1
    queued_work, oldest_queued_seconds = 56.7, 1.25

    def predicted_wait(self, model: str) -> float:
        return {"base": 7.5, "sprint": 0.5}[model]

    def memory_bytes(self) -> dict[str, dict[str, int]]:
        return {"cuda:0": {"allocated": 1, "reserved": 2, "peak": 3}}

    def shortages(self) -> dict[str, int]:
        return {"text": 0, "decode": 5}


@pytest.fixture
def exposition():
    """All that `/metrics` has of ours, as Prometheus parses it."""
    live = metrics.LiveState(lambda: True, Idle, Encoder(workers=1), 64, 1250.0)  # type: ignore[arg-type]
    metrics.REGISTRY.register(live)
    yield lambda: {family.name: family for family in text_string_to_metric_families(metrics.render(""))}
    metrics.REGISTRY.unregister(live)


def test_every_label_combination_is_there_from_the_start(exposition):
    families = exposition()
    requests = {(s.labels["model"], s.labels["outcome"]) for s in families["sana_requests"].samples}
    assert requests == {(model, outcome) for model in metrics.MODELS for outcome in metrics.OUTCOMES}
    stages = {s.labels["stage"] for s in families["sana_stage_seconds"].samples}
    assert stages == set(metrics.STAGES)


def test_names_have_the_prefix_base_units_and_help(exposition):
    for name, family in exposition().items():
        assert name.startswith("sana_")
        assert len(family.documentation) > 10, name
        assert not name.endswith(("_ms", "_millis", "_mb", "_percent")), name


def test_the_live_figures_are_the_engines(exposition):
    families = exposition()
    expected = {
        "sana_ready": 1, "sana_queue_jobs": 3, "sana_queue_capacity_jobs": 64, "sana_running_jobs": 2,
        "sana_devices": 4, "sana_devices_lost": 1, "sana_encoder_waiting_images": 0,
        "sana_device_memory_peak_bytes": 3, "sana_queue_work_megapixel_steps": 56.7,
        "sana_queue_capacity_megapixel_steps": 1250, "sana_queue_oldest_seconds": 1.25,
    }  # fmt: skip
    assert {name: families[name].samples[0].value for name in expected} == expected
    waits = {s.labels["model"]: s.value for s in families["sana_predicted_wait_seconds"].samples}
    assert waits == {"base": 7.5, "sprint": 0.5}
    short = {(s.name, s.labels["stage"]): s.value for s in families["sana_out_of_memory"].samples}
    assert short == {("sana_out_of_memory_total", "text"): 0, ("sana_out_of_memory_total", "decode"): 5}


def test_what_is_not_completed_is_counted_by_why_too():
    def total(name: str) -> float:
        family = next(family for family in metrics.REGISTRY.collect() if family.name == name)
        return sum(s.value for s in family.samples if s.labels["outcome" if "outcome" in s.labels else "reason"])

    done = value("sana_requests_total", model="base", outcome="completed")
    ends, reasons = total("sana_requests"), total("sana_uncompleted_requests")
    metrics.count_request("base", "completed")
    metrics.count_request("base", "refused", "queue_full")
    metrics.count_request("sprint", "failed", "storage")
    assert value("sana_requests_total", model="base", outcome="completed") == done + 1
    assert total("sana_requests") - ends == 3
    assert total("sana_uncompleted_requests") - reasons == 2


def test_an_answer_is_counted_in_all_its_units():
    request = SprintInput.model_validate(
        {"prompt": "x", "num_images": 2, "output_format": "png", "image_size": "square"}
    )
    image = ImageFile(url="u", content_type="image/png", file_name="f", file_size=1, width=512, height=512)
    output = SanaSprintOutput(
        images=[image, image],
        seed=1,
        has_nsfw_concepts=[True, False],
        prompt="x",
        timings={"denoise": 0.04, "store": 0.0},
    ).denoised_with(3.5)
    names = {
        "sana_requests_total": {"model": "sprint", "outcome": "completed"},
        "sana_images_total": {"model": "sprint", "format": "png"},
        "sana_flagged_images_total": {"model": "sprint"},
        "sana_image_pixels_total": {"model": "sprint"},
        "sana_denoise_steps_total": {"model": "sprint"},
        "sana_billable_units_total": {"model": "sprint"},
        "sana_request_seconds_sum": {"model": "sprint"},
        "sana_batch_images_sum": {"model": "sprint"},
        "sana_stage_seconds_sum": {"model": "sprint", "stage": "denoise"},
    }
    before = {name: value(name, **labels) for name, labels in names.items()}
    metrics.count_answer("sprint", request, output, 2, 0.5)
    grown = [value(name, **labels) - before[name] for name, labels in names.items()]
    assert grown == pytest.approx([1, 2, 1, 2 * 512 * 512, 4, 2, 0.5, 3.5, 0.04])


def test_what_bentoml_collects_of_ours_is_not_said_twice():
    theirs = "# HELP bentoml_x A counter\n# TYPE bentoml_x counter\nbentoml_x 1.0\n"
    ours = (
        "# HELP sana_requests_total Multiprocess metric\n"
        "# TYPE sana_requests_total counter\n"
        'sana_requests_total{a="b"} 9.0\n'
    )
    text = metrics.render(theirs + ours)
    assert text.startswith(theirs)
    assert text.count("# TYPE sana_requests_total counter") == 1
    assert 'a="b"' not in text


def test_the_documented_table_is_the_code(exposition):
    documented = TABLE.read_text()
    assert metrics.table() in documented, "run python -m sana_service.metrics and put its table into docs/metrics.md"
