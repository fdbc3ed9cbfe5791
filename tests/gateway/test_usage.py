from __future__ import annotations

import pytest

from sage_gateway.usage import NO_USAGE, Usage, usage_in_tail, usage_of


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        (b'{"usage":{"prompt_tokens":1,"completion_tokens":2}}', Usage(1, 2, None)),
        (
            b'{"usage": {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}}',
            Usage(9, None, 4),
        ),
        (b'{"content":"\\"usage\\":{\\"prompt_tokens\\":5}"}', NO_USAGE),
        (b'{"usage":null}', NO_USAGE),
        (b'{"usage":{"prompt_tokens":-1,"completion_tokens":true}}', Usage()),
        (b'{"usage":{"prompt_tokens":1', NO_USAGE),
        (b'{"usage":{nonsense}}', NO_USAGE),
        (b'{"usage":{"prompt_tokens":1},"note":"usage"}', Usage(1)),
        (b"", NO_USAGE),
    ],
)
def test_usage_in_tail(body: bytes, usage: Usage) -> None:
    assert usage_in_tail(body) == usage


def test_only_the_tail_is_looked_at() -> None:
    assert usage_in_tail(b'{"usage":{"prompt_tokens":1},"x":"' + b"y" * 20_000 + b'"}') == NO_USAGE


def test_unexpected_values() -> None:
    assert usage_of([1]) == NO_USAGE
    assert usage_of({"prompt_tokens_details": 3}) == NO_USAGE
