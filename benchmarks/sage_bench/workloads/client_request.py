"""One request of a workload, before any gateway has seen it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sage_prefect.control_plane.events import Band

RequestKind = Literal["chat", "embedding"]


@dataclass(frozen=True, slots=True)
class Slo:
    """What counts as served well; seconds. None: no wish. All that are set must hold."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None


@dataclass(frozen=True, slots=True)
class Traffic:
    """What all requests of one workload have in common."""

    name: str
    model: str
    kind: RequestKind = "chat"
    band: Band = Band.INTERACTIVE
    stream: bool = True
    slo: Slo = Slo()
    patience_s: float | None = None
    """After so many seconds without a first token the client hangs up."""


class ClientRequest:
    """One request; lengths are tokens, times seconds since the workload's start.

    ``inputs`` are the lengths of an embedding call's inputs. ``chain`` holds one hash per full
    block of the prompt, ``chain_after`` the same of prompt and answer.
    """

    __slots__ = (
        "at",
        "chain",
        "chain_after",
        "inputs",
        "output",
        "prompt",
        "session",
        "tenant",
        "traffic",
    )

    def __init__(
        self,
        at: float,
        traffic: Traffic,
        tenant: str,
        prompt: int,
        output: int,
        *,
        inputs: tuple[int, ...] = (),
        session: str | None = None,
        chain: tuple[int, ...] = (),
        chain_after: tuple[int, ...] = (),
    ) -> None:
        self.at = at
        self.traffic = traffic
        self.tenant = tenant
        self.prompt = prompt
        self.output = output
        self.inputs = inputs
        self.session = session
        self.chain = chain
        self.chain_after = chain_after
