"""Merged embedding calls over the real gateway and the real embedding server."""

from __future__ import annotations

import asyncio
import base64
import re
from typing import Any

import httpx
import numpy as np
import openai
import pytest

pytestmark = pytest.mark.e2e

MODEL = "all-minilm-l6-v2"
CALLS = [
    ["one text"] if number % 3 else [f"text {number} " + "word " * (number % 17), "shared by all"]
    for number in range(60)
]


def merged_calls(page: str) -> float:
    found = re.findall(r"^sage_gateway_batch_inputs_count\{.*\} (\S+)$", page, re.MULTILINE)
    return sum(float(count) for count in found)


async def embed_all(client: httpx.AsyncClient, calls: list[list[str]], **fields: Any) -> list[Any]:
    async def one(texts: list[str]) -> Any:
        answer = await client.post(
            "/v1/embeddings", json={"model": MODEL, "input": texts, **fields}
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    return list(await asyncio.gather(*(one(texts) for texts in calls)))


async def test_merged_calls_get_the_vectors_of_single_ones(stack: Any) -> None:
    headers = {"authorization": f"Bearer {stack.key}"}
    url = stack.endpoint("gateway")
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=120, trust_env=False
    ) as client:
        before = (await client.get("/v1/management/policy")).json()["policy"]
        alone = [(await embed_all(client, [texts]))[0] for texts in CALLS]
        switched = await client.put("/v1/management/policy", json={"policy": "hybrid"})
        assert switched.status_code == 200, switched.text
        try:
            count = merged_calls((await client.get("/metrics")).text)
            together = await embed_all(client, CALLS)
            assert merged_calls((await client.get("/metrics")).text) > count
            coded = await embed_all(client, CALLS[:12], encoding_format="base64")
            too_long = await client.post(
                "/v1/embeddings", json={"model": MODEL, "input": ["fine", 5]}
            )
            assert too_long.status_code == 400
            strict = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=stack.key)
            many = await strict.embeddings.create(model=MODEL, input=[t for c in CALLS for t in c])
            await strict.close()
        finally:
            await client.put("/v1/management/policy", json={"policy": before})
    for texts, single, merged in zip(CALLS, alone, together, strict=True):
        assert [item["index"] for item in merged["data"]] == list(range(len(texts)))
        assert merged["model"] == single["model"]
        for one, other in zip(single["data"], merged["data"], strict=True):
            np.testing.assert_allclose(one["embedding"], other["embedding"], atol=2e-6)
    # The shares add up to what the engine counted; equal inputs were computed once.
    total = sum(answer["usage"]["prompt_tokens"] for answer in together)
    assert 0 < total <= sum(answer["usage"]["prompt_tokens"] for answer in alone)
    for single, merged in zip(alone, coded, strict=False):
        for one, other in zip(single["data"], merged["data"], strict=True):
            vector = np.frombuffer(base64.b64decode(other["embedding"]), dtype="<f4")
            np.testing.assert_allclose(one["embedding"], vector, atol=2e-6)
    flat = [item["embedding"] for answer in alone for item in answer["data"]]
    np.testing.assert_allclose([item.embedding for item in many.data], flat, atol=2e-6)
