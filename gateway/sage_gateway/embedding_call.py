"""A client's embedding call, cut at its inputs, so that several can be joined byte by byte."""

from __future__ import annotations

from typing import Any

import orjson

from sage_gateway.json_splice import element_spans, splice, value_spans


class EmbeddingCall:
    """The body of one call.

    Args:
        raw: as the client sent it.
        parsed: what it parsed to; ``input`` is a text, a list of texts, a list of token ids, or a
            list of lists of token ids.
    """

    __slots__ = ("_inputs", "parsed", "raw")

    def __init__(self, raw: bytes, parsed: dict[str, Any]) -> None:
        self.raw = raw
        self.parsed = parsed
        self._inputs: list[bytes] | None = None

    @property
    def inputs(self) -> list[bytes]:
        """JSON of each input, in the client's own bytes."""
        if self._inputs is None:
            self._inputs = self._cut()
        return self._inputs

    def with_inputs(self, inputs: list[bytes], model: str | None) -> bytes:
        """The call with other inputs: all other fields are in the client's bytes.

        Args:
            inputs: JSON of each.
            model: the engine's name of the model, where it differs from the client's.
        """
        changes: dict[str, Any] = {"input": orjson.Fragment(b"[%b]" % b",".join(inputs))}
        if model is not None:
            changes["model"] = model
        return splice(self.raw, self.parsed, changes)

    def _cut(self) -> list[bytes]:
        value = self.parsed["input"]
        places = value_spans(self.raw, {"input"}).get("input")
        if not places:
            # A key spelled in a way that the scanner does not know: encode the inputs anew.
            many = isinstance(value, list) and not isinstance(value[0], int)
            return [orjson.dumps(one) for one in (value if many else [value])]
        start, end = places[-1]  # of a repeated key the last one counts
        if isinstance(value, str) or isinstance(value[0], int):
            return [self.raw[start:end]]
        return [self.raw[a:b] for a, b in element_spans(self.raw, start)]
