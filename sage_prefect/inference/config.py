"""What a client needs to know; plain data that travels between processes."""

from __future__ import annotations

import ipaddress
import math
import os
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

from sage_prefect.common.errors import SettingsError
from sage_prefect.inference.protocol import CallContext, is_header_value

DEFAULT_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class ClientConfig:
    """How to reach a server. Can be pickled (a client cannot): make the client where it is used.

    Attributes:
        base_url: with the version path, for example ``http://127.0.0.1:8888/v1``.
        api_key: sent as bearer token; never shown.
        timeout_s: bound on a whole call, retries included.
        connect_timeout_s: bound on opening a connection.
        first_byte_timeout_s: bound on any wait for bytes, the first ones included; None:
            ``timeout_s``.
        retries: repetitions of a call, only before its first byte came back.
        max_connections: of the pool; more calls wait for a free one.
        embed_texts, embed_characters: bounds on one embedding request; ``embed()`` splits. Some
            hundred texts keep an engine busy for seconds, so that the request itself costs
            nothing, and a retry repeats little.
        embed_concurrency: embedding requests of one ``embed()`` at once.
        context: headers that every call carries.
    """

    base_url: str
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = DEFAULT_TIMEOUT_S
    connect_timeout_s: float = 5.0
    first_byte_timeout_s: float | None = None
    retries: int = 2
    max_connections: int = 256
    embed_texts: int = 256
    embed_characters: int = 400_000
    embed_concurrency: int = 4
    context: CallContext = field(default_factory=CallContext)

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_url", normalize_url(self.base_url))
        for name in ("timeout_s", "connect_timeout_s"):
            value = getattr(self, name)
            if not value > 0:
                raise SettingsError(f"{name}={value!r} is not positive.")
        for name in ("max_connections", "embed_texts", "embed_characters", "embed_concurrency"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name}={getattr(self, name)!r} is less than 1.")
        if self.api_key is not None and not is_header_value(self.api_key):
            raise SettingsError(
                "the API key holds characters that a header cannot carry.",
                hint="Check SAGE_API_KEY: keys are printable ASCII without line ends.",
            )
        if self.retries < 0:
            raise SettingsError(f"retries={self.retries!r} is negative.")


def normalize_url(url: str) -> str:
    """``http://host:port`` -> ``http://host:port/v1``; a version path that is there stays.

    Raises:
        SettingsError: not an http(s) URL.
    """
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(
            f"{url!r} is not the URL of a server.", hint="Write it as http://host:port."
        )
    path = parts.path.rstrip("/")
    if not re.search(r"/v\d+[a-z0-9]*$", path):
        path += "/v1"
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def server_root(base_url: str) -> str:
    """The base URL without its version path: where ``/health`` is."""
    return base_url.rsplit("/", 1)[0]


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def default_timeout_s() -> float:
    """``SAGE_REQUEST_TIMEOUT`` in seconds, else 600.

    Raises:
        SettingsError: the variable holds no positive number.
    """
    value = os.environ.get("SAGE_REQUEST_TIMEOUT")
    if not value:
        return DEFAULT_TIMEOUT_S
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise SettingsError(
            f"SAGE_REQUEST_TIMEOUT={value!r} is not a time.", hint="Use a number of seconds."
        )
    return seconds
