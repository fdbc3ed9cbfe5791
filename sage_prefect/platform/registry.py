"""The supervisor's memory: ``services.json`` in the state directory, and the control socket's path.

It outlives the supervisor: the next one reads which processes the former left behind, and which
services were wanted. Readable by its owner only, as environments may hold secrets.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sage_prefect.common.errors import ServiceError
from sage_prefect.common.paths import atomic_write, state_dir
from sage_prefect.platform.processes import ProcessId, boot_id
from sage_prefect.platform.service import ServiceSpec, ServiceState

VERSION = 1
# struct sockaddr_un holds 108 bytes with the closing zero.
SOCKET_PATH_BYTES = 107


class Record(BaseModel):
    """One service in the file."""

    model_config = ConfigDict(extra="ignore")

    spec: ServiceSpec
    state: ServiceState
    process: tuple[int, int] | None = None  # pid, start ticks
    wanted: bool = True


class Registry(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="ignore")

    version: int = VERSION
    boot_id: str = ""
    supervisor: tuple[int, int] | None = None
    services: dict[str, Record] = Field(default_factory=dict)

    def leaders(self) -> list[ProcessId]:
        """Session leaders that the file records; none when the machine was booted since."""
        if self.boot_id != boot_id():
            return []
        return [ProcessId(*record.process) for record in self.services.values() if record.process]


def registry_file() -> Path:
    """Where the registry lies."""
    return state_dir() / "services.json"


def read_registry() -> Registry:
    """The registry as last written; an empty one when there is none.

    Raises:
        ServiceError: the file is damaged. It is written atomically, so somebody else did that.
    """
    file = registry_file()
    try:
        return Registry.model_validate(orjson.loads(file.read_bytes()))
    except FileNotFoundError:
        return Registry()
    except (orjson.JSONDecodeError, ValidationError) as error:
        raise ServiceError(
            f"the service registry {file} is damaged: {str(error).splitlines()[0]}.",
            hint=f"Look for leftover processes, then delete {file}.",
        ) from error


def write_registry(records: Mapping[str, Record], supervisor: ProcessId) -> None:
    """Replace the file.

    Raises:
        ServiceError: it cannot be written (full disk, read-only directory).
    """
    registry = Registry(
        boot_id=boot_id(),
        supervisor=(supervisor.pid, supervisor.start_ticks),
        services=dict(records),
    )
    data = orjson.dumps(registry.model_dump(mode="json"), option=orjson.OPT_INDENT_2)
    try:
        atomic_write(registry_file(), data, mode=0o600)
    except OSError as error:
        raise ServiceError(
            f"cannot write the service registry {registry_file()}: {error.strerror}.",
            hint="Make room or make the directory writable, or set SAGE_HOME to another one.",
        ) from error


def require_state_dir() -> Path:
    """The state directory, made where there is none.

    Raises:
        ServiceError: it cannot be made or written.
    """
    folder = state_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise _unusable(folder, error.strerror or str(error)) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _unusable(folder, "it is not writable")
    return folder


def _unusable(folder: Path, why: str) -> ServiceError:
    return ServiceError(
        f"cannot use the state directory {folder}: {why}.",
        hint="Make it writable, or set SAGE_HOME to a directory of yours.",
    )


def socket_path() -> Path:
    """The control socket: in the state directory, or where that path is too long in a short one.

    Raises:
        ServiceError: the short directory cannot be used.
    """
    path = state_dir() / "supervisor.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES:
        return path
    digest = hashlib.sha256(os.fsencode(state_dir())).hexdigest()[:16]
    return runtime_dir() / f"{digest}.sock"


def runtime_dir() -> Path:
    """A directory of this user alone that all supervisors share, gone after a boot.

    Raises:
        ServiceError: somebody else made it.
    """
    folder = Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp") / f"sage-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ServiceError(
            f"cannot make the directory {folder}: {error.strerror}.",
            hint="Set XDG_RUNTIME_DIR to a writable directory of yours.",
        ) from error
    status = folder.lstat()
    # /tmp is everyone's: another user may have made this name to catch our commands.
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o077:
        raise ServiceError(
            f"{folder} is not a private directory of user {os.getuid()}.",
            hint="Remove it, or set XDG_RUNTIME_DIR to a directory of yours.",
        )
    return folder
