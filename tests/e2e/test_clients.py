"""Unmodified client packages through the gateway to llama.cpp, besides plain ``openai``.

Those that are not installed are skipped: ``pip install 'sage-prefect[clients]'`` brings them.
Answers are short: the model is asked for a handful of tokens, whatever they say.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import openai
import pytest
from pydantic import BaseModel

pytestmark = pytest.mark.e2e

KEY = "sk-e2e-master"
CHAT, EMBEDDING = "smollm2-135m", "all-minilm-l6-v2"
ASKED = "What colour is the sky? One word."
QUESTION: Any = [{"role": "user", "content": ASKED}]


class Colour(BaseModel):
    colour: Literal["blue", "red"]


def client_package(name: str, distribution: str = "") -> Any:
    """Import a client, or skip; what it warns of is its own affair."""
    import importlib
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            pytest.skip(
                f"{distribution or name} is not installed ({error}): "
                "pip install 'sage-prefect[clients]'"
            )


@pytest.fixture(scope="module")
def said(serving: Any) -> str:
    """What the model answers in 6 tokens at temperature 0, over plain chat."""
    with openai.OpenAI(base_url=f"{serving.url}/v1", api_key=KEY) as client:
        whole = client.chat.completions.create(
            model=CHAT, messages=QUESTION, max_tokens=6, temperature=0
        )
    text = whole.choices[0].message.content
    assert text
    return text


# -- openai: what the chat tests beside this file leave out ---------------------------------


@pytest.fixture
def client(serving: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{serving.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def test_openai_responses(client: openai.OpenAI, said: str) -> None:
    asked: Any = {"model": CHAT, "input": ASKED, "max_output_tokens": 6, "temperature": 0}
    whole = client.responses.create(**asked)
    assert whole.output_text == said
    assert whole.status == "incomplete"
    assert whole.usage is not None
    assert whole.usage.output_tokens == 6
    kinds = []
    with client.responses.stream(**asked) as stream:
        for event in stream:
            kinds.append(event.type)
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.incomplete"
    streamed = "".join(
        event.delta
        for event in client.responses.create(**asked, stream=True)
        if event.type == "response.output_text.delta"
    )
    assert streamed == said


def test_openai_structured_outputs(client: openai.OpenAI) -> None:
    chat = client.chat.completions.parse(
        model=CHAT, messages=QUESTION, max_tokens=30, temperature=0, response_format=Colour
    )
    assert chat.choices[0].message.parsed is not None
    response = client.responses.parse(
        model=CHAT, input=ASKED, max_output_tokens=30, temperature=0, text_format=Colour
    )
    assert response.output_parsed == chat.choices[0].message.parsed


def test_openai_tools(client: openai.OpenAI) -> None:
    """The engine's grammar makes the call; both APIs get the same one."""
    schema = Colour.model_json_schema()
    tool: Any = {"type": "function", "function": {"name": "paint", "parameters": schema}}
    common: Any = {"model": CHAT, "temperature": 0, "tool_choice": "required"}
    chat = client.chat.completions.create(messages=QUESTION, tools=[tool], max_tokens=40, **common)
    calls = [
        (call.function.name, call.function.arguments)
        for call in chat.choices[0].message.tool_calls or []
        if call.type == "function"
    ]
    flat: Any = {"type": "function", "name": "paint", "parameters": schema}
    response = client.responses.create(input=ASKED, tools=[flat], max_output_tokens=40, **common)
    assert calls == [
        (item.name, item.arguments) for item in response.output if item.type == "function_call"
    ]


