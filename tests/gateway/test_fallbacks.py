"""Orders, fallbacks, aliases and wildcards, with real sockets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sage_gateway.auth import KeyRing
from sage_gateway.config import GatewayConfig, TenantConfig
from sage_gateway.config_router import RouterConfig
from sage_gateway.errors import HttpError
from sage_gateway.fallbacks import Failure, FallbackRules, failure_of
from sage_gateway.model_names import Alias
from sage_gateway.served_model import ServedModel
from sage_prefect.control_plane.events import EngineState

TOO_LONG = (
    b'{"error":{"message":"This model\'s maximum context length is 10 tokens.",'
    b'"type":"invalid_request_error","code":"context_length_exceeded","param":"messages"}}'
)
FILTERED = (
    b'{"error":{"message":"Flagged by our moderation.","code":"content_policy_violation",'
    b'"type":"invalid_request_error","param":null}}'
)


def answers(status: int, body: bytes = b'{"error":{"message":"no","code":"x"}}') -> Any:
    async def behave(request: Any) -> None:
        await request.answer(status if request.method == "POST" else 200, body)

    return behave


def router(**rules: Any) -> RouterConfig:
    return RouterConfig(fallbacks=FallbackRules(**rules))


def served(name: str, **fields: Any) -> tuple[ServedModel, ...]:
    return (ServedModel(name, **fields),)


# -- which failures -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "message", "code", "failure"),
    [
        (500, "boom", None, Failure.GENERAL),
        (503, "", "no_engine_available", Failure.GENERAL),
        (429, "slow down", None, Failure.GENERAL),
        (401, "bad key", None, Failure.GENERAL),
        (404, "no such model", None, Failure.GENERAL),
        (400, "temperature must be a number", "invalid_field", None),
        (422, "field required", None, None),
        (504, "late", "deadline_exceeded", None),
        (503, "bye", "shutting_down", None),
        (400, "x", "context_length_exceeded", Failure.CONTEXT_WINDOW),
        (400, "the request exceeds the available context size", None, Failure.CONTEXT_WINDOW),
        (400, "The prompt is longer than the maximum model length", None, Failure.CONTEXT_WINDOW),
        (400, "prompt is too long: 9 tokens > 5 maximum", None, Failure.CONTEXT_WINDOW),
        (400, "x", "content_filter", Failure.CONTENT_POLICY),
        (400, "Azure's content management policy", None, Failure.CONTENT_POLICY),
    ],
)
def test_kinds_of_failures(
    status: int, message: str, code: str | None, failure: Failure | None
) -> None:
    assert failure_of(HttpError(status, message, code=code)) is failure


def test_rules() -> None:
    rules = FallbackRules({"a": ("b",), "*": ("c", "a")}, {"a": ("long",)}, default=("d",))
    assert rules.after("a", Failure.GENERAL) == ("b",)
    assert rules.after("z", Failure.GENERAL) == ("c", "a")
    assert rules.after("c", Failure.GENERAL) == ("a",)
    assert rules.after("a", Failure.CONTEXT_WINDOW) == ("long",)
    assert rules.after("b", Failure.CONTEXT_WINDOW) == ()  # such a list is configured: it counts
    assert rules.after("a", Failure.CONTENT_POLICY) == ("b",)  # none is: the general one
    assert FallbackRules(default=("d", "a")).after("a", Failure.GENERAL) == ("d",)
    assert FallbackRules({"a": ("b", "c", "d")}, most=2).after("a", Failure.GENERAL) == ("b", "c")
    assert not FallbackRules()


# -- through the gateway ------------------------------------------------------------------


async def test_another_model_answers(lab: Any) -> None:
    big, small = await lab.peer(answers(500)), await lab.peer()
    gateway = await lab.gateway(
        lab.engine(big, "e-big", models=served("big")),
        lab.engine(small, "e-small", models=served("small", upstream="real-small")),
        router=router(general={"big": ("nobody", "small")}),
    )
    answer = await gateway.chat(model="big")
    assert answer.status_code == 200
    assert answer.headers["x-sage-engine"] == "e-small"
    assert answer.headers["x-sage-model"] == "small"
    assert small.posts[0].json["model"] == "real-small"
    assert len(big.posts) == 1
    stream = await gateway.chat(model="big", stream=True)
    assert stream.content.endswith(lab.DONE)
    assert gateway.gateway.manager.running == gateway.gateway.manager.queued == 0
    direct = await gateway.chat(model="small")
    assert "x-sage-model" not in direct.headers


async def test_the_last_error_is_told_when_nobody_can(lab: Any) -> None:
    big, small = await lab.peer(answers(500)), await lab.peer(answers(503, b'{"error":"full"}'))
    gateway = await lab.gateway(
        lab.engine(big, "e-big", models=served("big")),
        lab.engine(small, "e-small", models=served("small")),
        # Each names the other: nobody goes round in circles.
        router=router(general={"big": ("small",), "small": ("big",)}),
    )
    answer = await gateway.chat(model="big")
    assert answer.status_code == 503
    assert "full" in answer.json()["error"]["message"]
    assert (len(big.posts), len(small.posts)) == (1, 1)


async def test_the_client_s_own_mistake_stays_the_client_s(lab: Any) -> None:
    big, small = await lab.peer(answers(400)), await lab.peer()
    gateway = await lab.gateway(
        lab.engine(big, "e-big", models=served("big")),
        lab.engine(small, "e-small", models=served("small")),
        router=router(general={"big": ("small",)}),
    )
    answer = await gateway.chat(model="big")
    assert answer.status_code == 400
    assert answer.json() == {"error": {"message": "no", "code": "x"}}  # the engine's own bytes
    assert not small.posts


@pytest.mark.parametrize(("body", "model"), [(TOO_LONG, "long"), (FILTERED, "mild")])
async def test_special_failures_have_their_own_models(lab: Any, body: bytes, model: str) -> None:
    big, long, mild = await lab.peer(answers(400, body)), await lab.peer(), await lab.peer()
    gateway = await lab.gateway(
        lab.engine(big, "e-big", models=served("big")),
        lab.engine(long, "e-long", models=served("long")),
        lab.engine(mild, "e-mild", models=served("mild")),
        router=router(context_window={"big": ("long",)}, content_policy={"big": ("mild",)}),
    )
    answer = await gateway.chat(model="big")
    assert (answer.status_code, answer.headers["x-sage-model"]) == (200, model)
    plain = await gateway.chat(model="big", stream=True)
    assert plain.headers["x-sage-engine"] == f"e-{model}"


async def test_an_engine_of_the_next_order_answers_when_those_before_fail(lab: Any) -> None:
    first, second = await lab.peer(), await lab.peer()
    gateway = await lab.gateway(
        lab.engine(first, "e1", models=served("m", order=1)),
        lab.engine(second, "e2", models=served("m", order=2)),
    )
    for _ in range(8):
        assert (await gateway.chat()).headers["x-sage-engine"] == "e1"
    first.behaviour = answers(500)
    answer = await gateway.chat()
    assert (answer.status_code, answer.headers["x-sage-engine"]) == (200, "e2")
    assert "x-sage-model" not in answer.headers  # the model is the same
    assert (await gateway.client.get("/v1/models")).json()["data"][0]["id"] == "m"
    assert "(order" not in (await gateway.client.get("/metrics")).text


async def test_nobody_waits_for_a_model_that_is_away_when_another_can_answer(lab: Any) -> None:
    first, second = await lab.peer(), await lab.peer()
    gateway = await lab.gateway(
        lab.engine(first, "e1", models=served("big")),
        lab.engine(second, "e2", models=served("small")),
        router=router(general={"big": ("small",)}),
    )
    assert (await gateway.chat(model="big")).headers["x-sage-engine"] == "e1"
    await first.stop()
    # The first hears of it by its own connection, the others are not sent there at all.
    answers = await asyncio.wait_for(
        asyncio.gather(*(gateway.chat(model="big") for _ in range(5))), 5
    )
    assert {answer.headers["x-sage-engine"] for answer in answers} == {"e2"}


async def test_who_waits_when_the_model_goes_away_goes_elsewhere(lab: Any) -> None:
    release = asyncio.Event()

    async def held(request: Any) -> None:
        await release.wait()
        await lab.chat(request)

    first, second = await lab.peer(held), await lab.peer()
    gateway = await lab.gateway(
        lab.engine(first, "e1", models=served("big"), max_concurrency=1),
        lab.engine(second, "e2", models=served("small")),
        router=router(general={"big": ("small",)}),
    )
    running = asyncio.ensure_future(gateway.chat(model="big"))
    await lab.until(lambda: first.posts)
    waiting = asyncio.ensure_future(gateway.chat(model="big"))
    await lab.until(lambda: gateway.gateway.manager.queued == 1)
    gateway.gateway.states.report("e1", EngineState.SUSPECT, "the test says so")
    answer = await asyncio.wait_for(waiting, 5)
    assert answer.headers["x-sage-engine"] == "e2"
    release.set()
    assert (await running).headers["x-sage-engine"] == "e1"


async def test_a_key_s_fallbacks_are_models_that_it_may_use(lab: Any) -> None:
    inside, cloud = await lab.peer(answers(500)), await lab.peer()
    keys = KeyRing(lab.KEY, [TenantConfig("t", "sk-t", models=("inside", "other-*"))])
    gateway = await lab.gateway(
        lab.engine(inside, "e1", models=served("inside")),
        lab.engine(cloud, "e2", models=served("cloud")),
        keys=keys,
        router=router(general={"inside": ("cloud",)}),
    )
    tenant = {"authorization": "Bearer sk-t"}
    assert (await gateway.chat(model="inside", headers=tenant)).status_code == 500
    assert not cloud.posts
    assert (await gateway.chat(model="inside")).status_code == 200
    denied = await gateway.chat(model="cloud", headers=tenant)
    assert (denied.status_code, denied.json()["error"]["code"]) == (403, "model_not_allowed")
    assert "inside, other-*" in denied.json()["error"]["message"]
    listed = await gateway.client.get("/v1/models", headers=tenant)
    assert [model["id"] for model in listed.json()["data"]] == ["inside"]
    assert (await gateway.client.get("/v1/models/cloud", headers=tenant)).status_code == 404


async def test_aliases_and_wildcards_are_sent_by_the_engine_s_name(lab: Any) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(
        lab.engine(peer, "e1", models=served("small")),
        lab.engine(peer, "e2", models=served("openai/*", upstream="*")),
        router=RouterConfig(aliases={"gpt-4": Alias("small"), "new": Alias("openai/o9")}),
    )
    for name, sent in [("gpt-4", "small"), ("openai/gpt-5", "gpt-5"), ("new", "o9")]:
        assert (await gateway.chat(model=name)).status_code == 200
        assert peer.posts[-1].json["model"] == sent
    assert (await gateway.client.get("/v1/models/openai/anything")).status_code == 200
    unknown = await gateway.chat(model="other")
    assert unknown.status_code == 404
    assert (
        gateway.metric("sage_gateway_requests_total", route="chat", model="openai/*", status="2xx")
        == 2
    )  # the names that clients choose are no labels


async def test_embedding_calls_of_an_alias_and_of_a_wildcard(lab: Any) -> None:
    async def embed(request: Any) -> None:
        texts = request.json["input"]
        count = 1 if isinstance(texts, str) else len(texts)
        data = ",".join(f'{{"index":{i},"embedding":[{i}.5]}}' for i in range(count))
        await request.answer(
            200,
            f'{{"object":"list","model":"real","data":[{data}],'
            f'"usage":{{"prompt_tokens":{count},"total_tokens":{count}}}}}'.encode(),
        )

    gate = asyncio.Event()

    async def held(request: Any) -> None:
        await gate.wait()
        await embed(request)

    peer = await lab.peer(held)
    gateway = await lab.gateway(
        lab.engine(
            peer,
            "e1",
            models=(
                ServedModel("emb", "embedding", "real"),
                ServedModel("any/*", "embedding", "*"),
            ),
            max_concurrency=1,
        ),
        router=RouterConfig(aliases={"ada": Alias("emb")}),
    )

    async def call(model: str) -> dict[str, Any]:
        answer = await gateway.client.post("/v1/embeddings", json={"model": model, "input": model})
        assert answer.status_code == 200, answer.text
        content: dict[str, Any] = answer.json()
        return content

    first = asyncio.ensure_future(call("emb"))
    await lab.until(lambda: peer.posts)
    names = ("ada", "emb", "any/x", "any/y")
    calls = [asyncio.ensure_future(call(name)) for name in names]
    await lab.until(lambda: gateway.gateway.manager.queued == 4)
    gate.set()
    assert (await first)["model"] == "emb"
    for name, waiting in zip(names, calls, strict=True):
        content = await waiting
        assert content["model"] == name
        assert len(content["data"]) == 1
    sent = sorted((post.json["model"], post.json["input"]) for post in peer.posts[1:])
    assert ("x", "any/x") in sent
    assert ("y", "any/y") in sent
    assert {model for model, _ in sent} == {"real", "x", "y"}


async def test_a_model_without_engines_falls_back_as_well(lab: Any) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(
        lab.engine(peer, models=served("small")), router=router(default=("small",))
    )
    assert (await gateway.chat(model="gone")).headers["x-sage-model"] == "small"


def test_nothing_is_configured_by_default() -> None:
    assert GatewayConfig().router == RouterConfig()
