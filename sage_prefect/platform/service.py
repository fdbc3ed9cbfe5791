"""What a supervised service is: its command, ports, probes and limits, as plain data.

A spec travels as JSON from a client to the supervisor and into the registry file. Placeholders
in ``command``, ``env``, ``endpoints``, probe targets and ``engine.base_url`` are filled by the
supervisor when it starts the service, because it is the one that knows the ports:

* ``{port}`` the first port, ``{port.NAME}`` a named one;
* ``{endpoint.NAME}`` the published URL of another running service.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sage_prefect.common.errors import ServiceError
from sage_prefect.common.ports import SagePorts

ServiceStatus = Literal[
    "stopped",  # not wanted; or a former supervisor ended without stopping it
    "waiting",  # for another service that it needs
    "starting",
    "ready",
    "unhealthy",  # was ready; its liveness probe fails now
    "backoff",  # ended by itself; will be started again
    "stopping",
    "failed",  # given up; `detail` says why, with the last lines of its log
]
ACTIVE: frozenset[ServiceStatus] = frozenset(
    {"waiting", "starting", "ready", "unhealthy", "backoff", "stopping"}
)


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Probe(_Data):
    """A question whose answer says whether a service works.

    ``http``: GET ``target``; the status must be in ``statuses``, the body must match ``matches``
    and must not match ``absent`` (regular expressions). ``tcp``: connect to ``host:port``.
    ``unix``: connect to a socket path. ``file``: the path exists and is newer than the process.
    ``callable``: ``package.module:function``, called without arguments in a thread of the
    supervisor; it returns None when all is well or a sentence that says what is not.
    """

    kind: Literal["http", "tcp", "unix", "file", "callable"]
    target: str
    statuses: tuple[int, ...] = (200,)
    matches: str | None = None
    absent: str | None = None
    headers: Mapping[str, str] = Field(default_factory=dict)
    timeout_s: float = Field(5.0, gt=0)


class PortClaim(_Data):
    """A port that a service will listen on.

    Attributes:
        name: what ``{port.NAME}`` refers to.
        row: the name of a :class:`SagePorts` row, or None for any free port.
        explicit: a port that the user chose; taken means :class:`PortInUseError`.
    """

    name: str = "http"
    row: str | None = None
    explicit: int | None = Field(None, ge=1, le=65535)
    host: str = "127.0.0.1"

    @field_validator("row")
    @classmethod
    def _known_row(cls, value: str | None) -> str | None:
        if value is not None and value not in SagePorts.__members__:
            raise ValueError(f"no row {value!r} in SagePorts")
        return value

    @classmethod
    def of(
        cls,
        row: SagePorts,
        explicit: int | None = None,
        *,
        name: str = "http",
        host: str = "127.0.0.1",
    ) -> PortClaim:
        """A claim for a row of the table; ``SAGE_PORT_<NAME>`` of this process counts as chosen."""
        chosen = explicit if explicit is not None else row.override()
        return cls(name=name, row=row.name, explicit=chosen, host=host)


class GpuClaim(_Data):
    """GPU memory that a service will use. ``device`` None lets the supervisor choose one."""

    memory_mib: int = Field(gt=0)
    device: int | None = Field(None, ge=0)


class ServedModel(_Data):
    """A model name that an engine serves."""

    name: str
    mode: Literal["chat", "embedding", "rerank"]


class EngineRegistration(_Data):
    """What the gateway is told about an engine (POST /v1/management/engines)."""

    base_url: str
    models: tuple[ServedModel, ...]
    driver: str
    device: str = "cpu"
    max_concurrency: int = Field(8, ge=1)
    api_key: str | None = None
    upstream_model: str | None = None
    accelerator: str | None = None
    """Its physical device: engines that name the same one share it. The supervisor fills it in."""

    def on(self, host: str, gpus: Sequence[int]) -> EngineRegistration:
        """The same, once it is known which GPUs of ``host`` it has. One that has several shares
        none of them as a whole, and names none."""
        if len(gpus) != 1 or self.accelerator is not None:
            return self
        return self.model_copy(update={"accelerator": f"{host}/gpu{gpus[0]}"})


class RestartPolicy(_Data):
    """When a service that ended by itself is started again.

    A service that was ready is restarted after ``first_delay_s``, doubled each time up to
    ``max_delay_s``; after ``limit`` restarts within ``window_s`` it is given up. One that never
    became ready is given up at once: the same start would most likely fail the same way.
    """

    limit: int = Field(5, ge=0)
    window_s: float = Field(300.0, gt=0)
    first_delay_s: float = Field(0.5, ge=0)
    max_delay_s: float = Field(30.0, ge=0)

    def delay_s(self, restarts: int) -> float:
        """Seconds to wait before restart number ``restarts`` (from 1)."""
        return float(min(self.first_delay_s * 2 ** (restarts - 1), self.max_delay_s))


class ServiceSpec(_Data):
    """One service, as wanted.

    Attributes:
        name: unique in the supervisor; also the name of the log file.
        command: argv; empty for an external service, which is only probed.
        kind: for people: ``gateway``, ``prefect``, ``dask``, ``engine``...
        env: added to the supervisor's own environment.
        ready: the probe that ends the start. None: ready as soon as it runs.
        live: asked every ``live_period_s`` afterwards; default: ``ready``.
        live_failures: consecutive failures after which the process is replaced.
        endpoints: published while ready, name -> URL; default: ``{name: http://host:port}``
            where there is a port.
        after: services that must be ready before this one starts.
        drain: polled at stop before SIGTERM until it succeeds, for ``drain_timeout_s`` at most.
        stop_timeout_s: from SIGTERM to SIGKILL.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    command: tuple[str, ...] = ()
    kind: str = "service"
    env: Mapping[str, str] = Field(default_factory=dict)
    cwd: str | None = None
    ports: tuple[PortClaim, ...] = ()
    ready: Probe | None = None
    live: Probe | None = None
    live_period_s: float = Field(5.0, gt=0)
    live_failures: int = Field(6, ge=1)
    probe_period_s: float = Field(0.1, gt=0)
    start_timeout_s: float = Field(120.0, gt=0)
    stop_timeout_s: float = Field(10.0, gt=0)
    restart: RestartPolicy = RestartPolicy()
    endpoints: Mapping[str, str] | None = None
    after: tuple[str, ...] = ()
    drain: Probe | None = None
    drain_timeout_s: float = Field(10.0, ge=0)
    engine: EngineRegistration | None = None
    gpu: tuple[GpuClaim, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> ServiceSpec:
        names = [claim.name for claim in self.ports]
        if len(set(names)) != len(names):
            raise ValueError(f"two ports of one name: {names}")
        if not self.command and self.ready is None:
            raise ValueError("an external service (no command) needs a ready probe")
        if self.name in self.after:
            raise ValueError("a service cannot wait for itself")
        return self

    def filled(self, ports: Mapping[str, int], endpoints: Mapping[str, str]) -> ServiceSpec:
        """This spec with its placeholders filled.

        Raises:
            ServiceError: a placeholder names a port or an endpoint that there is not.
        """

        def fill(text: str) -> str:
            return fill_placeholders(text, self.name, ports, endpoints)

        def fill_probe(probe: Probe | None) -> Probe | None:
            return probe and probe.model_copy(update={"target": fill(probe.target)})

        engine = self.engine
        if engine is not None:
            engine = engine.model_copy(update={"base_url": fill(engine.base_url)})
        published = self.endpoints
        if published is None:
            first = self.ports[0] if self.ports else None
            published = {self.name: f"http://{first.host}:{{port}}"} if first else {}
        return self.model_copy(
            update={
                "command": tuple(fill(part) for part in self.command),
                "env": {key: fill(value) for key, value in self.env.items()},
                "ready": fill_probe(self.ready),
                "live": fill_probe(self.live),
                "drain": fill_probe(self.drain),
                "endpoints": {name: fill(url) for name, url in published.items()},
                "engine": engine,
            }
        )


_PLACEHOLDER = re.compile(r"\{(port|endpoint)(?:\.([A-Za-z0-9._-]+))?\}")


def fill_placeholders(
    text: str, service: str, ports: Mapping[str, int], endpoints: Mapping[str, str]
) -> str:
    """Replace ``{port}``, ``{port.NAME}`` and ``{endpoint.NAME}``; other braces stay.

    Raises:
        ServiceError: names the placeholder that cannot be filled.
    """

    def value(match: re.Match[str]) -> str:
        kind, name = match.group(1), match.group(2)
        if kind == "port" and ports:
            port = ports.get(name) if name else next(iter(ports.values()))
            if port is not None:
                return str(port)
        if kind == "endpoint" and name in endpoints:
            return endpoints[name]
        known = ", ".join(ports if kind == "port" else endpoints) or "none"
        raise ServiceError(
            f"service {service!r} uses {match.group(0)}, which is not known.",
            hint=f"Known {kind}s: {known}. Name the services it needs in `after`.",
        )

    return _PLACEHOLDER.sub(value, text)


class ServiceState(_Data):
    """One service, as it is.

    Attributes:
        since: when it was last started, seconds since the epoch; None when it never was.
        ready_s: seconds that the last start took; None while it was not ready.
        restarts: automatic restarts since it was asked for.
        registered: whether the gateway knows it (engines only; None otherwise).
        detail: why it is not ready, in a sentence; may hold the last log lines.
    """

    name: str
    kind: str
    status: ServiceStatus
    pid: int | None = None
    ports: Mapping[str, int] = Field(default_factory=dict)
    endpoints: Mapping[str, str] = Field(default_factory=dict)
    since: float | None = None
    ready_s: float | None = None
    restarts: int = 0
    registered: bool | None = None
    detail: str = ""
    log_file: str = ""
    models: tuple[str, ...] = ()
    driver: str | None = None

    @property
    def url(self) -> str | None:
        """The first published endpoint."""
        return next(iter(self.endpoints.values()), None)

    @property
    def uptime_s(self) -> float | None:
        """Seconds since the last start."""
        return None if self.since is None else max(0.0, time.time() - self.since)
