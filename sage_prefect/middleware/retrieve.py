"""``Retrieve``: the passages of a collection that are nearest to each row's vector."""

from __future__ import annotations

import pyarrow as pa

from sage_prefect.common.errors import GraphError, OperatorError
from sage_prefect.kernel.operator import Operator
from sage_prefect.libs.prompts import numbered_passages
from sage_prefect.middleware.collection import Collection, current_manifest, open_collection
from sage_prefect.middleware.columns import vectors, with_columns
from sage_prefect.middleware.staging import check_name

_PASSAGES = pa.list_(
    pa.struct([("source", pa.string()), ("text", pa.string()), ("score", pa.float32())])
)


class Retrieve(Operator):
    """Add the ``k`` nearest passages of collection ``index``.

    Adds ``passages`` (list of struct source, text, score; best first), ``context`` (the passages
    numbered, as many as fit ``context_tokens``: what a prompt wants) and ``sources`` (those of the
    passages in ``context``, each once, best first: what an answer may cite).

    Args:
        index: name of a collection that ``WriteVectors`` has published.
        k: passages per row; fewer where the collection is smaller.
        column: the vectors to search with.
        into, sources_into, context_into: names of the added columns.
        source_column, text_column: columns of the collection.
        context_tokens: budget of ``context``, approximate.
        effort: of the search in a graph index; None: its default.

    Raises:
        GraphError: ``k`` is not positive.
        VectorIndexError: there is no such collection (lists those there are), or its vectors have
            another dimension than the rows'.
    """

    name = "retrieve"
    row_cost_s = 1e-3

    _collection: Collection | None = None

    def __init__(
        self,
        index: str,
        k: int = 5,
        column: str = "embedding",
        into: str = "passages",
        sources_into: str = "sources",
        context_into: str = "context",
        source_column: str = "source",
        text_column: str = "text",
        context_tokens: int = 1000,
        effort: int | None = None,
    ) -> None:
        if k < 1:
            raise GraphError(f"Retrieve(k={k}) is not positive.", hint="Use 1 or more.")
        self.index = check_name("collection", index)
        self.k = k
        self.column = column
        self.source_column = source_column
        self.text_column = text_column
        self.context_tokens = context_tokens
        self.effort = effort
        self.reads = (column,)
        self.adds = (into, sources_into, context_into)
        self.batch_size = 256

    def state_key(self) -> str:
        # Results hang on what the collection holds; a missing one is setup()'s to report.
        manifest = current_manifest(self.index)
        return manifest.commit if manifest is not None else ""

    def setup(self) -> None:
        self._collection = open_collection(self.index)

    def close(self) -> None:
        self._collection = None

    def process(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if self._collection is None:
            raise OperatorError(self.name, "process() before setup().")
        passages: list[list[dict[str, object]]] = []
        if batch.num_rows:
            queries = vectors(self.name, batch, self.column)
            ids, scores = self._collection.search(queries, self.k, self.effort)
            wanted = [self.source_column, self.text_column]
            for row_ids, row_scores in zip(ids.tolist(), scores.tolist(), strict=True):
                kept = [
                    (number, score)
                    for number, score in zip(row_ids, row_scores, strict=True)
                    if number >= 0
                ]
                rows = self._collection.rows([number for number, _ in kept], wanted)
                passages.append(
                    [
                        {
                            "source": _text(row[self.source_column]),
                            "text": _text(row[self.text_column]),
                            "score": score,
                        }
                        for row, (_, score) in zip(rows, kept, strict=True)
                    ]
                )
        contexts: list[str] = []
        sources: list[list[str]] = []
        for found in passages:
            named = [(str(p["source"]), str(p["text"])) for p in found]
            context, fitted = numbered_passages(named, self.context_tokens)
            contexts.append(context)
            # What a model never saw is not cited.
            sources.append(list(dict.fromkeys(source for source, _ in named[:fitted])))
        into, sources_into, context_into = self.adds
        return with_columns(
            batch,
            {
                into: pa.array(passages, _PASSAGES),
                sources_into: pa.array(sources, pa.list_(pa.string())),
                context_into: pa.array(contexts, pa.string()),
            },
        )


def _text(value: object) -> str:
    return "" if value is None else str(value)
