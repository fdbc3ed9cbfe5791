"""``Generate``: prompts to answers, through the gateway."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
from sage_prefect.libs.tokens import count_tokens
from sage_prefect.middleware.columns import texts, with_columns
from sage_prefect.middleware.gateway_client import blames_input, gateway_client

if TYPE_CHECKING:
    from sage_prefect.inference.client import UnifiedInferenceClient


@dataclass(frozen=True)
class _Answer:
    text: str
    prompt_tokens: int | None
    completion_tokens: int | None
    latency_ms: float
    engine: str | None


class Generate(Operator):
    """Ask a chat model per row, several rows at once.

    Adds ``answer``, ``answer_prompt_tokens``, ``answer_completion_tokens`` (int64, from the engine;
    null if it does not count), ``answer_latency_ms`` (float64, as the worker saw it) and ``engine``
    (which engine answered, if the gateway says so). Prompts go out as they are: one that is beyond
    the model's context is a RecordError of its row. :class:`~sage_prefect.middleware.Prompt` with
    ``max_tokens`` keeps prompts within it.

    Args:
        model: a name that the gateway serves.
        column: the prompt.
        into: the column to add, and the stem of the three beside it.
        max_tokens: bound of the answer.
        temperature: 0 gives the likeliest answer each time.
        system: a system message before each prompt.
        concurrency: requests in flight per worker thread.
        timeout_s: of one request.

    Raises:
        GraphError: a number is out of range.
        EngineUnavailable, EngineTimeout, EngineOverloaded: retried by the runner.
        RequestRejected: wrong key, unknown model.
    """

    name = "generate"
    retry_on = (EngineUnavailable, EngineTimeout, EngineOverloaded)
    row_cost_s = 1.0

    _client: UnifiedInferenceClient | None = None
    _threads: ThreadPoolExecutor | None = None

    def __init__(
        self,
        model: str,
        column: str = "prompt",
        into: str = "answer",
        max_tokens: int = 96,
        temperature: float = 0.0,
        system: str | None = None,
        concurrency: int = 4,
        timeout_s: float = 300.0,
    ) -> None:
        if max_tokens < 1 or concurrency < 1 or temperature < 0:
            raise GraphError(
                f"Generate(max_tokens={max_tokens}, temperature={temperature}, "
                f"concurrency={concurrency}): out of range.",
                hint="Use 1 or more for max_tokens and concurrency, 0 or more for temperature.",
            )
        self.model = model
        self.column = column
        self.into = into
        self.max_tokens = max_tokens
        self.temperature = temperature
        self.system = system
        self.concurrency = concurrency
        self.timeout_s = timeout_s
        self.reads = (column,)
        self.adds = (
            into,
            f"{into}_prompt_tokens",
            f"{into}_completion_tokens",
            f"{into}_latency_ms",
            "engine",
        )
        self.batch_size = max(64, 8 * concurrency)
        # Answers of a batch in which another row failed: the runner hands the rest in again.
        self._spare: dict[str, list[_Answer]] = {}

    def setup(self) -> None:
        self._client = gateway_client(self.context, timeout_s=self.timeout_s)
        self._threads = ThreadPoolExecutor(self.concurrency, thread_name_prefix="generate")
        self._spare = {}

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
            self._threads = None
        if self._client is not None:
            self._client.close()
            self._client = None

    def process(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if self._threads is None:
            raise OperatorError(self.name, "process() before setup().")
        prompts = texts(self.name, batch, self.column)
        answers: list[_Answer | None] = [None] * len(prompts)
        pending: dict[int, Future[_Answer]] = {}
        for row, prompt in enumerate(prompts):
            spare = self._spare.get(prompt or "")
            if spare:
                answers[row] = spare.pop()
            else:
                pending[row] = self._threads.submit(self._answer, row, prompt)
        failure: Exception | None = None
        for row, future in pending.items():
            if failure is not None:
                future.cancel()
            if future.cancelled():
                continue
            try:
                answers[row] = future.result()
            except Exception as error:  # noqa: BLE001 - the first is raised below
                failure = failure or error
        if failure is not None:
            for prompt, answer in zip(prompts, answers, strict=True):
                if answer is not None and prompt is not None:
                    self._spare.setdefault(prompt, []).append(answer)
            raise failure
        return with_columns(batch, self._columns([a for a in answers if a is not None]))

    def _answer(self, row: int, prompt: str | None) -> _Answer:
        if self._client is None:
            raise OperatorError(self.name, "process() before setup().")
        if prompt is None or not prompt.strip():
            raise RowFailure(
                row,
                RecordError(f"column {self.column!r} is empty: there is nothing to ask."),
            )
        messages = [{"role": "user", "content": prompt}]
        if self.system:
            messages.insert(0, {"role": "system", "content": self.system})
        try:
            result = self._client.chat(
                messages,
                model=self.model,
                temperature=self.temperature,
                max_tokens=self.max_tokens,
            )
        except RequestRejected as error:
            if not blames_input(error):
                raise
            raise RowFailure(
                row,
                RecordError(
                    f"model {self.model!r} refused a prompt of {len(prompt)} characters (about "
                    f"{count_tokens(prompt)} tokens): {error.message}",
                    hint="If it is beyond the model's context, shorten it or use "
                    "Prompt(..., max_tokens=...).",
                ),
            ) from error
        counted = result.usage.total_tokens > 0
        return _Answer(
            result.text,
            result.usage.prompt_tokens if counted else None,
            result.usage.completion_tokens if counted else None,
            result.latency_ms,
            result.engine,
        )

    def _columns(self, answers: list[_Answer]) -> dict[str, Any]:
        into, prompt_tokens, completion_tokens, latency, engine = self.adds
        return {
            into: pa.array([a.text for a in answers], pa.string()),
            prompt_tokens: pa.array([a.prompt_tokens for a in answers], pa.int64()),
            completion_tokens: pa.array([a.completion_tokens for a in answers], pa.int64()),
            latency: pa.array([a.latency_ms for a in answers], pa.float64()),
            engine: pa.array([a.engine for a in answers], pa.string()),
        }
