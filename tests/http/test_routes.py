import pytest

from sana_service.http.boundary import ErrorBoundary
from sana_service.http.routes import FAL_KEY, QUEUE_PREFIX_KEY, KnownRoutes, QueueHost
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
        ("GET", "/docs", 200),
        ("GET", "/.well-known/jwks.json", 200),
        ("POST", "/fal-ai/sana", 200),
        ("POST", "/fal-ai/sana/sprint", 200),
        ("POST", "/queue/fal-ai/sana", 200),
        ("POST", "/queue/fal-ai/sana/sprint", 200),
        ("GET", "/queue/fal-ai/sana/requests/1", 200),
        ("GET", "/queue/fal-ai/sana/requests/1/status", 200),
        ("GET", "/queue/fal-ai/sana/requests/1/status/stream", 200),
        ("PUT", "/queue/fal-ai/sana/requests/1/cancel", 200),
        ("POST", "/v1/images/generations", 200),
        ("GET", "/v1/models", 200),
        ("GET", "/v1/models/sana", 200),
        ("POST", "/fal-ai/flux", 404),
        ("POST", "/fal-ai/sana/", 404),
        ("POST", "/queue/fal-ai/sana/turbo", 404),
        ("GET", "/queue/fal-ai/sana/sprint/requests/1", 404),
        ("GET", "/fal-ai/sana/requests/1/status", 404),
        ("GET", "/requests/1", 404),
        ("POST", "/v1/images/edits", 404),
        ("GET", "/static_content/index.css", 404),
        ("GET", "/fal-ai/sana", 405),
        ("GET", "/queue/fal-ai/sana/requests/1/cancel", 405),
        ("POST", "/v1/models", 405),
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


@pytest.mark.parametrize(
    ("host", "path", "inner", "prefix"),
    [
        ("queue.sana.test", "/fal-ai/sana", "/queue/fal-ai/sana", ""),
        ("QUEUE.sana.test:8443", "/fal-ai/sana/requests/1/status", "/queue/fal-ai/sana/requests/1/status", ""),
        ("queue.sana.test", "/queue/fal-ai/sana", "/queue/fal-ai/sana", "/queue"),
        ("sana.test", "/queue/fal-ai/sana", "/queue/fal-ai/sana", "/queue"),
        ("queue.sana.test", "/files/a.jpg", "/files/a.jpg", None),
        ("queue.sana.test", "/fal-ai/sanaa", "/fal-ai/sanaa", None),
        ("sana.test", "/fal-ai/sana", "/fal-ai/sana", None),
    ],
)
def test_a_host_of_the_queue_needs_no_prefix(host: str, path: str, inner: str, prefix: str | None) -> None:
    app = Inner()
    assert call(QueueHost(app), "POST", path, headers={"host": host}).json()["path"] == inner
    assert app.requests[0].scope.get(QUEUE_PREFIX_KEY) == prefix


@pytest.mark.parametrize(("path", "inner"), [("/o/n", "/generate"), ("/o/n/sprint", "/sprint")])
def test_the_apps_name_is_an_alias_whose_headers_count(path: str, inner: str) -> None:
    app = Inner()
    assert call(KnownRoutes(app, "o/n"), "POST", path).json()["path"] == inner
    assert app.requests[0].scope[FAL_KEY] is True
    assert call(ErrorBoundary(KnownRoutes(app, "o/n")), "POST", "/fal-ai/sana").status_code == 404
