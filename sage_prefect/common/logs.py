"""Structured logging: one line per event, text for people or JSON for machines.

``log.info("engine ready", extra={"fields": {"engine": name, "port": port}})`` becomes
``... engine ready engine=llm port=8001`` or one JSON object. Secrets are masked by field name.
"""

from __future__ import annotations

import datetime
import logging
import re
import sys
from typing import IO, Any, Literal

import orjson

_SECRET_NAME = re.compile(r"(key|token|secret|password|authorization)$", re.IGNORECASE)
_BEARER = re.compile(r"(?i)(bearer\s+)\S+")


def configure_logging(
    level: str = "INFO", style: Literal["text", "json"] = "text", stream: IO[str] | None = None
) -> None:
    """Set up the root logger of a SAGE process. Calling it again replaces the set-up."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # These pour connection details at INFO once Prefect or Dask is imported (prefect.md A0, 11).
    for noisy in ("distributed", "httpx", "httpcore", "bokeh", "asyncio"):
        logging.getLogger(noisy).setLevel("WARNING")


class TextFormatter(logging.Formatter):
    """``2026-11-21T08:00:00.123Z INFO name: message key=value``."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {key}={_show(value)}" for key, value in fields_of(record).items())
        text = f"{_time(record)} {record.levelname} {record.name}: {_message(record)}{fields}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class JsonFormatter(logging.Formatter):
    """One JSON object per line: ``time, level, logger, message`` and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
            **fields_of(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(entry, default=str).decode()


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """The structured fields of a record, secrets masked."""
    fields = getattr(record, "fields", None)
    if not isinstance(fields, dict):
        return {}
    return {key: "***" if _SECRET_NAME.search(key) else value for key, value in fields.items()}


def _message(record: logging.LogRecord) -> str:
    return _BEARER.sub(r"\1***", record.getMessage())


def _time(record: logging.LogRecord) -> str:
    moment = datetime.datetime.fromtimestamp(record.created, tz=datetime.timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _show(value: object) -> str:
    text = str(value)
    return repr(text) if " " in text or not text else text
