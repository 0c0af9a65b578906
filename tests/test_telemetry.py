import json
import logging
from collections.abc import Iterator

import pytest

from sana_service.telemetry import configure_logging, get_logger, request_id


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    logger = logging.getLogger("sana")
    before = (logger.handlers, logger.level, logger.propagate)
    yield
    logging.captureWarnings(False)
    logger.handlers, logger.level, logger.propagate = before


def test_text_lines_carry_the_request_id_only_inside_a_request(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("text")
    get_logger("x").info("outside")
    token = request_id.set("abc")
    get_logger("x").warning("inside %d", 7)
    request_id.reset(token)
    outside, inside = capsys.readouterr().err.splitlines()
    assert outside.endswith("INFO     [sana.x] outside")
    assert inside.endswith("WARNING  [sana.x] inside 7 (request abc)")


def test_json_lines_hold_one_record_each(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")
    token = request_id.set("abc")
    try:
        raise ValueError("a\nb")
    except ValueError:
        get_logger("x").exception("two\nlines")
    request_id.reset(token)
    [line] = capsys.readouterr().err.splitlines()
    record = json.loads(line)
    assert (record["level"], record["logger"], record["message"]) == ("error", "sana.x", "two\nlines")
    assert record["request_id"] == "abc"
    assert record["trace"].endswith("ValueError: a\nb")
    assert record["time"].endswith("+00:00")
