"""Where a load goes. Only to this machine, unless the caller says otherwise: a load generator
pointed at somebody else's server by mistake is an attack."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from sage_prefect.common.errors import BenchmarkError


@dataclass(frozen=True, slots=True)
class Target:
    """An OpenAI-compatible server."""

    host: str
    """As named in the URL."""
    address: str
    """What it resolved to, once: no look-up delays a request."""
    port: int
    path: str = "/v1"
    """What comes before ``/chat/completions``."""
    tls: bool = False

    @classmethod
    def parse(cls, url: str, *, allow_remote: bool = False) -> Target:
        """Read a base URL; without a path it is ``/v1``.

        Raises:
            BenchmarkError: not an http(s) URL, or not on the loopback and not allowed.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise BenchmarkError(f"target {url!r} is no URL: {error}.", hint=_EXAMPLE) from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BenchmarkError(f"target {url!r} is no http or https URL.", hint=_EXAMPLE)
        if parts.query or parts.fragment or parts.username:
            raise BenchmarkError(
                f"target {parts.hostname!r}: a URL with user, query or fragment.", hint=_EXAMPLE
            )
        addresses = resolve(parts.hostname)
        if not allow_remote and not all(_is_loopback(address) for address in addresses):
            raise BenchmarkError(
                f"target {parts.hostname!r} is not on this machine's loopback.",
                hint="Load other machines only with their owner's consent: --allow-remote.",
            )
        tls = parts.scheme == "https"
        path = parts.path.rstrip("/") or "/v1"
        return cls(parts.hostname, addresses[0], port or (443 if tls else 80), path, tls)

    @property
    def host_header(self) -> str:
        """The value of ``Host``."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"{name}:{self.port}"

    @property
    def url(self) -> str:
        """The base URL."""
        return f"{'https' if self.tls else 'http'}://{self.host_header}{self.path}"

    def tls_context(self) -> ssl.SSLContext | None:
        """A context that checks certificates, or None for plain HTTP."""
        return ssl.create_default_context() if self.tls else None


_EXAMPLE = "E.g. http://127.0.0.1:8888/v1."


def resolve(host: str) -> list[str]:
    """The addresses of a host, IPv4 first.

    Raises:
        BenchmarkError: it has none.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise BenchmarkError(f"target {host!r} cannot be resolved: {error}.") from None
    found.sort(key=lambda address: address[0] != socket.AF_INET)
    return [str(address[4][0]) for address in found]


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback
