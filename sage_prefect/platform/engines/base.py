"""The contract of an engine driver.

A driver knows one kind of model server. It starts nothing itself: it answers whether the server
can run here (:meth:`EngineDriver.availability`) and describes a service
(:meth:`EngineDriver.service`), which the supervisor then starts, probes, restarts, drains and
stops. Every server speaks the OpenAI protocol under ``/v1``.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from sage_prefect.common.errors import ModelNotFoundError, ServiceError
from sage_prefect.platform.model_files import ModelMode
from sage_prefect.platform.models import ModelFiles
from sage_prefect.platform.service import ServiceSpec

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Availability:
    """Whether a driver's server can run here.

    Attributes:
        ok: it can.
        detail: version and place of the server, or why it cannot run.
        hint: what to do about it; None when it can run.
    """

    ok: bool
    detail: str
    hint: str | None = None


@dataclass(frozen=True)
class EngineOptions:
    """What a user may choose about an engine; a driver ignores what its server does not have.

    Attributes:
        slots: requests that the engine works on at once.
        context: context window per request, in tokens.
        threads: CPU threads; None for all cores.
        gpu_memory_mib: GPU memory to claim; None lets the driver estimate it.
        base_url, api_key, upstream_model: of an external server (``openai`` driver).
        extra: more arguments for the server's command line, appended as they are.
    """

    slots: int = 4
    context: int = 2048
    threads: int | None = None
    device: Device = "auto"
    gpu_memory_mib: int | None = None
    start_timeout_s: float = 300.0
    base_url: str | None = None
    api_key: str | None = None
    upstream_model: str | None = None
    extra: tuple[str, ...] = field(default=())


class EngineDriver(abc.ABC):
    """One kind of model server."""

    #: Name in the table of drivers.
    name: ClassVar[str]
    #: What its models can do.
    modes: ClassVar[frozenset[ModelMode]]
    #: Our name -> the server's Prometheus metric, for what the server reports of its load:
    #: ``running`` and ``waiting`` requests, ``kv_usage`` (0 to 1), ``prompt_tokens`` and
    #: ``generated_tokens`` (counters).
    metrics: ClassVar[Mapping[str, str]] = {}

    @abc.abstractmethod
    def availability(self) -> Availability:
        """Whether its server can run here. Quick: imports nothing heavy, starts nothing."""

    @abc.abstractmethod
    def service(
        self,
        model: str,
        *,
        name: str | None = None,
        port: int | None = None,
        options: EngineOptions | None = None,
    ) -> ServiceSpec:
        """Describe the service that serves ``model``.

        Args:
            model: a catalog name, a pulled model or a path.
            name: of the service and of the engine at the gateway; default: the model's name.
            port: explicit port; None: the driver's row of SagePorts, or the next free one.
            options: what the user chose.

        Raises:
            ModelNotFoundError: the model is not here, or the server cannot load its format.
            ServiceError: the server cannot run here (see :meth:`availability`).
        """

    def require_available(self) -> None:
        """Raise unless the server can run here.

        Raises:
            ServiceError: with the reason and the way out.
        """
        found = self.availability()
        if not found.ok:
            raise ServiceError(f"engine {self.name!r} cannot run: {found.detail}", hint=found.hint)

    def require_mode(self, model: ModelFiles) -> None:
        """Raise unless models of this mode can be served.

        Raises:
            ModelNotFoundError: names the model, its mode and those that this driver serves.
        """
        if model.mode not in self.modes:
            raise ModelNotFoundError(
                f"model {model.name!r} is of mode {model.mode!r}; engine {self.name!r} serves "
                f"{', '.join(sorted(self.modes))}.",
                hint="Chat models: `sage llm serve`; embedding models and rerankers: "
                "`sage embedding serve`.",
            )


def service_name(model: str) -> str:
    """A service name made from a model's: other characters become dashes."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-._")
    return cleaned[:63] or "engine"
