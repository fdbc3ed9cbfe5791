"""What is finished: the commit log of partitions and runs, and checkpoints between stages.

Storage is injected (:class:`RunStore`); :mod:`sage_prefect.platform.run_store` keeps it in files.
"""

from __future__ import annotations

from typing import Any, Protocol

import orjson

from sage_prefect.kernel.report import DeadLetter, OperatorReport, StageReport
from sage_prefect.kernel.sink import Committed, Receipt


class RunStore(Protocol):
    """Keyed bytes that survive a crash. Keys are hex. Writes are atomic and idempotent."""

    def get(self, kind: str, key: str) -> bytes | None:
        """The bytes under ``kind/key``, or None."""

    def put(self, kind: str, key: str, data: bytes) -> None:
        """Store atomically; a second put of the same key replaces."""

    def delete(self, kind: str, key: str) -> None:
        """Forget; unknown keys are fine."""


class MemoryStore:
    """A :class:`RunStore` for tests and runs that need not be resumed."""

    def __init__(self) -> None:
        self.content: dict[tuple[str, str], bytes] = {}

    def get(self, kind: str, key: str) -> bytes | None:
        """See :class:`RunStore`."""
        return self.content.get((kind, key))

    def put(self, kind: str, key: str, data: bytes) -> None:
        """See :class:`RunStore`."""
        self.content[kind, key] = data

    def delete(self, kind: str, key: str) -> None:
        """See :class:`RunStore`."""
        self.content.pop((kind, key), None)


class CommitLog:
    """Finished partitions and published runs, by content key.

    Example:
        >>> log = CommitLog(MemoryStore())
        >>> log.finish(Receipt("a1", 0, 3, "part-a1"), [])
        >>> log.finished("a1")[0].rows
        3
    """

    def __init__(self, store: RunStore) -> None:
        self.store = store

    def finish(self, receipt: Receipt, reports: list[StageReport]) -> None:
        """Record that a partition is staged. Receipts that carry rows are not recorded."""
        if receipt.data is None:
            entry = {
                "partition": receipt.partition,
                "index": receipt.index,
                "rows": receipt.rows,
                "location": receipt.location,
                "reports": reports,
            }
            self.store.put("partition", receipt.partition, orjson.dumps(entry, default=str))

    def finished(self, key: str) -> tuple[Receipt, list[StageReport]] | None:
        """The receipt of a finished partition and what its stages reported."""
        data = self.store.get("partition", key)
        if data is None:
            return None
        entry = orjson.loads(data)
        receipt = Receipt(entry["partition"], entry["index"], entry["rows"], entry["location"])
        return receipt, [stage_report(item) for item in entry["reports"]]

    def forget(self, key: str) -> None:
        """Drop a partition's record."""
        self.store.delete("partition", key)

    def publish(self, run_key: str, committed: Committed, reports: list[StageReport]) -> None:
        """Record that a run's output is published."""
        if committed.data is None:
            entry = {
                "rows": committed.rows,
                "location": committed.location,
                "detail": committed.detail,
                "reports": reports,
            }
            self.store.put("run", run_key, orjson.dumps(entry, default=str))

    def published(self, run_key: str) -> tuple[Committed, list[StageReport]] | None:
        """What an earlier run of the same content published, if it is on record."""
        data = self.store.get("run", run_key)
        if data is None:
            return None
        entry = orjson.loads(data)
        committed = Committed(entry["rows"], entry["location"], entry["detail"])
        return committed, [stage_report(item) for item in entry["reports"]]


def stage_report(entry: dict[str, Any]) -> StageReport:
    """A StageReport out of its JSON object."""
    return StageReport(
        entry["stage"],
        entry["name"],
        entry["partition"],
        [OperatorReport(**item) for item in entry["operators"]],
        entry["seconds"],
        entry["worker"],
        [DeadLetter(**item) for item in entry["dead_letters"]],
        entry["reused"],
        entry.get("retries", 0),
    )
