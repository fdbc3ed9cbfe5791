"""Logging: one line per event, fields kept, credentials never."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_prefect.common.logs import configure_logging, mask


class Capture:
    """A configured root logger and what it wrote."""

    def __init__(self, style: Literal["text", "json"]) -> None:
        self.stream = io.StringIO()
        configure_logging("INFO", style, self.stream)

    def line(self, message: str, *args: object, **fields: Any) -> str:
        """Logs one event and returns what was written for it."""
        logging.getLogger("sage.test").info(message, *args, extra={"fields": fields})
        return self.taken()

    def taken(self) -> str:
        written = self.stream.getvalue()
        self.stream.seek(0)
        self.stream.truncate()
        return written


@pytest.fixture(autouse=True)
def restore_root() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    quiet = ("distributed", "httpx", "httpcore", "bokeh", "asyncio")
    levels = {name: logging.getLogger(name).level for name in quiet}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, value in levels.items():
        logging.getLogger(name).setLevel(value)


@pytest.fixture(params=["text", "json"])
def log(request: pytest.FixtureRequest) -> Capture:
    return Capture(request.param)


def test_text_line() -> None:
    line = Capture("text").line("engine %s ready", "llm", port=8001, model="a b", note="")
    assert line.endswith("Z INFO sage.test: engine llm ready port=8001 model='a b' note=''\n")


def test_json_line() -> None:
    event = json.loads(Capture("json").line("ready", port=8001, tags={"a": [1, None]}))
    assert event.pop("time").endswith("Z")
    assert event == {
        "level": "INFO",
        "logger": "sage.test",
        "message": "ready",
        "port": 8001,
        "tags": {"a": [1, None]},
    }


def test_fields_never_replace_the_line_s_own() -> None:
    capture = Capture("json")
    forged = {"message": "forged", "level": "DEBUG", "time": "x"}
    logging.getLogger("sage.test").info("true", extra={"fields": forged})
    event = json.loads(capture.taken())
    assert (event["message"], event["level"]) == ("true", "INFO")
    assert event["time"] != "x"


@pytest.mark.parametrize("name", ["api_key", "API_KEY", "token", "client_secret", "password"])
def test_fields_with_secret_names_are_masked(log: Capture, name: str) -> None:
    line = log.line("x", **{name: "hunter2-value", "deep": {"a": {name: "hunter2-value"}}})
    assert "hunter2" not in line
    assert line.count("***") == 2


def test_numbers_are_no_secrets() -> None:
    assert "first_token=0.25" in Capture("text").line("x", first_token=0.25)


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer sk-sage-abcdefghijklm",
        "authorization: Basic dXNlcjpodW50ZXIy",
        "key sk-sage-abcdefghijklm refused",
        'sent {"Authorization": "Bearer abcdefghijklm"} upstream',
        "postgres://user:abcdefghijklm@db/x",
    ],
)
def test_credentials_are_masked_by_shape(log: Capture, text: str) -> None:
    for line in (log.line(text), log.line("%s", text), log.line("x", error=text)):
        assert "abcdefghijklm" not in line
        assert "dXNlcjpodW50ZXIy" not in line
        assert "***" in line
        if line.startswith("{"):
            json.loads(line)


def test_credentials_in_tracebacks_are_masked(log: Capture) -> None:
    try:
        raise ValueError("Bearer sk-sage-abcdefghijklm")
    except ValueError:
        logging.getLogger("sage.test").exception("failed")
    written = log.taken()
    assert "ValueError" in written
    assert "abcdefghijklm" not in written


def test_plain_text_is_left_alone() -> None:
    for text in ("basic functionality", "http://127.0.0.1:8888/v1", "task-list risk-averse", ""):
        assert mask(text) == text


def test_a_message_cannot_forge_a_second_line() -> None:
    line = Capture("text").line("a\nERROR root: forged\r", name="b\nc")
    assert line.count("\n") == 1


@pytest.mark.parametrize("value", [2**70, "\ud800", {1: 2}, object(), b"\xff", {"a", "b"}])
def test_nothing_is_too_odd_to_log(log: Capture, value: object) -> None:
    assert log.line("x", odd=value).count("\n") == 1


def test_configuring_again_replaces() -> None:
    first = Capture("text")
    second = Capture("json")
    second.line("once")
    assert first.taken() == ""


def test_levels_and_noisy_libraries() -> None:
    capture = Capture("text")
    logging.getLogger("sage").debug("hidden")
    logging.getLogger("distributed.scheduler").info("hidden")
    logging.getLogger("distributed.scheduler").warning("shown")
    assert "hidden" not in (written := capture.taken())
    assert "shown" in written


@given(st.text(max_size=80), st.dictionaries(st.text(max_size=8), st.text(max_size=20)))
def test_every_json_line_is_json(message: str, fields: dict[str, str]) -> None:
    capture = Capture("json")
    logging.getLogger("sage.test").info("%s", message, extra={"fields": fields})
    written = capture.taken()
    assert written.endswith("\n")
    json.loads(written)
