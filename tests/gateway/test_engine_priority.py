"""The body's ``priority``: to engines that schedule by it, and to no other."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

EMBED = {"model": "m", "input": "x"}


@pytest.mark.parametrize("priority", [-5, 0, 7, None])
async def test_an_engine_that_takes_none_gets_none(lab: Any, priority: int | None) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer))
    given = b'{"temperature": 0.50, "priority": %b, "n": 1,' % orjson.dumps(priority)
    body = given + orjson.dumps(lab.CHAT)[1:]
    headers = {"content-type": "application/json"}
    answer = await gateway.client.post("/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code == 200
    kept = b'{"temperature": 0.50, "n": 1,' + orjson.dumps(lab.CHAT)[1:]
    assert peer.posts[0].body == kept, "all else is as the client sent it"


@pytest.mark.parametrize(
    ("fields", "headers", "number"),
    [
        ({"priority": -5}, {}, 1),  # one more urgent than standard
        ({"priority": 5}, {}, 3),
        ({"stream": True}, {}, 1),
        ({}, {}, 2),
        ({"priority": -9}, {"x-sage-band": "batch"}, 3),
        ({}, {"x-sage-band": "critical"}, 0),
    ],
)
async def test_an_engine_that_takes_it_gets_the_band(
    lab: Any, fields: dict[str, Any], headers: dict[str, str], number: int
) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer, takes_priority=True))
    assert (await gateway.chat(**fields, headers=headers)).status_code == 200
    assert peer.posts[0].json["priority"] == number


async def test_a_retry_translates_for_the_next_engine(lab: Any) -> None:
    async def broken(request: Any) -> None:
        await request.answer(500, b"{}")

    vllm, other = await lab.peer(broken), await lab.peer()
    gateway = await lab.gateway(
        lab.engine(vllm, "e1", takes_priority=True), lab.engine(other, "e2"), policy="fifo"
    )
    answer = await gateway.chat(priority=3)
    assert answer.status_code == 200
    assert vllm.posts[0].json["priority"] == 3
    assert "priority" not in other.posts[0].json


async def test_embedding_calls_too(lab: Any) -> None:
    plain, vllm = await lab.peer(), await lab.peer()
    model = lab.engine(plain, models=(lab.embedding_model,))
    gateway = await lab.gateway(model)
    await gateway.client.post("/v1/embeddings", json={**EMBED, "priority": 2})
    assert plain.posts[0].json == EMBED
    gateway = await lab.gateway(lab.engine(vllm, models=model.models, takes_priority=True))
    await gateway.client.post("/v1/embeddings", json=EMBED)
    assert vllm.posts[0].json == {**EMBED, "priority": 1}
