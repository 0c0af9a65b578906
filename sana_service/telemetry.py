"""Log records that carry the request they belong to, as text or as JSON.

Prompts are never put into a record here; whoever logs one asks `Settings.log_prompts` first.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from contextvars import ContextVar
from typing import Literal

request_id: ContextVar[str] = ContextVar("request_id", default="-")

LOGGER_NAME = "sana"
# BentoML's and the servers' loggers keep handlers of their own
_FOREIGN_LOGGERS = ("bentoml", "circus", "uvicorn")


def get_logger(name: str) -> logging.Logger:
    """The logger `sana.<name>`."""
    return logging.getLogger(f"{LOGGER_NAME}.{name}")


class _TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-8s [%(name)s] %(message)s (request %(request_id)s)")
        self._plain = logging.Formatter("%(asctime)s %(levelname)-8s [%(name)s] %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        record.request_id = request_id.get()
        return self._plain.format(record) if record.request_id == "-" else super().format(record)


class _JsonFormatter(logging.Formatter):
    converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id.get() != "-":
            entry["request_id"] = request_id.get()
        if record.exc_info:
            entry["trace"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def configure_logging(log_format: Literal["text", "json"]) -> None:
    """Send the service's records to stderr; with `json`, turn the other loggers' lines into JSON too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
    logger = logging.getLogger(LOGGER_NAME)
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if log_format == "json":
        for name in ("", *_FOREIGN_LOGGERS):
            for foreign in logging.getLogger(name).handlers:
                foreign.setFormatter(_JsonFormatter())