async def test_openai_async_responses(serving: Any, said: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{serving.url}/v1", api_key=KEY) as client:
        stream = await client.responses.create(
            model=CHAT, input=ASKED, max_output_tokens=6, temperature=0, stream=True
        )
        events = [event async for event in stream]
    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.output_text == said


def test_openai_embeddings_in_both_encodings(client: openai.OpenAI) -> None:
    plain = client.embeddings.create(model=EMBEDDING, input="a", encoding_format="float")
    packed: Any = client.embeddings.create(model=EMBEDDING, input="a", encoding_format="base64")
    vector = np.frombuffer(base64.b64decode(packed.data[0].embedding), dtype="<f4")
    assert np.allclose(plain.data[0].embedding, vector, atol=1e-6)


def test_openai_says_what_cannot_be_had(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError, match="previous_response_id") as caught:
        client.responses.create(model=CHAT, input="x", previous_response_id="resp_1")
    assert caught.value.status_code == 501


def test_tokens_there_and_back(serving: Any) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=serving.url, headers=headers, trust_env=False) as http:
        body = {"model": CHAT, "prompt": "Hello world", "return_token_strs": True}
        found = http.post("/tokenize", json=body).json()
        assert found["count"] == len(found["tokens"]) == 2
        assert found["token_strs"] == ["Hello", " world"]
        back = http.post("/detokenize", json={"model": CHAT, "tokens": found["tokens"]})
        assert back.json() == {"prompt": "Hello world"}


# -- anthropic ------------------------------------------------------------------------------


def test_anthropic(serving: Any, said: str) -> None:
    anthropic = client_package("anthropic")
    asked: Any = {"model": CHAT, "messages": QUESTION, "max_tokens": 6, "temperature": 0}
    with anthropic.Anthropic(base_url=serving.url, api_key=KEY, max_retries=0) as client:
        whole = client.messages.create(**_plain(asked))
        assert whole.content[0].text == said
        assert (whole.stop_reason, whole.usage.output_tokens) == ("max_tokens", 6)
        with client.messages.stream(**_plain(asked)) as stream:
            assert "".join(stream.text_stream) == said
            final = stream.get_final_message()
        assert final.content[0].text == said
        assert final.stop_reason == whole.stop_reason
        assert final.usage.output_tokens == 6
        total = final.usage.input_tokens + (final.usage.cache_read_input_tokens or 0)
        counted = client.messages.count_tokens(model=CHAT, messages=QUESTION)
        assert counted.input_tokens == total
        assert CHAT in {model.id for model in client.models.list()}
        with pytest.raises(anthropic.NotFoundError, match="nope"):
            client.messages.create(**_plain({**asked, "model": "nope"}))
        with pytest.raises(anthropic.APIStatusError, match="mcp_servers"):
            client.messages.create(**_plain(asked, mcp_servers=[{"url": "x"}]))
        long = [{"role": "user", "content": "why " * 25_000}]
        with pytest.raises(anthropic.BadRequestError, match="context"):
            client.messages.create(**_plain({**asked, "messages": long}))
    stranger = anthropic.Anthropic(base_url=serving.url, api_key="wrong", max_retries=0)
    with stranger, pytest.raises(anthropic.AuthenticationError):
        stranger.models.list()


