"""How many clients' connections there may be: in all, and from one address.

Descriptors are what a flood of connections takes first: a listener without any left can accept
nobody, not even who would end it, and engines cannot be reached. So connections are counted, and
those over a limit are answered with 503 and closed.
"""

from __future__ import annotations

import resource

# Beside clients' connections: engines', files, the event loop's own.
_OWN_DESCRIPTORS = 64
_ENOUGH = 1 << 20


class ConnectionLimits:
    """Counts connections by address.

    Args:
        most: connections at once; 0: as many as descriptors allow (:func:`most_connections`).
        most_per_ip: of one address; 0: no limit of its own.
    """

    def __init__(self, most: int = 0, most_per_ip: int = 0) -> None:
        self._most = most or most_connections()
        self._most_per_ip = most_per_ip
        self._open = 0
        self._by_ip: dict[str, int] = {}

    @property
    def open(self) -> int:
        """Connections now."""
        return self._open

    def enter(self, address: str) -> str | None:
        """Count a connection; why it is one too many, or None. Either way :meth:`leave` it."""
        self._open += 1
        here = self._by_ip[address] = self._by_ip.get(address, 0) + 1
        if self._open > self._most:
            return f"This gateway has its {self._most} connections already."
        if self._most_per_ip and here > self._most_per_ip:
            return f"Your address has its {self._most_per_ip} connections already."
        return None

    def leave(self, address: str) -> None:
        """A counted connection has ended."""
        self._open -= 1
        left = self._by_ip[address] - 1
        if left:
            self._by_ip[address] = left
        else:
            del self._by_ip[address]


def raise_descriptor_limit() -> None:
    """Use as many descriptors as this process may: a shell gives 1,024 of them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def most_connections() -> int:
    """Clients' connections for which there are descriptors: each may need another one, to an
    engine."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, (soft - _OWN_DESCRIPTORS) // 2)
