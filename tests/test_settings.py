from pathlib import Path

import pytest

from sana_service.settings import SettingsError, load_settings


def test_defaults() -> None:
    settings = load_settings({})
    assert settings.models == "auto"
    assert settings.base_model == "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers"
    assert settings.sprint_model == "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers"
    assert (settings.base_revision, settings.sprint_revision) == ("main", "main")
    assert settings.devices == ("auto",)
    assert settings.storage_url.endswith("/sana-files")
    assert settings.file_ttl_seconds == 3600
    assert settings.max_pixels == 16_777_216
    assert settings.nsfw_threshold == 0.5
    assert settings.embed_metadata is True
    assert settings.log_prompts is False
    assert settings.api_keys_file is None


def test_values_are_read_from_the_environment() -> None:
    settings = load_settings(
        {
            "SANA_DEVICES": "cuda:1",
            "SANA_PUBLIC_URL": "https://images.example.com/sana/",
            "SANA_CORS_ORIGINS": "https://a.example, https://b.example:8443",
            "SANA_API_KEYS_FILE": "/run/keys",
            "SANA_EMBED_METADATA": "false",
            "SANA_MAX_QUEUE": "",
            "SANA_SERVICE_HOST": "10.0.0.1",
        }
    )
    assert settings.devices == ("cuda:1",)
    assert settings.public_url == "https://images.example.com/sana"
    assert settings.cors_origins == ("https://a.example", "https://b.example:8443")
    assert settings.api_keys_file == Path("/run/keys")
    assert settings.embed_metadata is False
    assert settings.max_queue == 64


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("SANA_MODELS", "stock", "'hub'"),
        ("SANA_MAX_PIXELS", "8294399", "greater than or equal to 8294400"),
        ("SANA_MAX_PIXELS", "many", "integer"),
        ("SANA_MAX_QUEUE", "0", "greater than or equal to 1"),
        ("SANA_REQUEST_TIMEOUT_SECONDS", "0", "greater than 0"),
        ("SANA_REQUEST_TIMEOUT_SECONDS", "inf", "finite"),
        ("SANA_DEVICES", "gpu0", "cuda:0,cuda:1"),
        ("SANA_DEVICES", "cuda:0,cuda:0", "once"),
        ("SANA_PUBLIC_URL", "images.example.com", "https://"),
        ("SANA_FILE_TTL_SECONDS", "-1", "greater than or equal to 1"),
        ("SANA_NSFW_THRESHOLD", "1.5", "less than or equal to 1"),
        ("SANA_PRECISION", "int8", "'exact' or 'fp8'"),
        ("SANA_GRAPH_MEMORY_GB", "-1", "greater than or equal to 0"),
        ("SANA_GRAPH_MEMORY_GB", "nan", "finite"),
        ("SANA_EMBED_METADATA", "maybe", "boolean"),
        ("SANA_CORS_ORIGINS", "a.example", "origins such as"),
        ("SANA_LOG_FORMAT", "xml", "'text' or 'json'"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_it(name: str, value: str, allowed: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({name: value})
    line = str(caught.value)
    assert line.startswith(f"{name}={value!r}: ")
    assert allowed in line
    assert "\n" not in line
