"""The schema of the control plane: what goes in (events) and what comes out (actions).

Both drivers (gateway, simulator) speak exactly these types, so that a recorded live log replays
in the simulator. Times are seconds of the driver's monotonic clock; tokens and bytes are counts.
Fields are plain values: each type turns into one JSON object. Any change that an old log could
not be read with raises ``SCHEMA_VERSION``.
"""

from __future__ import annotations

import enum
from typing import Literal, TypeAlias

from sage_prefect.control_plane.event_record import record

SCHEMA_VERSION = 3
READABLE_VERSIONS = (2, 3)
"""Logs that this schema reads: version 3 only added fields and ``AbortBatch`` to version 2."""

PREFIX_BLOCK_TOKENS = 64

Kind = Literal["chat", "completion", "embedding", "rerank"]


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
    COLD = "cold"
    """It is being started and cannot serve yet: requests with time to spare may wait for it."""
    WARMING = "warming"
    """It serves, from empty caches and with a small window."""
    SUSPECT = "suspect"
    """It failed; it is probed and gets nothing until it answers again."""
    DRAINING = "draining"
    """It finishes what it has and gets nothing new."""
    DOWN = "down"
    """It does not answer probes."""


@record(slots=True)
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
    ttft_slo_s: float | None = None
    """Wished time to the first token; None: the band's."""
    tpot_slo_s: float | None = None
    """Wished time per output token after the first; None: the band's."""
    output_estimate: int | None = None
    """Likely length of all its answers, learned from earlier ones of this tenant and model."""
    prefix: tuple[int, ...] = ()
    """Chain hashes of the prompt's leading blocks of ``PREFIX_BLOCK_TOKENS`` tokens: an equal hash
    at place i means that the first i + 1 blocks are equal."""
    inputs: tuple[int, ...] = ()
    """Of an embedding or rerank call: estimated tokens of each input."""
    input_keys: tuple[int, ...] = ()
    """Hash of each input, for de-duplication; empty: none is known to equal another."""
    merge_key: int | None = None
    """Of an embedding call: inputs of calls with equal keys may share one call of an engine. None:
    it goes to its engine as it came, whole and alone."""
    answers: int | None = None
    """So many answers are wanted (``n``, or several prompts in one call); None: one."""


@record(slots=True)
class EngineProfile:
    """How long an engine's work takes, in seconds: the prior that is corrected online.

    An LLM iteration with p prefill tokens, n decoding sequences and C tokens of their context takes
    ``c0 + a*p + b*n + g*C``; an embedding call over t tokens ``s0 + alpha*t``.
    """

    c0: float = 0.0
    a: float = 0.0
    b: float = 0.0
    g: float = 0.0
    s0: float = 0.0
    alpha: float = 0.0
    source: str = ""


@record(slots=True)
class EngineGauges:
    """What an engine says of itself; late, so it only corrects drift. None: not said."""

    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    """Used share of the KV cache, 0 to 1."""
    preemptions: float | None = None
    """Counter since its start."""


@record(slots=True)
class EngineSpec:
    """What the scheduler knows of an engine."""

    name: str
    models: tuple[str, ...]
    max_concurrency: int = 8
    """The window: requests that may be inside the engine at once."""
    driver: str = "openai"
    device: str = "cpu"
    price: float = 1.0
    """Cost of its time, relative to other engines."""
    profile: EngineProfile | None = None
    kv_tokens: int | None = None
    """Tokens that its KV cache holds."""
    max_batch_tokens: int | None = None
    """Token budget of one iteration (LLM) or one call (embedding)."""
    padded: bool = False
    """An embedding engine that pads a batch to its longest input."""
    cold: bool = False
    """It is not up yet: it starts as COLD."""
    max_batch_inputs: int | None = None
    """Inputs that an embedding engine takes in one call; None: OpenAI's 2,048."""
    accelerator: str | None = None
    """The physical device that it runs on: engines that name the same one share it."""
    weight: float = 1.0
    """How often policy ``random`` draws it, beside the others."""


@record(slots=True)
class BandSpec:
    """Promises and guards of one band."""

    band: Band
    ttft_slo_s: float | None = None
    tpot_slo_s: float | None = None
    min_share: float = 0.0
    """Share of engine time that it gets although more urgent bands wait."""
    age_limit_s: float | None = None
    """After this wait a request moves up by one band."""
    reject_share: float | None = None
    """Rejected at arrival when the predicted wait is over this share of its slack; None: never."""


@record(slots=True)
class TenantSpec:
    """What one tenant gets."""

    name: str
    weight: float = 1.0
    """Share of engine time beside other tenants of its band."""
    max_queued: int | None = None
    max_running: int | None = None


@record(slots=True)
class Limits:
    """Caps of the queue and of retries."""

    max_queued_requests: int = 4096
    max_queued_bytes: int = 1 << 30
    queue_timeout_s: float = 120.0
    """A request that no engine took by then is rejected."""
    max_retries: int = 2
    """Further attempts on other engines, before the first byte only."""
    unavailable_wait_s: float = 10.0
    """While all engines of its model are down or suspect a request waits so long for one to come
    back; 0: it is rejected at once."""


