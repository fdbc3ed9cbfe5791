"""Errors: the message says what and how out, survives pickling, and knows whether to retry."""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import pickle
from collections.abc import Iterator

import pytest

from sage_prefect.common import errors
from sage_prefect.common.errors import (
    EngineOverloaded,
    EngineTimeout,
    EngineUnavailable,
    MissingColumnError,
    MissingDependencyError,
    OperatorError,
    RequestRejected,
    SageError,
    UnknownNameError,
    is_retryable,
    near_name,
)

SPECIAL = (
    UnknownNameError("policy", "fifi", ["fifo", "priority"]),
    MissingDependencyError("prefect", "pipelines", "to_flow()"),
    EngineOverloaded("busy", retry_after=1.5, hint="wait"),
    RequestRejected("no such model", status=404, code="model_not_found"),
    MissingColumnError("embed", "txt", ["text", "id"]),
    OperatorError("embed", "boom", partition="3/8", row=7, retryable=True, hint="look"),
)


def subclasses(cls: type[SageError]) -> Iterator[type[SageError]]:
    yield cls
    for sub in cls.__subclasses__():
        if sub.__module__ == errors.__name__:
            yield from subclasses(sub)


def every_error() -> list[SageError]:
    special = {type(error) for error in SPECIAL}
    plain = [cls for cls in subclasses(SageError) if cls not in special]
    return [*(cls("what", hint="the way out") for cls in plain), *SPECIAL]


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
def test_errors_cross_process_borders_whole(error: SageError) -> None:
    for other in (
        *(pickle.loads(pickle.dumps(error, version)) for version in range(6)),
        copy.copy(error),
        copy.deepcopy(error),
    ):
        assert type(other) is type(error)
        assert str(other) == str(error)
        assert other.__dict__ == error.__dict__
        assert other.args == (error.message,)
        assert is_retryable(other) == is_retryable(error)


def test_the_message_carries_the_hint() -> None:
    assert str(SageError("It broke.", hint="Mend it.")) == "It broke. Mend it."
    assert str(SageError("It broke.")) == "It broke."
    assert SageError("It broke.").hint is None


def test_special_messages() -> None:
    texts = [str(error) for error in SPECIAL]
    assert texts[0] == "unknown policy 'fifi'. Did you mean 'fifo'? Known: fifo, priority."
    assert "pip install 'sage-prefect[pipelines]'" in texts[1]
    assert "Did you mean 'text'? Columns at this point: text, id." in texts[4]
    assert texts[5] == "operator 'embed' failed in partition 3/8, row 7: boom look"
    assert str(UnknownNameError("policy", "x", [])).endswith("Known: none.")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (EngineUnavailable("x"), True),
        (EngineTimeout("x"), True),
        (EngineOverloaded("x"), True),
        (RequestRejected("x", status=400), False),
        (OperatorError("embed", "x"), False),
        (OperatorError("embed", "x", retryable=True), True),
        (SageError("x"), False),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        # Other classes than the built-in one until Python 3.11.
        (asyncio.TimeoutError(), True),
        (concurrent.futures.TimeoutError(), True),
        (ValueError("x"), False),
        (OSError("disk full"), False),
    ],
)
def test_is_retryable(error: Exception, expected: bool) -> None:
    assert is_retryable(error) is expected


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("fifi", ["fifo"], "Did you mean 'fifo'? "),
        ("zzz", ["fifo"], ""),
        ("x", [], ""),
        ("", ["fifo"], ""),
    ],
)
def test_near_name(name: str, known: list[str], expected: str) -> None:
    assert near_name(name, known) == expected
