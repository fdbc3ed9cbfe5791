"""SagePorts: the one table of default ports, and who may use which.

Each port is overridable by ``SAGE_PORT_<NAME>``. A default that is taken gives way to the next
free port; a port that somebody chose explicitly and that is taken is an error.
"""

from __future__ import annotations

import enum
import os
import socket
from collections.abc import Iterable
from pathlib import Path

from sage_prefect.common.errors import PortInUseError, SettingsError


class SagePorts(enum.IntEnum):
    """Default port per service; :meth:`resolve` applies ``SAGE_PORT_<NAME>``."""

    GATEWAY = 8888
    LLM = 8001
    LLM_2 = 8002
    LLM_WSL = 8901
    EMBEDDING = 8090
    EMBEDDING_2 = 8091
    BENCH_LLM = 8911
    BENCH_EMBEDDING = 8912
    BENCH_API = 8913
    PREFECT = 4200
    DASK_SCHEDULER = 8786
    DASK_DASHBOARD = 8787

    @property
    def variable(self) -> str:
        """The environment variable that overrides this port."""
        return f"SAGE_PORT_{self.name}"

    def resolve(self) -> int:
        """The port number after the environment's say.

        Raises:
            SettingsError: the variable holds no port number.
        """
        return self.override() or int(self.recommended())

    def override(self) -> int | None:
        """The port that the environment sets, or None."""
        value = os.environ.get(self.variable)
        if value is None or not value.strip():
            return None
        try:
            port = int(value)
        except ValueError:
            port = -1
        if not 1 <= port <= 65535:
            raise SettingsError(
                f"{self.variable}={value!r} is not a port.", hint="Use a number from 1 to 65535."
            )
        return port

    def recommended(self) -> SagePorts:
        """This port, or its replacement under WSL2 (8001 often stays reserved by Windows there)."""
        return SagePorts.LLM_WSL if self is SagePorts.LLM and is_wsl2() else self


def is_wsl2(version_file: Path = Path("/proc/version")) -> bool:
    """Whether this is Linux under WSL2 (its kernel names itself after Microsoft)."""
    try:
        return "microsoft" in version_file.read_text().lower()
    except OSError:
        return False


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a listener could bind ``host:port`` now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def choose_port(
    name: SagePorts,
    *,
    explicit: int | None = None,
    host: str = "127.0.0.1",
    avoid: Iterable[int] = (),
    tries: int = 200,
) -> int:
    """A port to listen on: the explicit one, else the default or the next free one above it.

    Args:
        name: the service's row of the table.
        explicit: a port that the user chose (CLI); ``SAGE_PORT_<NAME>`` counts as such too.
        host: the address that will be bound.
        avoid: ports promised to others that do not listen yet.
        tries: how many ports above the default are looked at.

    Raises:
        PortInUseError: the explicit port is taken, or no port is free.
    """
    chosen = explicit if explicit is not None else name.override()
    if chosen is not None:
        if chosen not in set(avoid) and is_free(chosen, host):
            return chosen
        origin = f" ({name.variable})" if explicit is None else ""
        raise PortInUseError(
            f"port {chosen}{origin}, chosen for {name.name.lower()}, is taken on {host}.",
            hint="Stop what listens there, choose another port, or leave the choice to SAGE.",
        )
    taken = set(avoid)
    first = int(name.recommended())
    for port in range(first, min(first + tries, 65536)):
        if port not in taken and is_free(port, host):
            return port
    raise PortInUseError(
        f"no free port for {name.name.lower()} in {first}..{first + tries - 1} on {host}.",
        hint=f"Set {name.variable} to a free port.",
    )