class FailureCause(str, enum.Enum):
    """Low-cardinality reason of a failed attempt."""

    CONNECT = "connect"
    RESET = "reset"
    TIMEOUT = "timeout"
    STATUS = "status"
    OVERLOADED = "overloaded"
    """It says that it has no room (429, 503)."""
    PROTOCOL = "protocol"
    INTERNAL = "internal"


# -- events -------------------------------------------------------------------------------


@record(slots=True)
class Arrival:
    """A request has been read and checked."""

    request: RequestInfo


@record(slots=True)
class FirstToken:
    """The first byte of the answer's body has come from the engine."""

    request_id: str


@record(slots=True)
class Progress:
    """A stream goes on; sent at most once per stream and 250 ms."""

    request_id: str
    chunks: int


@record(slots=True)
class Done:
    """The engine has finished the answer. Token counts come from its ``usage``, if it gave one."""

    request_id: str
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None


@record(slots=True)
class Failed:
    """An attempt failed. ``retryable``: nothing was sent to the client, another engine may try."""

    request_id: str
    engine: str
    cause: FailureCause
    retryable: bool
    message: str = ""


@record(slots=True)
class Cancel:
    """The client has gone, or the driver gives the request up."""

    request_id: str


@record(slots=True)
class EngineReport:
    """What a probe, or the lack of an answer, says of an engine."""

    engine: str
    state: EngineState
    detail: str = ""
    gauges: EngineGauges | None = None


@record(slots=True)
class BatchDone:
    """The engine has answered a batch. Each request of it is done when all its inputs are."""

    batch_id: int
    prompt_tokens: int | None = None


@record(slots=True)
class BatchFailed:
    """A batch failed. ``bad_input``: the engine blames what it was sent, not itself."""

    batch_id: int
    engine: str
    cause: FailureCause
    retryable: bool
    bad_input: bool = False
    message: str = ""


@record(slots=True)
class EngineAdded:
    """An engine was registered, or registered again with another specification."""

    spec: EngineSpec


@record(slots=True)
class EngineRemoved:
    """An engine was taken away. Requests inside it run to their end unless ``abort``."""

    engine: str
    abort: bool = False


@record(slots=True)
class PolicyChanged:
    """Another policy takes over the queue; nothing queued is lost."""

    policy: str


@record(slots=True)
class LimitsChanged:
    """New caps; requests already queued stay."""

    limits: Limits


@record(slots=True)
class BandsChanged:
    """New promises for the named bands; the others keep theirs."""

    bands: tuple[BandSpec, ...]


@record(slots=True)
class TenantsChanged:
    """All tenants anew. Requests of one that is gone stay, with weight 1."""

    tenants: tuple[TenantSpec, ...]


@record(slots=True)
class Timer:
    """The time that a ``SetTimer`` named has come."""


Event: TypeAlias = (
    Arrival
    | FirstToken
    | Progress
    | Done
    | Failed
    | Cancel
    | BatchDone
    | BatchFailed
    | EngineReport
    | EngineAdded
    | EngineRemoved
    | PolicyChanged
    | LimitsChanged
    | BandsChanged
    | TenantsChanged
    | Timer
)


# -- actions ------------------------------------------------------------------------------


@record(slots=True)
class Dispatch:
    """Send the request to this engine now."""

    request_id: str
    engine: str
    attempt: int = 1


@record(slots=True)
class BatchPart:
    """One input of a batch: input ``index`` of a request, and where else its result belongs."""

    request_id: str
    index: int
    copies: tuple[tuple[str, int], ...] = ()
    """(request_id, index) of equal inputs, which are not sent again."""


@record(slots=True)
class DispatchBatch:
    """Send these inputs to this engine in one call. Answered by BatchDone or BatchFailed."""

    batch_id: int
    engine: str
    parts: tuple[BatchPart, ...]


@record(slots=True)
class Reject:
    """Answer the request with an error. ``status`` is HTTP's; ``retry_after`` is in seconds."""

    request_id: str
    status: int
    code: str
    message: str
    retry_after: int | None = None
    engine: str | None = None


@record(slots=True)
class Abort:
    """End the running attempt: close its connection to the engine."""

    request_id: str
    engine: str
    reason: str


@record(slots=True)
class AbortBatch:
    """End a batch's call: nobody waits for its results, or its engine was taken away. In the second
    case it is still to be answered by BatchFailed or BatchDone; in the first that changes nothing.
    """

    batch_id: int
    engine: str
    reason: str


@record(slots=True)
class SetTimer:
    """Send :class:`Timer` at this time. A later ``SetTimer`` replaces an earlier one."""

    at: float


Action: TypeAlias = Dispatch | DispatchBatch | Reject | Abort | AbortBatch | SetTimer
