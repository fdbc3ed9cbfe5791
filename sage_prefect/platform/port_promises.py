"""Ports promised to services that may not listen yet.

A promise is a file lock that all supervisors of this user respect (two stacks with different
``SAGE_HOME`` choose among the same defaults); it ends with its supervisor.
"""

from __future__ import annotations

import fcntl
import socket
from collections.abc import Mapping, Sequence
from typing import IO

from sage_prefect.common.errors import PortInUseError
from sage_prefect.common.ports import SagePorts, choose_port, is_free
from sage_prefect.platform.registry import runtime_dir
from sage_prefect.platform.service import PortClaim


class PortPromises:
    """The promises of one supervisor."""

    def __init__(self) -> None:
        self._held: dict[str, dict[int, IO[bytes]]] = {}  # service -> port -> lock

    def promise(self, service: str, claims: Sequence[PortClaim]) -> dict[str, int]:
        """Choose a port per claim and promise it to ``service``; claim name -> port.

        Raises:
            PortInUseError: an explicit port is taken or promised, or none is free; nothing is
                promised then.
        """
        ports: dict[str, int] = {}
        try:
            for claim in claims:
                ports[claim.name] = self._promise_one(service, claim)
        except PortInUseError:
            self.release(service)
            raise
        return ports

    def replace_taken(
        self, service: str, claims: Sequence[PortClaim], ports: Mapping[str, int]
    ) -> dict[str, int] | None:
        """New ports where somebody took one before the service bound it; None when none is taken.

        Explicit ports are never replaced.
        """
        changed = dict(ports)
        for claim in claims:
            port = ports[claim.name]
            if claim.explicit is None and not is_free(port, claim.host):
                self._held.get(service, {}).pop(port).close()
                changed[claim.name] = self._promise_one(service, claim)
        return changed if changed != dict(ports) else None

    def release(self, service: str) -> None:
        """Take back the promises of a service; unknown names are fine."""
        for lock in self._held.pop(service, {}).values():
            lock.close()

    def _promise_one(self, service: str, claim: PortClaim) -> int:
        avoid = {port for held in self._held.values() for port in held}
        while True:
            port = _choose(claim, avoid)
            lock = _lock(port)
            if lock is not None:
                self._held.setdefault(service, {})[port] = lock
                return port
            avoid.add(port)


def _lock(port: int) -> IO[bytes] | None:
    """The lock of a port, or None when another supervisor holds it."""
    file = (runtime_dir() / f"port-{port}.lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _choose(claim: PortClaim, avoid: set[int]) -> int:
    if claim.row is not None:
        return choose_port(
            SagePorts[claim.row], explicit=claim.explicit, host=claim.host, avoid=avoid
        )
    if claim.explicit is None:
        return _any_port(claim.host, avoid)
    if claim.explicit in avoid or not is_free(claim.explicit, claim.host):
        raise PortInUseError(
            f"port {claim.explicit} is taken on {claim.host}.",
            hint="Stop what listens there, or choose another port.",
        )
    return claim.explicit


def _any_port(host: str, avoid: set[int]) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
            port = int(probe.getsockname()[1])
        if port not in avoid:
            return port
