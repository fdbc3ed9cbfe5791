"""Near duplicates of texts: MinHash signatures, banded (Broder: On the resemblance and containment
of documents, 1997; Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, chapter 3), and each
candidate checked by its true Jaccard similarity."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sage_prefect.kernel.operator import Operator, PartitionOperator, SetAside
from sage_prefect.kernel.relational.tables import batches_of, column_of, gather

SIGNATURE = "minhash"
_HASHES = 128
_BAND = 4  # rows per band: 32 bands find pairs of similarity 0.5 with probability 0.87
_PRIME = np.uint64(0x100000001B3)
_generator = np.random.Generator(np.random.PCG64(20261127))
_MULTIPLIERS = _generator.integers(1, 2**63, _HASHES, np.uint64) | np.uint64(1)
_ADDENDS = _generator.integers(0, 2**63, _HASHES, np.uint64)

Numbers = npt.NDArray[np.uint64]


def shingles(text: str, size: int) -> Numbers:
    """The distinct runs of ``size`` characters, as numbers. Case and white space do not count."""
    plain = " ".join(text.lower().split())
    codes = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    count = max(len(codes) - size + 1, 1)
    found: Numbers = np.zeros(count, np.uint64)
    for at in range(min(size, len(codes))):
        found = found * _PRIME + codes[at : at + count] + np.uint64(1)
    return np.unique(found)


def signature(found: Numbers) -> Numbers:
    """The smallest of each of ``_HASHES`` hashes over the shingles."""
    mixed = (found ^ (found >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15)
    smallest: Numbers = ((mixed[:, None] * _MULTIPLIERS + _ADDENDS) >> np.uint64(17)).min(axis=0)
    return smallest


def similarity(one: Numbers, other: Numbers) -> float:
    """Jaccard similarity of two sets of shingles."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)


class Signatures(Operator):
    """Adds the MinHash signature of a text column: the part that runs before the exchange.

    Args:
        column: the text.
        shingle: characters per shingle.
    """

    name = "minhash"
    row_cost_s = 5e-4

    def __init__(self, column: str, shingle: int = 5) -> None:
        self.column = column
        self.shingle = shingle
        self.reads = (column,)
        self.adds = (SIGNATURE,)
        self.expects = {column: ("text",)}

    def process(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        texts = column_of(self.name, batch, self.column).to_pylist()
        made = [
            None if text is None else signature(shingles(str(text), self.shingle)).tobytes()
            for text in texts
        ]
        return batch.append_column(SIGNATURE, pa.array(made, pa.binary()))


class DropNearDuplicates(PartitionOperator):
    """Drop each row whose text is similar to that of an earlier row that was kept. Null texts stay.

    Args:
        column: the text.
        threshold: Jaccard similarity of shingles from which two texts count as the same.
        shingle: characters per shingle.
    """

    name = "deduplicate-near"
    row_cost_s = 1e-4

    def __init__(self, column: str, threshold: float = 0.8, shingle: int = 5) -> None:
        self.column = column
        self.threshold = threshold
        self.shingle = shingle
        self.reads = (column,)

    def output_columns(self, columns: tuple[str, ...]) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(name for name in columns if name != SIGNATURE)

    def process_partition(
        self, batches: Iterator[pa.RecordBatch], set_aside: SetAside
    ) -> Iterator[pa.RecordBatch]:
        table = gather(self.name, batches)
        if table is None:
            return
        texts = column_of(self.name, table, self.column).to_pylist()
        signatures = column_of(self.name, table, SIGNATURE).to_pylist()
        bands: dict[tuple[int, bytes], list[int]] = {}
        kept = []
        for row, (text, made) in enumerate(zip(texts, signatures, strict=True)):
            if made is None:
                kept.append(row)
                continue
            width = 8 * _BAND
            own = [(at, made[at : at + width]) for at in range(0, len(made), width)]
            candidates = sorted({other for band in own for other in bands.get(band, ())})
            mine = shingles(str(text), self.shingle)
            if any(
                similarity(mine, shingles(str(texts[other]), self.shingle)) >= self.threshold
                for other in candidates
            ):
                continue
            kept.append(row)
            for band in own:
                bands.setdefault(band, []).append(row)
        yield from batches_of(table.take(pa.array(kept, pa.int64())).drop_columns([SIGNATURE]))
