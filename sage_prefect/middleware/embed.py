"""``Embed``: texts to vectors, through the gateway."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sage_prefect.common.errors import (
    EngineOverloaded,
    EngineTimeout,
    EngineUnavailable,
    GraphError,
    OperatorError,
    RecordError,
    RequestRejected,
)
from sage_prefect.kernel.operator import Operator, RowFailure
from sage_prefect.middleware.columns import Vectors, texts, vector_array, with_columns
from sage_prefect.middleware.gateway_client import blames_input, gateway_client

if TYPE_CHECKING:
    from sage_prefect.inference.client import UnifiedInferenceClient

# A batch smaller than a full request per slot is still spread over the slots, in requests of at
# least this many texts: while the engine computes one, the next is on its way.
_SMALLEST_SHARE = 32


class Embed(Operator):
    """Add a vector per row: ``into`` is a ``FixedSizeList<float32>[dim]`` column.

    Every call goes through the gateway, with the run's urgency; there is no local fallback. Within
    a batch texts are sorted by length, so that the engine pads little; the order of rows is kept.
    A text beyond the model's window is cut there by the engine (MiniLM: 256 tokens).

    Args:
        model: a name that the gateway serves.
        column: the text to embed. A null or blank text is a RecordError of its row: a vector of
            nothing would match everything alike.
        into: the column to add.
        batch_size: texts per request.
        concurrency: requests in flight per worker thread.
        timeout_s: of one request.

    Raises:
        GraphError: a size is not positive.
        EngineUnavailable, EngineTimeout, EngineOverloaded: retried by the runner.
        RequestRejected: wrong key, unknown model.
    """

    name = "embed"
    retry_on = (EngineUnavailable, EngineTimeout, EngineOverloaded)
    row_cost_s = 6e-3

    _client: UnifiedInferenceClient | None = None
    _threads: ThreadPoolExecutor | None = None

    def __init__(
        self,
        model: str,
        column: str = "text",
        into: str = "embedding",
        batch_size: int = 256,
        concurrency: int = 2,
        timeout_s: float = 300.0,
    ) -> None:
        if batch_size < 1 or concurrency < 1:
            raise GraphError(
                f"Embed(batch_size={batch_size}, concurrency={concurrency}): not positive.",
                hint="Use 1 or more for both.",
            )
        self.model = model
        self.column = column
        self.into = into
        self.request_size = batch_size
        self.concurrency = concurrency
        self.timeout_s = timeout_s
        self.reads = (column,)
        self.adds = (into,)
        # Rows per call of process(): two rounds of requests, to sort over.
        self.batch_size = batch_size * concurrency * 2

    def setup(self) -> None:
        self._client = gateway_client(
            self.context, timeout_s=self.timeout_s, embed_texts=self.request_size
        )
        self._threads = ThreadPoolExecutor(self.concurrency, thread_name_prefix="embed")

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
            self._threads = None
        if self._client is not None:
            self._client.close()
            self._client = None

    def process(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        found = texts(self.name, batch, self.column)
        for row, text in enumerate(found):
            if text is None or not text.strip():
                raise RowFailure(
                    row,
                    RecordError(
                        f"column {self.column!r} is {'null' if text is None else 'blank'}: there "
                        "is nothing to embed.",
                        hint='Filter such rows out, or use on_error="dead_letter".',
                    ),
                )
        if not found:
            empty = pa.array([], pa.list_(pa.float32()))
            return with_columns(batch, {self.into: empty})
        matrix = self._embed([text for text in found if text is not None])
        return with_columns(batch, {self.into: vector_array(matrix)})

    def _embed(self, found: list[str]) -> Vectors:
        if self._threads is None:
            raise OperatorError(self.name, "process() before setup().")
        order = np.argsort(np.fromiter(map(len, found), np.int64, len(found)), kind="stable")
        shares = max(
            -(-len(found) // self.request_size),
            min(self.concurrency, len(found) // _SMALLEST_SHARE),
        )
        requests = [rows for rows in np.array_split(order, max(shares, 1)) if len(rows)]
        pending = [self._threads.submit(self._request, found, rows) for rows in requests]
        try:
            answers = [future.result() for future in pending]
        finally:
            for future in pending:
                future.cancel()
        dims = {answer.shape[1] for answer in answers}
        if len(dims) > 1:
            raise OperatorError(
                self.name,
                f"model {self.model!r} gave vectors of different lengths: {sorted(dims)}.",
                hint="All engines behind one model name must serve the same model.",
            )
        matrix = np.empty((len(found), dims.pop()), dtype=np.float32)
        for rows, answer in zip(requests, answers, strict=True):
            matrix[rows] = answer
        return matrix

    def _request(self, found: list[str], rows: npt.NDArray[np.int64]) -> Vectors:
        """Embed the texts at ``rows``; a refusal is narrowed down to the row that causes it."""
        if self._client is None:
            raise OperatorError(self.name, "process() before setup().")
        try:
            answer: Vectors = self._client.embed([found[row] for row in rows], model=self.model)
        except RequestRejected as error:
            if not blames_input(error):
                raise
            if len(rows) == 1:
                raise RowFailure(int(rows[0]), error) from error
            middle = len(rows) // 2
            return np.concatenate(
                [self._request(found, rows[:middle]), self._request(found, rows[middle:])]
            )
        if answer.ndim != 2 or answer.shape[0] != len(rows) or not np.isfinite(answer).all():
            raise OperatorError(
                self.name,
                f"model {self.model!r} gave an array of shape {answer.shape} for {len(rows)} "
                "text(s), or numbers that are not finite.",
            )
        return answer
