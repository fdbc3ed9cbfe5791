"""Where the running services of this user listen: ``endpoints.json`` in the state directory.

The supervisor publishes; clients look up. It lets a client find the gateway when 8888 was taken
and the next free port was used instead.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson

from sage_prefect.common.paths import atomic_write, state_dir


def endpoints_file() -> Path:
    """The file that holds service name -> base URL."""
    return state_dir() / "endpoints.json"


def lookup(name: str) -> str | None:
    """The published URL of a service (``gateway``, ``prefect``, ``dask``...), or None."""
    return read_all().get(name)


def read_all() -> dict[str, str]:
    """All published endpoints; empty when nothing runs."""
    try:
        content = orjson.loads(endpoints_file().read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return {}
    return {str(k): str(v) for k, v in content.items()} if isinstance(content, dict) else {}


def publish(name: str, url: str) -> None:
    """Record that service ``name`` listens at ``url``."""
    with _locked():
        _write({**read_all(), name: url})


def withdraw(name: str) -> None:
    """Forget service ``name``; unknown names are fine."""
    with _locked():
        _write({key: url for key, url in read_all().items() if key != name})


def _write(endpoints: dict[str, str]) -> None:
    atomic_write(endpoints_file(), orjson.dumps(endpoints, option=orjson.OPT_INDENT_2))


@contextmanager
def _locked() -> Iterator[None]:
    lock = endpoints_file().with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
