"""The vectors of one client's call, collected from the batches that carried its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import orjson

from sage_gateway.usage import NO_USAGE, Usage


class VectorCollection:
    """Collects until every input has its vector.

    Args:
        model: as the client named it.
        count: its inputs.
    """

    __slots__ = ("_missing", "_model", "_tokens", "_total", "_vectors")

    def __init__(self, model: str, count: int) -> None:
        self._model = model
        self._vectors: list[bytes] = [b""] * count
        self._missing = count
        self._tokens: int | None = 0
        self._total: int | None = 0

    @property
    def complete(self) -> bool:
        """Whether every input has its vector."""
        return not self._missing

    @property
    def usage(self) -> Usage:
        """The call's share of what the engines counted."""
        return NO_USAGE if self._tokens is None else Usage(self._tokens, None, None)

    def put(self, index: int, vector: bytes) -> None:
        """The vector of an input, as JSON.

        Raises:
            RuntimeError: it has one: the caller has a bug.
        """
        if self._vectors[index]:
            raise RuntimeError(f"input {index} was answered twice. This is a bug.")
        self._vectors[index] = vector
        self._missing -= 1

    def used(self, prompt_tokens: int | None, total_tokens: int | None) -> None:
        """This call's share of one batch's tokens; None: the engine did not count."""
        self._tokens = _sum(self._tokens, prompt_tokens)
        self._total = _sum(self._total, total_tokens)

    def answer(self) -> bytes:
        """The JSON object for the client, with token counts if all batches had them."""
        items = [
            b'{"object":"embedding","index":%d,"embedding":%b}' % (index, vector)
            for index, vector in enumerate(self._vectors)
        ]
        tokens = self._tokens
        usage = b""
        if tokens is not None:
            total = tokens if self._total is None else self._total
            usage = b',"usage":{"prompt_tokens":%d,"total_tokens":%d}' % (tokens, total)
        return b'{"object":"list","data":[%b],"model":%b%b}' % (
            b",".join(items),
            orjson.dumps(self._model),
            usage,
        )


def shared(total: int, weights: Sequence[int]) -> list[int]:
    """``total`` divided in proportion to ``weights``; the parts are whole and their sum is exact.

    Args:
        weights: at least one, none negative; all zero count as equal.
    """
    if not any(weights):
        weights = [1] * len(weights)
    whole = sum(weights)
    ends = [total * reached // whole for reached in accumulate(weights)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _sum(before: int | None, more: int | None) -> int | None:
    return None if before is None or more is None else before + more
