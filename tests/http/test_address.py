from typing import Any

import pytest

from sana_service.http.address import base_url


def scope(host: bytes | None, scheme: str = "http") -> dict[str, Any]:
    headers = [] if host is None else [(b"host", host)]
    return {"scheme": scheme, "server": ("127.0.0.1", 3000), "headers": headers}


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (b"sana.example", "http://sana.example"),
        (b"sana.example:8443", "http://sana.example:8443"),
        (b"[::1]:3000", "http://[::1]:3000"),
        (None, "http://127.0.0.1:3000"),
        (b"", "http://127.0.0.1:3000"),
        (b"[::1", "http://127.0.0.1:3000"),
        (b"a/../b", "http://127.0.0.1:3000"),
        (b'evil"><script>', "http://127.0.0.1:3000"),
        (b"user@evil", "http://127.0.0.1:3000"),
    ],
)
def test_base_url(host: bytes | None, expected: str) -> None:
    assert base_url(scope(host)) == expected


def test_the_scheme_is_the_connection_s() -> None:
    assert base_url(scope(b"a", "https")) == "https://a"
