"""What is written down of each request. Times are seconds since the run's start.

Latency counts from ``scheduled_s``, never from when the client came to send: a client that waits
for a slow server before it sends the next request hides the very delay that it measures
("coordinated omission", Tene, How NOT to Measure Latency, 2013).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from sage_prefect.common.errors import CorruptFileError

RECORD_VERSION = 1
_VERSION_KEY = b"sage_bench.load.version"
_SUMMARY_KEY = b"sage_bench.load.summary"

OK: Final = ""
CONNECT: Final = "connect"
"""No connection: refused, unknown host, no descriptor left."""
RESET: Final = "reset"
"""The connection ended before any of the answer had come."""
TRUNCATED: Final = "truncated"
"""The connection ended in the middle of the answer."""
INCOMPLETE: Final = "incomplete"
"""Valid HTTP to its end, but not the whole answer (no ``[DONE]``, vectors missing)."""
PROTOCOL: Final = "protocol"
"""Not HTTP."""
GARBAGE: Final = "garbage"
"""HTTP whose body is not what the API promises."""
STATUS: Final = "status"
"""An error status."""
ERROR_EVENT: Final = "error_event"
"""The stream ended with an error event."""
TIMEOUT: Final = "timeout"
"""No end within the request's time limit."""
UNFINISHED: Final = "unfinished"
"""Still running when the run's time was over; cut off then."""
CLIENT_LIMIT: Final = "client_limit"
"""Not sent: too many requests were in flight. Makes the run invalid."""
ABANDONED: Final = "abandoned"
"""The client left, as planned."""


@dataclass(slots=True)
class RequestRecord:
    """One request of a run. Unknown times are None; counts that the server did not give too."""

    index: int
    request_id: str
    kind: str
    stream: bool
    tenant: str
    band: str
    target: int
    """Which of the run's targets it was sent to."""
    scheduled_s: float
    started_s: float
    """When the client turned to it; minus ``scheduled_s``: the client's schedule error."""
    sent_s: float | None = None
    """When its bytes went to the socket; after ``started_s`` by the time to connect."""
    first_byte_s: float | None = None
    """First byte of the answer's body."""
    first_token_s: float | None = None
    """First event that carried text (streams)."""
    last_token_s: float | None = None
    finished_s: float | None = None
    status: int = 0
    """HTTP status; 0: none came."""
    error: str = OK
    detail: str = ""
    chunks: int = 0
    """Events that carried text."""
    max_gap_s: float | None = None
    """Longest wait between two of them."""
    planned_prompt_tokens: int = 0
    planned_output_tokens: int = 0
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    items: int = 0
    """Vectors of an embedding answer, or choices."""
    finish_reason: str = ""
    body_bytes: int = 0
    answer_bytes: int = 0
    retry_after_s: float | None = None
    engine: str = ""
    """The gateway's ``x-sage-engine``."""
    queue_ms: float | None = None
    """The gateway's ``x-sage-queue-ms``."""
    reused: bool = False
    """It went over a connection that had served before."""
    warmup: bool = False
    """Left out of the summary."""

    @property
    def ok(self) -> bool:
        """The whole answer came."""
        return self.error == OK

    @property
    def schedule_error_s(self) -> float:
        """How late the client was, in seconds; slightly negative for the timer's rounding."""
        return self.started_s - self.scheduled_s

    @property
    def ttft_s(self) -> float | None:
        """Time to first token, from the scheduled time."""
        return None if self.first_token_s is None else self.first_token_s - self.scheduled_s

    @property
    def e2e_s(self) -> float | None:
        """Time to the end of a whole answer, from the scheduled time."""
        if self.finished_s is None or not self.ok:
            return None
        return self.finished_s - self.scheduled_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first, of a whole streamed answer."""
        if not self.ok or self.first_token_s is None or self.last_token_s is None:
            return None
        tokens = self.output_tokens if self.output_tokens is not None else self.chunks
        return (self.last_token_s - self.first_token_s) / (tokens - 1) if tokens > 1 else None


_TYPES: dict[str, pa.DataType] = {
    "int": pa.int64(),
    "int | None": pa.int64(),
    "float": pa.float64(),
    "float | None": pa.float64(),
    "bool": pa.bool_(),
    "str": pa.string(),
}
_DERIVED = ("ttft_s", "tpot_s", "e2e_s")
SCHEMA: Final = pa.schema(
    [
        *(pa.field(field.name, _TYPES[str(field.type)]) for field in fields(RequestRecord)),
        *(pa.field(name, pa.float64()) for name in _DERIVED),
    ]
)


def write_records(file: Path, records: list[RequestRecord], summary: dict[str, Any]) -> None:
    """Write a run as one Parquet file: a row per request, the summary in its metadata."""
    columns = {
        field.name: pa.array([getattr(record, field.name) for record in records], field.type)
        for field in SCHEMA
    }
    schema = SCHEMA.with_metadata(
        {_VERSION_KEY: str(RECORD_VERSION).encode(), _SUMMARY_KEY: orjson.dumps(summary)}
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, schema=schema), file, compression="zstd")


def read_records(file: Path) -> tuple[list[RequestRecord], dict[str, Any]]:
    """The records and the summary of :func:`write_records`.

    Raises:
        CorruptFileError: no such file, not Parquet, or of another version.
    """
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise CorruptFileError(f"{file} cannot be read as a load record: {error}.") from error
    metadata = table.schema.metadata or {}
    version = metadata.get(_VERSION_KEY, b"none").decode()
    if version != str(RECORD_VERSION):
        raise CorruptFileError(
            f"{file} is a load record of version {version}; this release reads {RECORD_VERSION}.",
            hint="`sage bench load --out FILE` writes such files.",
        )
    names = [field.name for field in fields(RequestRecord)]
    rows = table.select(names).to_pylist()
    return [RequestRecord(**row) for row in rows], orjson.loads(metadata[_SUMMARY_KEY])
