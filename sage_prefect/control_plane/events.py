"""The schema of the control plane: what goes in (events) and what comes out (actions).

Both drivers (gateway, simulator) speak exactly these types, so that a recorded live log replays
in the simulator. Times are seconds of the driver's monotonic clock; tokens and bytes are counts.
Fields are plain values: each type turns into one JSON object. Any change that an old log could
not be read with raises ``SCHEMA_VERSION``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal, TypeAlias

SCHEMA_VERSION = 1

Kind = Literal["chat", "completion", "embedding"]


class Band(enum.IntEnum):
    """Urgency of a request; a lower number goes first."""

    CRITICAL = 0
    INTERACTIVE = 1
    STANDARD = 2
    BATCH = 3

    @property
    def label(self) -> str:
        """The name used in headers and configuration."""
        return self.name.lower()


class EngineState(str, enum.Enum):
    """Whether an engine may get new requests."""

    READY = "ready"
    SUSPECT = "suspect"
    """It failed; it is probed and gets nothing until it answers again."""
    DRAINING = "draining"
    """It finishes what it has and gets nothing new."""


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """What the scheduler knows of a request: never the text itself."""

    request_id: str
    """Unique among the requests that are queued or running."""
    model: str
    kind: Kind = "chat"
    tenant: str = "default"
    band: Band = Band.STANDARD
    stream: bool = False
    body_bytes: int = 0
    prompt_tokens: int = 0
    """Estimate; no tokenizer is run."""
    max_tokens: int | None = None
    deadline: float | None = None
    """Absolute time after which nobody wants the answer."""
    session: str | None = None


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What the scheduler knows of an engine."""

    name: str
    models: tuple[str, ...]
    max_concurrency: int = 8
    """The window: requests that may be inside the engine at once."""
    driver: str = "openai"
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps of the queue and of retries."""

    max_queued_requests: int = 4096
    max_queued_bytes: int = 1 << 30
    queue_timeout_s: float = 120.0
    """A request that no engine took by then is rejected."""
    max_retries: int = 2
    """Further attempts on other engines, before the first byte only."""


class FailureCause(str, enum.Enum):
    """Low-cardinality reason of a failed attempt."""

    CONNECT = "connect"
    RESET = "reset"
    TIMEOUT = "timeout"
    STATUS = "status"
    PROTOCOL = "protocol"
    INTERNAL = "internal"


# -- events -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request has been read and checked."""

    request: RequestInfo


@dataclass(frozen=True, slots=True)
class FirstToken:
    """The first byte of the answer's body has come from the engine."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Progress:
    """A stream goes on; sent at most once per stream and 250 ms."""

    request_id: str
    chunks: int


@dataclass(frozen=True, slots=True)
class Done:
    """The engine has finished the answer. Token counts come from its ``usage``, if it gave one."""

    request_id: str
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """An attempt failed. ``retryable``: nothing was sent to the client, another engine may try."""

    request_id: str
    engine: str
    cause: FailureCause
    retryable: bool
    message: str = ""


@dataclass(frozen=True, slots=True)
class Cancel:
    """The client has gone, or the driver gives the request up."""

    request_id: str


@dataclass(frozen=True, slots=True)
class EngineReport:
    """What a probe, or the lack of an answer, says of an engine."""

    engine: str
    state: EngineState
    detail: str = ""


@dataclass(frozen=True, slots=True)
class EngineAdded:
    """An engine was registered, or registered again with another specification."""

    spec: EngineSpec


@dataclass(frozen=True, slots=True)
class EngineRemoved:
    """An engine was taken away. Requests inside it run to their end unless ``abort``."""

    engine: str
    abort: bool = False


@dataclass(frozen=True, slots=True)
class PolicyChanged:
    """Another policy takes over the queue; nothing queued is lost."""

    policy: str


@dataclass(frozen=True, slots=True)
class LimitsChanged:
    """New caps; requests already queued stay."""

    limits: Limits


@dataclass(frozen=True, slots=True)
class Timer:
    """The time that a ``SetTimer`` named has come."""


Event: TypeAlias = (
    Arrival
    | FirstToken
    | Progress
    | Done
    | Failed
    | Cancel
    | EngineReport
    | EngineAdded
    | EngineRemoved
    | PolicyChanged
    | LimitsChanged
    | Timer
)


# -- actions ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send the request to this engine now."""

    request_id: str
    engine: str
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Reject:
    """Answer the request with an error. ``status`` is HTTP's; ``retry_after`` is in seconds."""

    request_id: str
    status: int
    code: str
    message: str
    retry_after: int | None = None
    engine: str | None = None


@dataclass(frozen=True, slots=True)
class Abort:
    """End the running attempt: close its connection to the engine."""

    request_id: str
    engine: str
    reason: str


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Send :class:`Timer` at this time. A later ``SetTimer`` replaces an earlier one."""

    at: float


Action: TypeAlias = Dispatch | Reject | Abort | SetTimer
