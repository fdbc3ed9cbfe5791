"""How many tokens a prompt has, without a tokenizer: token ids are counted, bytes are divided.

Pictures and recordings travel as base64 in the body; their bytes say nothing of tokens. In bodies
that are big enough to hold one they are taken out and stand for a flat number of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ATTACHMENT_TOKENS = 1024
"""About what a picture of a megapixel costs in today's models (300 to 1,500)."""

_BIG_BODY = 16384


def prompt_length(body: Mapping[str, Any], body_bytes: int, bytes_per_token: float) -> int:
    """Estimated prompt tokens.

    Args:
        body: the parsed JSON object.
        body_bytes: its length as sent.
        bytes_per_token: of this model, learned.
    """
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt:
        if isinstance(prompt[0], int):
            return len(prompt)
        if isinstance(prompt[0], list):
            return sum(len(one) for one in prompt if isinstance(one, list))
    if body_bytes <= _BIG_BODY:
        return int(body_bytes / bytes_per_token)
    count, size = _attachments(body.get("messages"))
    return int(max(0, body_bytes - size) / bytes_per_token) + count * ATTACHMENT_TOKENS


def _attachments(messages: Any) -> tuple[int, int]:
    """Number and bytes of the attachments inside the messages."""
    count = size = 0
    for message in messages if isinstance(messages, list) else ():
        parts = message.get("content") if isinstance(message, Mapping) else None
        for part in parts if isinstance(parts, list) else ():
            if not isinstance(part, Mapping) or isinstance(part.get("text"), str):
                continue
            count += 1
            # {"type": "image_url", "image_url": {"url": "data:..."}}, {"input_audio": {"data": ..}}
            for value in part.values():
                for inner in value.values() if isinstance(value, Mapping) else (value,):
                    if isinstance(inner, str):
                        size += len(inner)
    return count, size
