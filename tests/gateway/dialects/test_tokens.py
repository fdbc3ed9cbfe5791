"""Tokenize and detokenize for llama.cpp."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from sage_gateway.dialects.base import MalformedAnswer, NotTranslatable
from sage_gateway.dialects.tokens import DetokenizeDialect, TokenizeDialect
from sage_gateway.errors import HttpError

TOKENIZE, DETOKENIZE = TokenizeDialect(), DetokenizeDialect()


def test_tokenize(talk: Any) -> None:
    call = TOKENIZE.translate({"model": "m", "prompt": "Hello world"}, "llamacpp", talk.stamp)
    assert call is not None
    assert (call.path, call.is_chat) == ("/tokenize", False)
    # vLLM adds special tokens unless it is told not to, llama.cpp only if it is told to.
    assert call.body == {
        "model": "m",
        "content": "Hello world",
        "add_special": True,
        "with_pieces": False,
    }
    assert orjson.loads(call.whole(b'{"tokens":[5,6]}')) == {
        "count": 2,
        "max_model_len": None,
        "tokens": [5, 6],
        "token_strs": None,
    }


def test_tokenize_with_pieces(talk: Any) -> None:
    body = {
        "model": "m",
        "prompt": "x",
        "add_special_tokens": False,
        "return_token_strs": True,
    }
    call = TOKENIZE.translate(body, "llamacpp", talk.stamp)
    assert call is not None
    assert (call.body["add_special"], call.body["with_pieces"]) == (False, True)
    answer = b'{"tokens":[{"id":5,"piece":"He"},{"id":6,"piece":[198]}]}'
    told = orjson.loads(call.whole(answer))
    assert (told["tokens"], told["token_strs"]) == ([5, 6], ["He", "\ufffd"])


def test_detokenize(talk: Any) -> None:
    call = DETOKENIZE.translate({"model": "m", "tokens": [5, 6]}, "llamacpp", talk.stamp)
    assert call is not None
    assert call.body == {"model": "m", "tokens": [5, 6]}
    assert call.whole(b'{"content":"Hello"}') == b'{"prompt":"Hello"}'


def test_refusals(talk: Any) -> None:
    with pytest.raises(NotTranslatable, match="messages"):
        TOKENIZE.translate({"model": "m", "messages": []}, "llamacpp", talk.stamp)
    with pytest.raises(HttpError, match="tokens"):
        DETOKENIZE.translate({"model": "m", "tokens": ["a"]}, "llamacpp", talk.stamp)
    assert TOKENIZE.translate({"model": "m", "prompt": "x"}, "openai", talk.stamp) is None
    assert DETOKENIZE.translate({"model": "m", "tokens": []}, "openai", talk.stamp) is None
    call = DETOKENIZE.translate({"model": "m", "tokens": []}, "llamacpp", talk.stamp)
    assert call is not None
    for answer in (b"nope", b"[]", b'{"content":3}'):
        with pytest.raises(MalformedAnswer, match="content"):
            call.whole(answer)


def test_the_scheduler_sees_short_work() -> None:
    body = {"model": "m", "prompt": "x", "priority": 3, "return_token_strs": True}
    assert TOKENIZE.scheduled(body) == {
        "model": "m",
        "priority": 3,
        "prompt": "x",
        "max_tokens": 1,
    }
    assert DETOKENIZE.scheduled({"model": "m", "tokens": [1, 2]})["prompt"] == [1, 2]
