"""Chat answers and streams to translate, and how to read what came out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
import pytest

from sage_gateway.dialects.base import Stamp, StreamRelay


class Talk:
    """Builders of chat bytes, and readers of events. Test modules cannot import each other."""

    stamp = Stamp("t1", 1_700_000_000)

    @staticmethod
    def answer(
        message: dict[str, Any], finish: str = "stop", usage: Any = None, **choice: Any
    ) -> bytes:
        """A whole chat answer."""
        found = {"index": 0, "message": message, "finish_reason": finish, **choice}
        counts = {"prompt_tokens": 11, "completion_tokens": 5} if usage is None else usage
        return orjson.dumps({"id": "c", "choices": [found], "usage": counts})

    @staticmethod
    def chunk(delta: Any = None, finish: str | None = None, **fields: Any) -> bytes:
        """An event of a chat stream."""
        choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
        return b"data: " + orjson.dumps({"choices": [choice], **fields}) + b"\n\n"

    @staticmethod
    def counted(prompt: int = 11, output: int = 5, cached: int = 0) -> bytes:
        """The event with token counts, and the end."""
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        event = orjson.dumps({"choices": [], "usage": usage})
        return b"data: " + event + b"\n\ndata: [DONE]\n\n"

    @staticmethod
    def call(index: int, name: str | None = None, arguments: str = "") -> dict[str, Any]:
        """A tool call, or a piece of one."""
        function: dict[str, Any] = {"arguments": arguments}
        if name is not None:
            function["name"] = name
        head = {"id": f"call_{index}", "type": "function"} if name is not None else {}
        return {"index": index, **head, "function": function}

    @staticmethod
    def events(out: bytes) -> list[dict[str, Any]]:
        """The events; each names its type twice, as both APIs do."""
        found = []
        for event in out.split(b"\n\n")[:-1]:
            first, second = event.split(b"\n")
            content = orjson.loads(second.removeprefix(b"data: "))
            assert first == b"event: " + content["type"].encode()
            found.append(content)
        return found

    def run(self, stream: StreamRelay, pieces: Iterable[bytes]) -> list[dict[str, Any]]:
        """All events of a stream that came in these pieces."""
        out = b"".join([stream.feed(piece) for piece in pieces])
        return self.events(out + stream.rest())


@pytest.fixture
def talk() -> Talk:
    return Talk()


@pytest.fixture(scope="session")
def talk_free() -> Talk:
    """The same for property tests, which run one fixture for many examples."""
    return Talk()
