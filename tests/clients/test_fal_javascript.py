"""`@fal-ai/client` from npm, unchanged: its request middleware points it here."""

from __future__ import annotations

import json

from tests.clients.node import require_package, run_script
from tests.services import REPOSITORY


def test_run_subscribe_stream_and_cancel(fal_server):
    require_package("@fal-ai/client")
    environment = fal_server.environment | {"FAL_TEST_HOST": fal_server.host}
    printed = run_script(REPOSITORY / "tests" / "clients" / "fal.mjs", environment, 120)
    answer = json.loads(printed.splitlines()[-1])
    assert answer["ran"]["data"]["seed"] == answer["subscribed"]["data"]["seed"] == 7
    assert answer["told"][-1] == answer["streamed"][-1] == "COMPLETED"
    assert answer["byStream"]["data"]["images"][0]["width"] == 512
    assert answer["logs"].count("denoise 2/2") == 1
    assert answer["subscribed"]["requestId"]
    cancelled, ran, subscribed, other_app, kept_too_long = answer["failures"]
    assert cancelled == ["ApiError", 499]
    assert ran == subscribed == ["ValidationError", 422]
    assert other_app == ["ApiError", 404]
    assert kept_too_long == ["ApiError", 400]
