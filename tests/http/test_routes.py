import pytest

from sana_service.http.boundary import ErrorBoundary
from sana_service.http.routes import KnownRoutes
from tests.http.stub import Inner, call


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/generate", 200),
        ("POST", "/sprint", 200),
        ("POST", "/", 200),
        ("GET", "/", 200),
        ("GET", "/files/a.jpg", 200),
        ("GET", "/assets/page.css", 200),
        ("GET", "/livez", 200),
        ("GET", "/readyz", 200),
        ("GET", "/metrics", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/docs.json", 200),
        ("GET", "/schema.json", 200),
        ("HEAD", "/livez", 200),
        ("POST", "/generate/", 404),
        ("POST", "/sprint/", 404),
        ("GET", "/livez/", 404),
        ("GET", "/files/", 404),
        ("GET", "/files/a/b.jpg", 404),
        ("GET", "/files/%2e%2e%2fetc", 404),
        ("GET", "/anything", 404),
        ("POST", "/generate/submit", 404),
        ("POST", "/x//generate", 404),
        ("GET", "/generate", 405),
        ("PUT", "/", 405),
        ("OPTIONS", "/sprint", 405),
        ("POST", "/files/a.jpg", 405),
        ("POST", "/metrics", 405),
        ("DELETE", "/schema.json", 405),
    ],
)
def test_what_is_a_route(method: str, path: str, status: int) -> None:
    assert call(ErrorBoundary(KnownRoutes(Inner())), method, path).status_code == status


def test_the_root_is_an_alias_of_generate() -> None:
    assert call(KnownRoutes(Inner()), "POST", "/", content=b"x").json() == {"path": "/generate", "body": "x"}
    assert call(KnownRoutes(Inner()), "GET", "/").json()["path"] == "/"


def test_a_wrong_method_is_told_the_right_ones() -> None:
    app = ErrorBoundary(KnownRoutes(Inner()))
    assert call(app, "PATCH", "/generate").headers["allow"] == "POST"
    assert call(app, "PATCH", "/").headers["allow"] == "GET, HEAD, POST"
