"""Readers of public request traces: Azure LLM, Mooncake, BurstGPT. The files are not ours to ship.

A bad row ends the reading with its number, its content and what was expected: a trace that is
half read would be another workload.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple

from sage_bench.workloads.client_request import ClientRequest, Traffic
from sage_bench.workloads.sessions import BLOCK_TOKENS
from sage_prefect.common.errors import BenchmarkError, UnknownNameError

TraceFormat = Literal["azure", "mooncake", "burstgpt"]
_MOONCAKE_BLOCK = 512


class TraceRow(NamedTuple):
    """One request of a trace; ``at`` in seconds after the first row's."""

    at: float
    prompt: int
    output: int
    blocks: tuple[int, ...] = ()
    session: str | None = None


def read_trace(file: Path, format: TraceFormat) -> Iterator[TraceRow]:
    """The rows of a trace, by rising time.

    Raises:
        UnknownNameError: the format is not known.
        BenchmarkError: the file cannot be read, a column is missing, or a row is wrong; names the
            row's number in the file.
    """
    readers = {"azure": _azure, "mooncake": _mooncake, "burstgpt": _burstgpt}
    if format not in readers:
        raise UnknownNameError("trace format", format, readers)
    rows: list[TraceRow] = []
    try:
        rows = sorted(readers[format](file), key=lambda row: row.at)
    except OSError as error:
        raise BenchmarkError(f"cannot read the trace {file}: {error}.") from None
    except UnicodeDecodeError as error:
        raise BenchmarkError(
            f"the trace {file} is not text: {error}.", hint="Unpack it first."
        ) from None
    if not rows:
        raise BenchmarkError(f"the trace {file} holds no requests.")
    first = rows[0].at
    return (row._replace(at=row.at - first) for row in rows)


def trace_requests(
    file: Path,
    format: TraceFormat,
    traffic: Traffic,
    speed: float = 1.0,
    start_s: float = 0.0,
    until_s: float = float("inf"),
) -> Iterator[ClientRequest]:
    """The requests of a trace, ``speed`` times as fast, from ``start_s`` until ``until_s``.

    Raises:
        BenchmarkError: as :func:`read_trace`.
    """
    for row in read_trace(file, format):
        at = start_s + row.at / speed
        if at >= until_s:
            return
        # Our blocks are shorter than Mooncake's: each of theirs is several of ours.
        parts = _MOONCAKE_BLOCK // BLOCK_TOKENS
        chain = tuple(block * parts + i for block in row.blocks for i in range(parts))
        yield ClientRequest(
            at,
            traffic,
            row.session or traffic.name,
            row.prompt,
            row.output,
            session=row.session,
            chain=chain[: row.prompt // BLOCK_TOKENS],
        )


def _bad(file: Path, number: int, row: object, expected: str) -> BenchmarkError:
    shown = str(row)
    shown = shown if len(shown) <= 120 else shown[:120] + "..."
    return BenchmarkError(f"trace {file}, row {number}: {shown} {expected}.")


def _tokens(file: Path, number: int, row: object, name: str, value: object) -> int:
    text = str(value).strip()
    # Some exports write whole numbers with a point.
    whole = text.removesuffix(".0")
    if not whole.isdigit():
        raise _bad(file, number, row, f"has {name} {text!r}; it must be a whole number")
    return int(whole)


def _table(file: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    with file.open(encoding="utf-8-sig", newline="") as source:
        reader = csv.DictReader(source)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise BenchmarkError(
                f"trace {file} lacks the column(s) {', '.join(missing)}.",
                hint=f"It has: {', '.join(reader.fieldnames or ()) or 'none'}.",
            )
        for row in reader:
            yield reader.line_num, row


def _azure(file: Path) -> Iterator[TraceRow]:
    stamp, prompt, output = "TIMESTAMP", "ContextTokens", "GeneratedTokens"
    for number, row in _table(file, (stamp, prompt, output)):
        text = (row[stamp] or "").strip()
        # Seven digits of a second: datetime takes six.
        head, _, fraction = text.partition(".")
        digits = "".join(c for c in fraction if c.isdigit())
        try:
            at = datetime.fromisoformat(head.removesuffix("Z")).timestamp()
            at += float(f"0.{digits or 0}")
        except ValueError:
            raise _bad(
                file, number, row, f"has {stamp} {text!r}; expected 2023-11-16 18:15:46.68"
            ) from None
        counts = [_tokens(file, number, row, name, row[name]) for name in (prompt, output)]
        # A few rows of the trace have no prompt or no answer; an engine serves at least one token.
        yield TraceRow(at, max(1, counts[0]), max(1, counts[1]))


def _mooncake(file: Path) -> Iterator[TraceRow]:
    with file.open(encoding="utf-8") as source:
        for number, line in enumerate(source, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                at = float(row["timestamp"]) / 1000
                blocks = tuple(int(block) for block in row["hash_ids"])
                lengths = row["input_length"], row["output_length"]
            except (ValueError, KeyError, TypeError) as error:
                raise _bad(
                    file,
                    number,
                    line.strip(),
                    f"is no request ({error!r}); expected a JSON object with timestamp (ms), "
                    "input_length, output_length, hash_ids",
                ) from None
            counts = [
                _tokens(file, number, line.strip(), name, value)
                for name, value in zip(("input_length", "output_length"), lengths, strict=True)
            ]
            yield TraceRow(at, max(1, counts[0]), max(1, counts[1]), blocks)


def _burstgpt(file: Path) -> Iterator[TraceRow]:
    names = ("Timestamp", "Request tokens", "Response tokens")
    for number, row in _table(file, names):
        try:
            at = float(row["Timestamp"])
        except ValueError:
            raise _bad(
                file, number, row, f"has Timestamp {row['Timestamp']!r}; expected seconds"
            ) from None
        counts = [_tokens(file, number, row, name, row[name]) for name in names[1:]]
        if not counts[1]:
            continue  # the service failed: BurstGPT marks failures by an empty answer
        session = (row.get("Session ID") or "").strip() or None
        yield TraceRow(at, max(1, counts[0]), counts[1], (), session)