async def test_anthropic_async(serving: Any, said: str) -> None:
    anthropic = client_package("anthropic")
    async with anthropic.AsyncAnthropic(base_url=serving.url, api_key=KEY) as client:
        kinds = []
        asked = _plain({"model": CHAT, "messages": QUESTION, "max_tokens": 6, "temperature": 0})
        async for event in await client.messages.create(**asked, stream=True):
            kinds.append(event.type)
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def _plain(asked: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Newer versions of the package have no ``temperature``; the API still has."""
    fields = dict(asked)
    fields["extra_body"] = {"temperature": fields.pop("temperature"), **more}
    return fields


# -- frameworks -----------------------------------------------------------------------------

# What these packages warn of at run time is theirs to mend.
frameworks = pytest.mark.filterwarnings("ignore")


@frameworks
def test_litellm(serving: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # It would ask the network for prices otherwise.
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = client_package("litellm")
    common: Any = {"messages": QUESTION, "max_tokens": 6, "temperature": 0, "api_key": KEY}
    v1 = f"{serving.url}/v1"
    whole = litellm.completion(f"openai/{CHAT}", api_base=v1, **common)
    assert whole.choices[0].message.content == said
    pieces = litellm.completion(f"openai/{CHAT}", api_base=v1, stream=True, **common)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == said
    other = litellm.completion(f"anthropic/{CHAT}", api_base=serving.url, **common)
    assert other.choices[0].message.content == said
    vectors = litellm.embedding(f"openai/{EMBEDDING}", ["a", "b"], api_base=v1, api_key=KEY)
    assert [len(item["embedding"]) for item in vectors.data] == [384, 384]


@frameworks
@pytest.mark.parametrize("responses", [False, True])
def test_langchain(serving: Any, said: str, responses: bool) -> None:
    langchain = client_package("langchain_openai", "langchain-openai")
    chat = langchain.ChatOpenAI(
        model=CHAT,
        base_url=f"{serving.url}/v1",
        api_key=KEY,
        temperature=0,
        max_tokens=6,
        use_responses_api=responses,
    )
    whole = chat.invoke(ASKED)
    assert whole.text == said
    assert whole.usage_metadata["output_tokens"] == 6
    assert "".join(piece.text for piece in chat.stream(ASKED)) == said
    structured = chat.model_copy(update={"max_tokens": 30}).with_structured_output(Colour)
    assert isinstance(structured.invoke(ASKED), Colour)


@frameworks
def test_langchain_embeddings(serving: Any) -> None:
    langchain = client_package("langchain_openai", "langchain-openai")
    embed = langchain.OpenAIEmbeddings(
        model=EMBEDDING,
        base_url=f"{serving.url}/v1",
        api_key=KEY,
        check_embedding_ctx_length=False,
    )
    assert np.array(embed.embed_documents(["a", "b"])).shape == (2, 384)


@frameworks
def test_llama_index(serving: Any, said: str) -> None:
    module = client_package("llama_index.llms.openai_like", "llama-index-llms-openai-like")
    messages = client_package("llama_index.core.llms", "llama-index-core")
    llm = module.OpenAILike(
        model=CHAT,
        api_base=f"{serving.url}/v1",
        api_key=KEY,
        is_chat_model=True,
        temperature=0,
        max_tokens=6,
    )
    asked = [messages.ChatMessage(role="user", content=ASKED)]
    assert llm.chat(asked).message.content == said
    assert "".join(piece.delta or "" for piece in llm.stream_chat(asked)) == said
    completion = llm.model_copy(update={"is_chat_model": False})
    assert completion.complete("The sky is").text.strip()


@frameworks
def test_dspy(serving: Any, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    monkeypatch.setenv("DSPY_CACHEDIR", str(tmp_path))
    dspy = client_package("dspy")
    lm = dspy.LM(
        f"openai/{CHAT}",
        api_base=f"{serving.url}/v1",
        api_key=KEY,
        temperature=0,
        max_tokens=6,
        cache=False,
    )
    assert lm(ASKED) == [said]


# -- a reranker that registers itself ---------------------------------------------------------


def test_rerank_and_score(
    serving: Any, tiny_reranker: Path, start_engine: Callable[..., str]
) -> None:
    address = start_engine("embedding_server", "--model", str(tiny_reranker), "--device", "cpu")
    headers = {"authorization": f"Bearer {KEY}"}
    engine = {
        "name": "reranker",
        "base_url": f"{address}/v1",
        "driver": "sentence-transformers",
        "models": [{"name": "tiny-reranker", "mode": "rerank"}],
    }
    with httpx.Client(base_url=serving.url, headers=headers, trust_env=False, timeout=60) as http:
        assert http.post("/v1/management/engines", json=engine).status_code == 201
        try:
            documents = ["abd", "zzzz"]
            body: dict[str, Any] = {"model": "tiny-reranker", "query": "abc"}
            ranked = http.post("/v1/rerank", json={**body, "documents": documents})
            assert ranked.status_code == 200, ranked.text
            scores = http.post(
                "/v1/score",
                json={"model": "tiny-reranker", "text_1": "abc", "text_2": documents},
            )
            found = {r["index"]: r["relevance_score"] for r in ranked.json()["results"]}
            assert [item["score"] for item in scores.json()["data"]] == [found[0], found[1]]
            assert json.loads(ranked.request.content)["query"] == "abc"
            assert ranked.headers["x-sage-engine"] == "reranker"
            wrong = http.post("/v1/embeddings", json={"model": "tiny-reranker", "input": "a"})
            assert wrong.status_code == 400
        finally:
            http.delete("/v1/management/engines/reranker")
