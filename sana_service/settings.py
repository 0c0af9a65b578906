"""The operator's settings: `SANA_` environment variables, read once into a frozen object.

A wrong value is a `SettingsError` of one line that names the variable, the value and what is
allowed. An empty variable counts as unset, so that `VAR=` in a compose file means the default.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from sana_service.contract.sizes import DEFAULT_SIZE
from sana_service.jobs.guard import check_entry
from sana_service.models.names import Precision

PREFIX = "SANA_"

_APP = re.compile(r"[a-z0-9][a-z0-9._-]*/[a-z0-9][a-z0-9._-]*", re.IGNORECASE)


class SettingsError(ValueError):
    """A variable's value is not allowed; the message is one line."""


def _split_commas(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _base_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.netloc or parts.query or parts.fragment:
        raise ValueError("must be a URL such as https://images.example.com")
    return value.rstrip("/")


def _origins(value: tuple[str, ...]) -> tuple[str, ...]:
    for origin in value:
        parts = urlsplit(origin)
        if origin != "*" and (parts.scheme not in {"http", "https"} or not parts.netloc or parts.path):
            raise ValueError("must be * or origins such as https://app.example.com, separated by commas")
    return value


def _app(value: str) -> str:
    if not _APP.fullmatch(value):
        raise ValueError("must be an owner and a name such as fal-ai/sana")
    return value


def _webhook_hosts(value: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(check_entry(entry) for entry in value)


def _devices(value: tuple[str, ...]) -> tuple[str, ...]:
    names = [name for name in value if name.startswith("cuda:") and name[5:].isdecimal()]
    if value not in {("auto",), ("cpu",)} and (not value or len(names) != len(value)):
        raise ValueError("must be auto, cpu, or a list such as cuda:0,cuda:1")
    if len(set(value)) != len(value):
        raise ValueError("must name each device once")
    return value


def _default_storage_url() -> str:
    return (Path(tempfile.gettempdir()) / "sana-files").as_uri()


class Settings(BaseModel):
    """One attribute for each variable; see the README for a table of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: Literal["auto", "hub", "bundled", "random"] = Field(
        "auto",
        description="`hub`: the two checkpoints below; `bundled`: the small pair in the package; `random`: "
        "the full-size architecture without trained weights, for timing only; `auto`: `hub` where a CUDA "
        "device is, else `bundled`.",
    )
    base_model: str = Field(
        "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",
        description="The base checkpoint: a repository id or a folder in the hub's layout.",
    )
    sprint_model: str = Field(
        "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers",
        description="The SANA-Sprint checkpoint: a repository id or a folder.",
    )
    base_revision: str = Field("main", description="Branch, tag or commit of the base repository.")
    sprint_revision: str = Field("main", description="Branch, tag or commit of the sprint repository.")
    devices: Annotated[tuple[str, ...], BeforeValidator(_split_commas), AfterValidator(_devices)] = Field(
        ("auto",),
        description="`cpu`, or a list such as `cuda:0,cuda:1`: one queue for all, and a process each; `auto` takes "
        "all CUDA devices, else the CPU.",
    )
    storage_url: str = Field(
        default_factory=_default_storage_url,
        description="Where images are kept: an fsspec URL such as `file:///var/lib/sana` or `s3://bucket/prefix`.",
    )
    public_url: Annotated[str, AfterValidator(_base_url)] | None = Field(
        None,
        description="Base of the image URLs. By default the scheme and Host of the request; "
        "`X-Forwarded-*` is not believed.",
    )
    file_ttl_seconds: int = Field(
        3600,
        ge=1,
        description="Age at which local files are deleted; on S3 it is the bucket's lifecycle rule.",
    )
    api_keys_file: Path | None = Field(
        None,
        description="A file with an API key a line, plain or `sha256:<64 hex digits>`; `#` starts a comment. "
        "Without it the service is open to everybody.",
    )
    max_queue: int = Field(64, ge=1, description="Jobs that may wait; one more is answered 429.")
    max_queue_work: float = Field(
        1250.0,
        gt=0,
        allow_inf_nan=False,
        description="Work that may wait, in megapixel-steps: megapixels as the model draws them, times steps, times "
        "images; a 1024x1024 picture in 18 steps has 18.9. More is answered 429.",
    )
    max_concurrent_per_key: int | None = Field(
        None,
        ge=1,
        description="Requests of one API key that are served at a time, waiting included; one more is answered 429. "
        "Jobs of the queue are not counted: `SANA_JOBS_CONCURRENCY` bounds them. Needs `SANA_API_KEYS_FILE`.",
    )
    request_timeout_seconds: float = Field(
        300.0,
        gt=0,
        allow_inf_nan=False,
        description="A request that takes longer, queueing included, is stopped and answered 504.",
    )
    max_pixels: int = Field(
        16_777_216,
        ge=DEFAULT_SIZE.area,
        description="Largest width times height, 8294400 (the default size) or more.",
    )
    safety_model: str = Field(
        "auto",
        description="`auto`: `Falconsai/nsfw_image_detection` with `hub`, else the packaged `opennsfw`; "
        "a repository id or folder; `off`.",
    )
    nsfw_threshold: float = Field(
        0.5,
        ge=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="An image with a probability strictly above it is flagged and blackened.",
    )
    precision: Precision = Field(
        "exact",
        description="`exact`: the checkpoints' own. `fp8`: the transformers' large matrix products in 8-bit floating "
        "point, faster and with other pictures; needs a GPU of compute capability 8.9 or newer. Answers then say "
        "`X-Sana-Precision: fp8`.",
    )
    graph_memory_gb: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="GiB of each GPU's memory that captured CUDA graphs may hold; 0 for none, which is slower. By "
        "default 4, or a tenth of a smaller GPU's memory.",
    )
    embed_metadata: bool = Field(True, description="Write prompt, seed and settings into the image files.")
    cors_origins: Annotated[tuple[str, ...], BeforeValidator(_split_commas), AfterValidator(_origins)] = Field(
        (), description="Origins, separated by commas, whose pages may call the service."
    )
    app: Annotated[str, AfterValidator(_app)] = Field(
        "fal-ai/sana",
        description="The name that fal's clients call: `POST /{app}` and `/{app}/sprint`, and `/queue/{app}`.",
    )
    jobs_url: str | None = Field(
        None,
        description="Where queued jobs are kept: `sqlite:///var/lib/sana/jobs.db`, or `redis://host:6379/0` for "
        "several replicas. By default a database in the system's temporary folder, one for each storage.",
    )
    jobs_concurrency: int = Field(
        8, ge=1, le=1024, description="Queued jobs that a replica works on at a time; the engine batches them."
    )
    max_jobs: int = Field(1000, ge=1, description="Queued jobs that may wait; one more is answered 429.")
    webhook_hosts: Annotated[tuple[str, ...], BeforeValidator(_split_commas), AfterValidator(_webhook_hosts)] = Field(
        (),
        description="Where webhooks may go: host names such as `hooks.example.com` or `*.example.com` (https, public "
        "addresses only), or trusted origins such as `http://10.0.0.5:9000`. Without it webhooks are refused.",
    )
    c2pa_cert: Path | None = Field(
        None,
        description="PEM file of the certificate chain that signs a C2PA manifest into every image; needs "
        "`SANA_C2PA_KEY` and the extra `c2pa`.",
    )
    c2pa_key: Path | None = Field(None, description="PEM file of that certificate's private key.")
    log_prompts: bool = Field(False, description="Write prompts to the log.")
    trace_prompts: bool = Field(
        False,
        description="Put prompts into traces. There are traces where `OTEL_EXPORTER_OTLP_ENDPOINT` names a collector.",
    )
    log_format: Literal["text", "json"] = Field("text", description="`json` for machines.")


def load_settings(environ: Mapping[str, str]) -> Settings:
    """Settings from an environment.

    Raises:
        SettingsError: a value is not allowed.
    """
    values = {
        name: environ[PREFIX + name.upper()]
        for name in Settings.model_fields
        if environ.get(PREFIX + name.upper(), "").strip()
    }
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name = str(fault["loc"][0])
        allowed = fault["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        raise SettingsError(f"{PREFIX}{name.upper()}={values[name]!r}: {allowed}") from error
