"""Structured logging: one line per event, text for people or JSON for machines.

``log.info("engine ready", extra={"fields": {"engine": name, "port": port}})`` becomes
``... engine ready engine=llm port=8001`` or one JSON object. Secrets are masked: by field name at
any depth, and by shape (``Bearer ...``, ``sk-...``, passwords in URLs) in every text.
"""

from __future__ import annotations

import datetime
import json
import logging
import re
import sys
from typing import IO, Any, Literal

import orjson

_SECRET_NAME = re.compile(r"(key|token|secret|password|authorization)$", re.IGNORECASE)
# Only characters that tokens consist of: the closing quote of a JSON string must survive.
_SECRET_SHAPES = (
    (re.compile(r"(?i)\b(bearer\s+|authorization:\s*\w+\s+)[A-Za-z0-9._~+/=-]{6,}"), r"\1***"),
    (re.compile(r"\bsk-[A-Za-z0-9_-]{8,}"), "sk-***"),
    (re.compile(r"://[^/\s:@\"']+:[^/\s@\"']+@"), "://***@"),
)


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
        # A line break in a message would let its author forge the next line.
        message = _one_line(record.getMessage())
        text = f"{_time(record)} {record.levelname} {record.name}: {message}{fields}"
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        return mask(text)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: ``time, level, logger, message`` and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            **fields_of(record),
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        try:
            text = orjson.dumps(entry, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
        except TypeError:
            # Integers beyond 64 bits, lone surrogates: slower, but no line is lost.
            text = json.dumps(entry, default=str)
        return mask(text)


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """The structured fields of a record, secrets masked."""
    fields = getattr(record, "fields", None)
    return _mask_named(fields) if isinstance(fields, dict) else {}


def mask(text: str) -> str:
    """``text`` with everything that looks like a credential replaced by ``***``."""
    for shape, replacement in _SECRET_SHAPES:
        text = shape.sub(replacement, text)
    return text


def _mask_named(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        key: "***"
        # Counts and flags (`first_token: 0.3`) are no secrets.
        if _SECRET_NAME.search(str(key)) and not isinstance(value, (int, float, type(None)))
        else _mask_named(value)
        if isinstance(value, dict)
        else value
        for key, value in fields.items()
    }


def _time(record: logging.LogRecord) -> str:
    moment = datetime.datetime.fromtimestamp(record.created, tz=datetime.timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _one_line(text: str) -> str:
    return text.replace("\r", "\\r").replace("\n", "\\n")


def _show(value: object) -> str:
    text = str(value)
    return repr(text) if not text or any(c in text for c in " =\"'\r\n") else text
