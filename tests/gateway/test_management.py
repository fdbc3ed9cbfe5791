"""The management API."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sage_gateway.auth import KeyRing
from sage_gateway.config import TenantConfig
from sage_gateway.routes import INFERENCE_ROUTES
from sage_prefect.control_plane.events import EngineProfile
from sage_prefect.control_plane.strategies import POLICIES

ENGINES = "/v1/management/engines"


def entry(peer: Any, **fields: Any) -> dict[str, Any]:
    return {
        "name": "llm",
        "base_url": peer.url,
        "models": [{"name": "m", "mode": "chat"}],
        "driver": "llamacpp",
        "device": "cpu",
        "max_concurrency": 4,
        **fields,
    }


async def test_register_replace_list_remove(lab: Any) -> None:
    peer, other = await lab.peer(), await lab.peer()
    gateway = await lab.gateway()
    assert (await gateway.chat()).status_code == 404
    added = await gateway.client.post(ENGINES, json=entry(peer, api_key="k", upstream_model="up"))
    assert added.status_code == 201
    assert (await gateway.chat()).status_code == 200
    assert peer.posts[0].headers["authorization"] == "Bearer k"
    assert peer.posts[0].json["model"] == "up"
    listed = (await gateway.client.get(ENGINES)).json()["engines"]
    assert len(listed) == 1
    assert listed[0]["name"] == "llm"
    assert listed[0]["state"] == "ready"
    assert listed[0]["has_api_key"] is True
    assert "api_key" not in listed[0]
    assert (listed[0]["max_batch_inputs"], listed[0]["accelerator"]) == (32, None)
    fields = {
        "max_batch_inputs": 9,
        "max_batch_tokens": 99,
        "accelerator": "h/gpu1",
        "padded": True,
        "weight": 2.5,
    }
    again = await gateway.client.post(ENGINES, json=entry(other, models=[{"name": "m2"}], **fields))
    replaced = gateway.gateway.manager.ledger.get("llm").spec
    assert {name: getattr(replaced, name) for name in fields} == fields
    assert again.status_code == 200
    assert (await gateway.chat()).status_code == 404
    assert (await gateway.chat(model="m2")).status_code == 200
    assert len(other.posts) == 1
    assert (await gateway.client.delete(f"{ENGINES}/llm")).status_code == 200
    missing = await gateway.client.delete(f"{ENGINES}/llm")
    assert missing.status_code == 404
    assert "Known engines: none" in missing.json()["error"]["message"]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"base_url": "ftp://x/v1"}, "not an http or https URL"),
        ({"base_url": "http://u:p@x/v1"}, "user or password"),
        ({"base_url": "http://x/v1?a=b"}, "query"),
        ({"base_url": "http://x y/v1"}, "spaces"),
        ({"name": "bad name\r\n"}, "not usable"),
        ({"api_key": "a\r\nx-evil: 1"}, "api_key"),
        ({"models": []}, "models"),
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"max_concurrency": "many"}, "max_concurrency"),
        ({"max_batch_inputs": 0}, "max_batch_inputs"),
        ({"max_batch_tokens": -1}, "max_batch_tokens"),
        ({"colour": "red"}, "colour"),
        ({"models": [{"name": "a"}, {"name": "b"}], "upstream_model": "c"}, "upstream_model"),
    ],
)
async def test_wrong_registrations_change_nothing(
    lab: Any, change: dict[str, Any], part: str
) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer, "llm"))
    refused = await gateway.client.post(ENGINES, json=entry(peer, **change))
    assert refused.status_code == 400
    assert part in refused.json()["error"]["message"]
    assert (await gateway.chat()).status_code == 200


async def test_an_embedding_engine_s_profile(lab: Any) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway()
    said = {"s0": 0.002, "alpha": 3e-6}
    wish = entry(peer, models=[{"name": "e", "mode": "embedding"}], profile=said, padded=True)
    added = await gateway.client.post(ENGINES, json=wish)
    assert added.status_code == 201
    spec = gateway.gateway.manager.ledger.get("llm").spec
    assert spec.profile == EngineProfile(s0=0.002, alpha=3e-6, source="management API")
    assert spec.padded
    listed = (await gateway.client.get(ENGINES)).json()["engines"][0]
    assert listed["padded"] is True
    assert (listed["profile"]["s0"], listed["profile"]["alpha"]) == (0.002, 3e-6)
    for wrong in ({"s1": 1}, {"s0": -1}, {"alpha": "slow"}):
        refused = await gateway.client.post(ENGINES, json=entry(peer, profile=wrong))
        assert refused.status_code == 400
        assert f"profile.{next(iter(wrong))}" in refused.json()["error"]["message"]


async def test_drain_and_undrain(lab: Any) -> None:
    gate = asyncio.Event()

    async def held(request: Any) -> None:
        await gate.wait()
        await lab.chat(request)

    busy, other = await lab.peer(held), await lab.peer()
    gateway = await lab.gateway(lab.engine(busy, "a/busy"))
    running = asyncio.ensure_future(gateway.chat())
    await lab.until(lambda: busy.posts)
    await gateway.client.post(ENGINES, json=entry(other, name="other"))
    drained = (await gateway.client.post(f"{ENGINES}/a/busy/drain")).json()
    assert (drained["state"], drained["drained"], drained["in_flight"]) == ("draining", True, 1)
    for _ in range(3):
        assert (await gateway.chat()).headers["x-sage-engine"] == "other"
    gate.set()
    assert (await running).headers["x-sage-engine"] == "a/busy"
    back = (await gateway.client.post(f"{ENGINES}/a/busy/undrain")).json()
    assert (back["state"], back["drained"], back["in_flight"]) == ("ready", False, 0)
    await gateway.client.post(f"{ENGINES}/other/drain")
    assert (await gateway.chat()).headers["x-sage-engine"] == "a/busy"
    # Registering it again says that it is to be used.
    again = await gateway.client.post(ENGINES, json=entry(other, name="other"))
    assert again.status_code == 200
    assert gateway.gateway.engine_states()[1]["state"] == "ready"
    for verb in ("drain", "undrain"):
        missing = await gateway.client.post(f"{ENGINES}/none/{verb}")
        assert missing.status_code == 404
        assert "a/busy" in missing.json()["error"]["message"]


async def test_state(lab: Any) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer))
    state = (await gateway.client.get("/v1/management/state")).json()
    assert state["models"] == {"m": ["e1"]}
    assert (state["queued"], state["running"], state["ready"]) == (0, 0, True)
    assert state["policy"] == "hybrid"
    assert state["engines"][0]["name"] == "e1"
    assert state["config_file"] is None
    assert lab.KEY not in str(state)


async def test_only_the_master_key_manages(lab: Any) -> None:
    peer = await lab.peer()
    keys = KeyRing(lab.KEY, [TenantConfig("search", "tenant-key")])
    gateway = await lab.gateway(lab.engine(peer), keys=keys)
    tenant = {"authorization": "Bearer tenant-key"}
    assert (await gateway.chat(headers=tenant)).status_code == 200
    refused = await gateway.client.get(ENGINES, headers=tenant)
    assert refused.status_code == 403
    assert (await gateway.client.get(ENGINES)).status_code == 200


async def test_policy(lab: Any) -> None:
    gateway = await lab.gateway()
    got = (await gateway.client.get("/v1/management/policy")).json()
    assert got == {"policy": "hybrid", "known": sorted(POLICIES)}
    put = await gateway.client.put("/v1/management/policy", json={"policy": "fifo"})
    assert put.json()["policy"] == "fifo"
    unknown = await gateway.client.put("/v1/management/policy", json={"policy": "fifi"})
    assert unknown.status_code == 400
    assert "Did you mean 'fifo'?" in unknown.json()["error"]["message"]
    assert "least_outstanding" in unknown.json()["error"]["message"]


async def test_policy_switch_loses_no_queued_request(lab: Any) -> None:
    gate = asyncio.Event()

    async def held(request: Any) -> None:
        await gate.wait()
        await lab.chat(request)

    peer = await lab.peer(held)
    gateway = await lab.gateway(lab.engine(peer, max_concurrency=1))
    calls = [asyncio.ensure_future(gateway.chat()) for _ in range(5)]
    await lab.until(lambda: gateway.gateway.manager.queued == 4)
    await gateway.client.put("/v1/management/policy", json={"policy": "fifo"})
    assert gateway.gateway.manager.queued == 4
    gate.set()
    assert [(await call).status_code for call in calls] == [200] * 5


async def test_removing_an_engine_lets_its_requests_finish(lab: Any) -> None:
    gate = asyncio.Event()

    async def held(request: Any) -> None:
        await gate.wait()
        await lab.chat(request)

    peer = await lab.peer(held)
    gateway = await lab.gateway(lab.engine(peer, "e1", max_concurrency=1))
    running, queued = (asyncio.ensure_future(gateway.chat()) for _ in range(2))
    await lab.until(lambda: gateway.gateway.manager.queued == 1)
    await gateway.client.delete(f"{ENGINES}/e1")
    orphan = await queued
    assert orphan.status_code == 503
    assert "retry-after" in orphan.headers
    gate.set()
    assert (await running).status_code == 200


async def test_explain(lab: Any) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer))
    await gateway.chat(headers={"x-request-id": "why"})
    story = (await gateway.client.get("/v1/management/explain/why")).json()
    assert story["state"] == "done"
    assert story["engine"] == "e1"
    assert story["decisions"][0]["what"] == "dispatched"
    assert story["decisions"][0]["scores"][0][0] == "e1"
    assert (await gateway.client.get("/v1/management/explain/nothing")).status_code == 404


async def test_description_covers_all_routes(lab: Any) -> None:
    gateway = await lab.gateway()
    described = (await gateway.client.get("/openapi.json")).json()["paths"]
    assert set(described) == {
        *INFERENCE_ROUTES,
        *gateway.app._plain,
        "/v1/models/{id}",
        "/v1/management/engines",
        "/v1/management/engines/{name}",
        "/v1/management/engines/{name}/drain",
        "/v1/management/engines/{name}/undrain",
        "/v1/management/keys",
        "/v1/management/keys/{key_id}",
        "/v1/management/tenants",
        "/v1/management/tenants/{name}",
        "/v1/management/reload",
        "/v1/management/state",
        "/v1/management/policy",
        "/v1/management/explain/{request_id}",
    }
    assert (await gateway.client.get("/docs")).status_code == 200
    assert (await gateway.client.get("/v1/management/nothing")).status_code == 404


async def test_what_is_said_of_an_engine_reaches_the_control_plane(lab: Any) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway()
    said = {"takes_priority": True, "price": 2.5, "kv_tokens": 9000, "max_batch_tokens": 2048}
    answer = await gateway.client.post(ENGINES, json=entry(peer, **said))
    assert answer.status_code == 201
    assert {key: answer.json()[key] for key in said} == said
    spec = gateway.gateway.manager.ledger.get("llm").spec  # type: ignore[union-attr]
    assert (spec.price, spec.kv_tokens, spec.max_batch_tokens) == (2.5, 9000, 2048)
    for wrong in ({"price": -1}, {"kv_tokens": 0}, {"max_batch_tokens": 1 << 40}):
        refused = await gateway.client.post(ENGINES, json=entry(peer, **wrong))
        assert refused.status_code == 400
        assert next(iter(wrong)) in refused.json()["error"]["message"]


async def test_an_engine_that_registered_is_waited_for(lab: Any) -> None:
    """Who registers says that it is up: it may be back in a moment."""
    peer = await lab.peer()
    gateway = await lab.gateway()
    await gateway.client.post(ENGINES, json=entry(peer))
    await peer.stop()
    call = asyncio.ensure_future(gateway.chat())
    await lab.until(lambda: gateway.gateway.manager.queued == 1)
    await peer.start()
    assert (await call).status_code == 200


async def test_a_switch_says_what_the_new_policy_does_not_use(
    lab: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await lab.gateway(tenants=(TenantConfig("t", "k", weight=2.0),), policy="hybrid")
    await gateway.client.put("/v1/management/policy", json={"policy": "priority"})
    assert "tenants[0].weight is not used by policy 'priority'" in caplog.text
