import hashlib
from pathlib import Path

import pytest

from sana_service.http.boundary import ErrorBoundary
from sana_service.http.keys import ApiKeys, read_key_digests
from tests.http.stub import Inner, call

HASHED = hashlib.sha256(b"second-key").hexdigest()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"# customers\nfirst-key  # plain\n\nsha256:{HASHED.upper()}\n")
    return path


def status(key_file: Path, path: str, authorization: str | None, method: str = "POST") -> int:
    app = ErrorBoundary(ApiKeys(Inner(), read_key_digests(key_file)))
    headers = {} if authorization is None else {b"Authorization": authorization.encode("latin-1")}
    return call(app, method, path, headers=headers).status_code


@pytest.mark.parametrize(
    "authorization",
    [
        "Key first-key",
        "Bearer first-key",
        "key first-key",
        "Key second-key",
        "BEARER second-key",
        "Key  first-key",
    ],
)
def test_known_keys_pass(key_file: Path, authorization: str) -> None:
    assert status(key_file, "/generate", authorization) == 200


def test_a_key_may_end_in_any_letter_and_hold_a_number_sign(tmp_path: Path) -> None:
    """In UTF-8 "à" ends in a byte that Latin-1 takes for a space."""
    file = tmp_path / "keys"
    file.write_text("clé-à\nsk-a#b # of the tests\n#only a comment\n", encoding="utf-8")
    assert status(file, "/generate", "Key " + "clé-à".encode().decode("latin-1")) == 200
    assert status(file, "/generate", "Key sk-a#b") == 200
    assert status(file, "/generate", "Key sk-a") == 401
    assert len(read_key_digests(file)) == 2


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Key", "Key ", "first-key", "Basic first-key", "Key third-key", f"Key sha256:{HASHED}", "Key # x",
     "Key \xfc"],
)  # fmt: skip
def test_everything_else_is_401(key_file: Path, authorization: str | None) -> None:
    assert status(key_file, "/generate", authorization) == 401


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/", 200),
        ("GET", "/assets/page.css", 200),
        ("GET", "/livez", 200),
        ("GET", "/readyz", 200),
        ("GET", "/files/a.jpg", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/docs", 200),
        ("GET", "/.well-known/jwks.json", 200),
        ("POST", "/queue/fal-ai/sana", 401),
        ("GET", "/queue/fal-ai/sana/requests/1", 401),
        ("PUT", "/queue/fal-ai/sana/requests/1/cancel", 401),
        ("POST", "/fal-ai/sana", 401),
        ("POST", "/v1/images/generations", 401),
        ("GET", "/v1/models", 401),
        ("POST", "/", 401),
        ("POST", "/sprint", 401),
        ("GET", "/schema.json", 401),
        ("GET", "/docs.json", 401),
        ("GET", "/metrics", 401),
    ],
)
def test_what_is_public(key_file: Path, method: str, path: str, expected: int) -> None:
    assert status(key_file, path, None, method) == expected


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no key"),
        (b"# only a comment\n\n", "no key"),
        (b"sha256:abc\n", "line 1"),
        (b"good\nsha256:" + b"g" * 64, "line 2"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_a_useless_file_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_key_digests(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No such file"):
        read_key_digests(tmp_path / "none")
