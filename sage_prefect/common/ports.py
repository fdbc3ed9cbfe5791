"""SagePorts: the one table of default ports, and who may use which.

Each port is overridable by ``SAGE_PORT_<NAME>``. A default that is taken gives way to the next
free port; a port that somebody chose explicitly and that is taken is an error.
"""

from __future__ import annotations

import enum
import errno
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
    return _bind_error(port, host) is None


def _bind_error(port: int, host: str) -> OSError | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None


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
        SettingsError: the explicit port is not a port, needs root, or ``host`` is not ours.
    """
    service = name.name.lower()
    taken = set(avoid)
    chosen = explicit if explicit is not None else name.override()
    if chosen is not None:
        origin = f" ({name.variable})" if explicit is None else ""
        what = f"port {chosen}{origin}, chosen for {service},"
        if not 1 <= chosen <= 65535:
            raise SettingsError(f"{what} is not a port.", hint="Use a number from 1 to 65535.")
        error = _bind_error(chosen, host)
        if chosen not in taken and error is None:
            return chosen
        if error is not None:
            _refuse_host(error, host)
            if error.errno == errno.EACCES:
                raise SettingsError(
                    f"{what} may only be bound by root.", hint="Use a port from 1024 on."
                )
        raise PortInUseError(
            f"{what} is taken on {host}.",
            hint="Stop what listens there, choose another port, or leave the choice to SAGE.",
        )
    first = int(name.recommended())
    for port in range(first, min(first + tries, 65536)):
        if port in taken:
            continue
        error = _bind_error(port, host)
        if error is None:
            return port
        _refuse_host(error, host)
    raise PortInUseError(
        f"no free port for {service} in {first}..{first + tries - 1} on {host}.",
        hint=f"Set {name.variable} to a free port.",
    )


def _refuse_host(error: OSError, host: str) -> None:
    """Raise when ``error`` is about the address, so that it does not read as a taken port."""
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        raise SettingsError(
            f"host {host!r} is no address of this machine.",
            hint="Use 127.0.0.1 (this machine only), 0.0.0.0 (all addresses) or one of its own.",
        ) from error
