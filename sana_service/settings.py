"""The operator's settings: `SANA_` environment variables, read once into a frozen object.

A wrong value is a `SettingsError` of one line that names the variable, the value and what is
allowed. An empty variable counts as unset, so that `VAR=` in a compose file means the default.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from sana_service.contract.sizes import DEFAULT_SIZE

PREFIX = "SANA_"


class SettingsError(ValueError):
    """A variable's value is not allowed; the message is one line."""


def _split_commas(value: object) -> object:
    return (
        tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
    )


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


def _devices(value: tuple[str, ...]) -> tuple[str, ...]:
    names = [name for name in value if name.startswith("cuda:") and name[5:].isdecimal()]
    if value not in {("auto",), ("cpu",)} and (not value or len(names) != len(value)):
        raise ValueError("must be auto, cpu, or a list such as cuda:0,cuda:1")
    if len(set(value)) != len(value):
        raise ValueError("must name each device once")
    if len(value) > 1:
        raise ValueError("must name one device; several devices are not supported in this version")
    return value


def _default_storage_url() -> str:
    return (Path(tempfile.gettempdir()) / "sana-files").as_uri()


class Settings(BaseModel):
    """One attribute for each variable; see the README for a table of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: Literal["auto", "hub", "bundled", "random"] = "auto"
    base_model: str = "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers"
    sprint_model: str = "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers"
    base_revision: str = "main"
    sprint_revision: str = "main"
    devices: Annotated[tuple[str, ...], BeforeValidator(_split_commas), AfterValidator(_devices)] = ("auto",)
    storage_url: str = Field(default_factory=_default_storage_url)
    public_url: Annotated[str, AfterValidator(_base_url)] | None = None
    file_ttl_seconds: int = Field(default=3600, ge=1)
    api_keys_file: Path | None = None
    max_queue: int = Field(default=64, ge=1)
    request_timeout_seconds: float = Field(default=300.0, gt=0, allow_inf_nan=False)
    max_pixels: int = Field(default=16_777_216, ge=DEFAULT_SIZE.area)
    safety_model: str = "auto"
    nsfw_threshold: float = Field(default=0.5, ge=0.0, le=1.0, allow_inf_nan=False)
    embed_metadata: bool = True
    cors_origins: Annotated[tuple[str, ...], BeforeValidator(_split_commas), AfterValidator(_origins)] = ()
    log_prompts: bool = False
    log_format: Literal["text", "json"] = "text"


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
