"""The real text of several experiments: the installed Python's documentation, as ``sage demo`` cuts
it (sources, chunking and budgets are the library's own)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from sage_prefect.common.errors import BenchmarkError


@dataclass(frozen=True)
class Chunks:
    """Chunks in an order that the seed decides, so that any slice is like the whole."""

    texts: tuple[str, ...]
    max_tokens: int

    @property
    def sha256(self) -> str:
        """Of all texts in order."""
        return hashlib.sha256(orjson.dumps(self.texts)).hexdigest()

    def sizes(self) -> dict[str, Any]:
        """Distribution of lengths: characters, and the tokens that the chunker counted."""
        from sage_prefect.libs.tokens import count_tokens

        levels = (5, 25, 50, 75, 95)
        characters = np.percentile([len(text) for text in self.texts], levels)
        tokens = np.percentile([count_tokens(text) for text in self.texts], levels)
        return {
            "max_tokens": self.max_tokens,
            "characters": dict(zip([f"p{q}" for q in levels], characters.tolist(), strict=True)),
            "tokens": dict(zip([f"p{q}" for q in levels], tokens.tolist(), strict=True)),
        }


def documentation_chunks(
    count: int,
    seed: int,
    max_tokens: int = 256,
    overlap: int = 32,
    modules: Sequence[str] | None = None,
) -> Chunks:
    """``count`` chunks of the documentation of ``modules`` (None: the whole standard library).

    Raises:
        BenchmarkError: there are fewer.
    """
    from sage_prefect.middleware.chunk import Chunk
    from sage_prefect.middleware.python_docs import PythonDocs

    source, chunk = PythonDocs(modules), Chunk(max_tokens=max_tokens, overlap=overlap)
    texts: list[str] = []
    for part in source.parts():
        for batch in source.read(part):
            chunked = chunk.process(batch)
            assert isinstance(chunked, pa.RecordBatch)
            texts.extend(chunked.column("text").to_pylist())
    if len(texts) < count:
        raise BenchmarkError(
            f"this Python's documentation gives {len(texts)} chunks, not {count}.",
            hint=f"Use --set chunks={len(texts)} or fewer.",
        )
    order = np.random.default_rng(seed).permutation(len(texts))[:count]
    return Chunks(tuple(texts[index] for index in order), max_tokens)
