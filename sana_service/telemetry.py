"""Log records that carry the request they belong to, as text or as JSON.

Prompts are never put into a record here; whoever logs one asks `Settings.log_prompts` first.
"""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

request_id: ContextVar[str] = ContextVar("request_id", default="-")
trace_id: ContextVar[str | None] = ContextVar("trace_id", default=None)
"""32 hexadecimal digits, where the request is traced."""

LOGGER_NAME = "sana"
# BentoML's and the servers' loggers keep handlers of their own
_FOREIGN_LOGGERS = ("bentoml", "circus", "uvicorn")


def get_logger(name: str) -> logging.Logger:
    """The logger `sana.<name>`."""
    return logging.getLogger(f"{LOGGER_NAME}.{name}")


class _TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-8s [%(name)s] %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        return line if request_id.get() == "-" else f"{line} (request {request_id.get()})"


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id.get() != "-":
            entry["request_id"] = request_id.get()
        if (trace := trace_id.get()) is not None:
            entry["trace_id"] = trace
        if record.exc_info:
            entry["trace"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def configure_logging(log_format: Literal["text", "json"]) -> None:
    """Send the service's records to stderr; with `json`, turn the other loggers' lines and warnings into JSON too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
    logger = logging.getLogger(LOGGER_NAME)
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if log_format == "json":
        logging.captureWarnings(True)
        for name in ("", *_FOREIGN_LOGGERS):
            for foreign in logging.getLogger(name).handlers:
                foreign.setFormatter(_JsonFormatter())
