"""No client can make the number of time series grow: not by paths, methods, names, hosts or bodies."""

from __future__ import annotations

import random
import string

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.services import Server

# Every fixed path, once: BentoML's own metrics begin a series where one of its routes is first asked.
FIXED = ("/", "/docs", "/livez", "/readyz", "/metrics", "/openapi.json", "/docs.json", "/schema.json", "/v1/models")


def series(http: httpx.Client) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    """Name and labels of all that `/metrics` has."""
    families = text_string_to_metric_families(http.get("/metrics").text)
    return {(s.name, frozenset(s.labels.items())) for family in families for s in family.samples}


def strange_requests(dice: random.Random, count: int) -> list[tuple[str, str, dict[str, str]]]:
    """Methods, paths and headers of a stranger's choosing."""

    def word(letters: str = string.ascii_letters + string.digits, most: int = 24) -> str:
        return "".join(dice.choices(letters, k=dice.randint(1, most)))

    paths = (
        lambda: f"/{word()}",
        lambda: f"/files/{word('0123456789abcdef', 32)}.png",
        lambda: f"/queue/fal-ai/sana/requests/{word()}/status",
        lambda: f"/v1/models/{word()}",
        lambda: f"/generate/{word()}",
        lambda: f"/sprint?{word()}={word()}",
        lambda: f"/assets/{word()}.js",
        lambda: f"/readyz/../{word()}",
    )
    methods = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH")
    return [
        (dice.choice(methods), dice.choice(paths)(), {"host": f"{word(string.ascii_lowercase)}.example", "x-a": word()})
        for _ in range(count)
    ]


def test_four_hundred_strange_requests_add_no_series_but_a_status_of_a_kind(quick_server: Server) -> None:
    strange = strange_requests(random.Random(5), 400)
    with quick_server.client() as http:
        for path in FIXED:
            http.get(path)
        before = series(http)
        answered = [http.request(method, path, headers=headers).status_code for method, path, headers in strange]
        grown = series(http) - before
    assert len({path for _, path, _ in strange}) > 300
    assert set(answered) <= {200, 404, 405, 415, 422}
    assert {name for name, _ in grown} <= {"sana_http_responses_total"}
    kinds = {dict(labels)["route"] for _, labels in grown}
    assert kinds <= {"generate", "sprint", "fal", "openai", "files", "page", "probe", "metrics", "document", "other"}
    assert len(grown) <= len(kinds) * len(set(answered))
