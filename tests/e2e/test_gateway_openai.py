"""The unmodified ``openai`` package through the gateway to real engines (llama.cpp, embeddings)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest

pytestmark = pytest.mark.e2e

KEY = "sk-e2e-master"
CHAT, EMBEDDING = "smollm2-135m", "all-minilm-l6-v2"


@pytest.fixture
def client(serving: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{serving.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


QUESTION: list[dict[str, str]] = [{"role": "user", "content": "What colour is the sky? One word."}]


def test_models(client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {"assistant", CHAT, EMBEDDING}
    assert client.models.retrieve(CHAT).id == CHAT


def test_chat_whole_and_streamed_agree(client: openai.OpenAI) -> None:
    common = {"model": "assistant", "messages": QUESTION, "max_tokens": 12, "temperature": 0}
    raw = client.chat.completions.with_raw_response.create(**common)
    whole = raw.parse()
    assert raw.headers["x-sage-engine"]
    assert whole.usage is not None
    assert whole.usage.completion_tokens >= 1
    assert whole.choices[0].finish_reason in ("stop", "length")
    stream = client.chat.completions.create(
        **common, stream=True, stream_options={"include_usage": True}
    )
    text, usage = "", None
    for chunk in stream:
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    assert text == whole.choices[0].message.content
    assert usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens
    unasked = client.chat.completions.create(**common, stream=True)
    assert all(chunk.choices and chunk.usage is None for chunk in unasked)


def test_an_assembled_answer_is_the_engines_own(serving: Any, client: openai.OpenAI) -> None:
    """llama.cpp is asked to stream; what the client gets must equal its non-streaming answer."""
    body = {
        "model": CHAT,
        "messages": QUESTION,
        "max_tokens": 8,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 2,
    }
    through = client.chat.completions.create(**body).model_dump()
    with openai.OpenAI(base_url=f"{serving.llm_url}/v1", api_key="none") as direct_client:
        direct = direct_client.chat.completions.create(**body).model_dump()
    assert set(direct) <= set(through)
    ours, theirs = through["choices"][0], direct["choices"][0]
    assert set(theirs) <= set(ours)
    assert ours["message"]["content"] == theirs["message"]["content"]
    assert ours["finish_reason"] == theirs["finish_reason"]
    assert through["object"] == direct["object"] == "chat.completion"
    assert through["usage"]["completion_tokens"] == direct["usage"]["completion_tokens"]
    tokens = [[entry["token"] for entry in c["logprobs"]["content"]] for c in (ours, theirs)]
    assert tokens[0] == tokens[1]


def test_completions(client: openai.OpenAI) -> None:
    done = client.completions.create(model=CHAT, prompt="The sky is", max_tokens=6, temperature=0)
    assert done.choices[0].text.strip()
    streamed = client.completions.create(
        model=CHAT, prompt="The sky is", max_tokens=6, temperature=0, stream=True
    )
    assert "".join(c.text for chunk in streamed for c in chunk.choices) == done.choices[0].text


def test_structured_output(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"type": "string", "enum": ["blue", "red"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=CHAT,
        messages=QUESTION,
        max_tokens=30,
        temperature=0,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema, "strict": True},
        },
    )
    assert json.loads(answer.choices[0].message.content or "")["colour"] in ("blue", "red")


def test_embeddings(client: openai.OpenAI) -> None:
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "Stocks fell sharply."]
    # The package asks for base64 by itself and decodes it.
    decoded = client.embeddings.create(model=EMBEDDING, input=texts)
    vectors = np.array([item.embedding for item in decoded.data])
    assert vectors.shape == (3, 384)
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert near > far + 0.2
    plain = client.embeddings.create(model=EMBEDDING, input=texts[0], encoding_format="float")
    assert np.allclose(plain.data[0].embedding, vectors[0], atol=1e-4)
    assert decoded.usage.prompt_tokens > 0


async def test_async_client(serving: Any) -> None:
    async with openai.AsyncOpenAI(base_url=f"{serving.url}/v1", api_key=KEY) as client:
        stream = await client.chat.completions.create(
            model=CHAT, messages=QUESTION, max_tokens=5, stream=True
        )
        pieces = [chunk async for chunk in stream]
    assert pieces[-1].choices[0].finish_reason


def test_errors_are_the_packages_own(serving: Any, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=f"Known models: {EMBEDDING}, assistant"):
        client.chat.completions.create(model="nope", messages=QUESTION)
    with pytest.raises(openai.BadRequestError, match="messages"):
        client.chat.completions.create(model=CHAT, messages=[])
    stranger = openai.OpenAI(base_url=f"{serving.url}/v1", api_key="wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    with pytest.raises(openai.BadRequestError, match="/v1/embeddings"):
        client.chat.completions.create(model=EMBEDDING, messages=QUESTION)


def test_a_question_of_100_000_characters(client: openai.OpenAI) -> None:
    """Too long for the context: the engine's own clear error, not a hang and not a crash."""
    long = [{"role": "user", "content": "why " * 25_000}]
    with pytest.raises(openai.APIStatusError, match="context") as caught:
        client.chat.completions.create(model=CHAT, messages=long, max_tokens=5)
    assert caught.value.status_code == 400


@pytest.mark.parametrize("stream", [True, False])
def test_the_engine_stops_when_the_client_goes(
    serving: Any, client: openai.OpenAI, stream: bool
) -> None:
    serving.until_slots(busy=False, limit_s=60)
    story = [{"role": "user", "content": "Write a very long story about a whale."}]
    body = {"model": CHAT, "messages": story, "max_tokens": 1500, "temperature": 0.8}
    if stream:
        events = client.chat.completions.create(**body, stream=True)
        next(iter(events))
        serving.until_slots(busy=True, limit_s=60)
        events.close()
    else:
        import http.client

        connection = http.client.HTTPConnection(serving.url.removeprefix("http://"))
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        serving.until_slots(busy=True, limit_s=60)
        connection.close()
    # 1,500 tokens take longer than this on any machine where the slot would stay busy.
    serving.until_slots(busy=False, limit_s=20)


def test_nothing_secret_in_the_log(serving: Any) -> None:
    assert KEY not in serving.log.read_text()
