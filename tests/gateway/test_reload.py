"""Another configuration while the gateway runs: all of it or nothing, and no request is lost."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from sage_gateway.auth import KeyRing
from sage_gateway.reload import ConfigSource

RELOAD = "/v1/management/reload"


class File:
    """A configuration file with one engine per peer."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, engines: dict[str, Any], **sections: Any) -> None:
        entries = [
            {
                "model_name": "m",
                "litellm_params": {"model": "openai/m", "api_base": peer.url},
                "model_info": {"id": name},
            }
            for name, peer in engines.items()
        ]
        self.path.write_text(yaml.safe_dump({"model_list": entries, **sections}))

    async def gateway(self, lab: Any, environ: dict[str, str] | None = None) -> Any:
        source = ConfigSource(self.path, environ=environ)
        config = source.load()
        keys = KeyRing(config.master_key or lab.KEY, config.tenants)
        started = await lab.gateway(
            *config.engines,
            keys=keys,
            **{
                name: getattr(config, name)
                for name in ("policy", "router", "tenants", "bands", "scheduling", "timeouts")
            },
        )
        started.gateway.source = source
        return started


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "gateway.yaml")


def names(gateway: Any) -> list[str]:
    return sorted(engine.name for engine in gateway.gateway.engines)


async def test_engines_come_go_and_stay(lab: Any, file: File) -> None:
    a, b, c = await lab.peer(), await lab.peer(), await lab.peer()
    file.write({"a": a, "b": b})
    gateway = await file.gateway(lab)
    registered = {"name": "own", "base_url": c.url, "models": [{"name": "own"}]}
    await gateway.client.post("/v1/management/engines", json=registered)
    kept = gateway.gateway.engines.get("b")
    file.write({"b": b, "c": c})
    answer = await gateway.client.post(RELOAD)
    assert answer.status_code == 200, answer.text
    assert answer.json()["engines"] == {"added": ["c"], "changed": [], "removed": ["a"]}
    assert names(gateway) == ["b", "c", "own"]
    assert gateway.gateway.engines.get("b") is kept  # with its connections
    assert {entry.name for entry in gateway.gateway.manager.ledger} == {"b", "c", "own"}
    seen = {(await gateway.chat()).headers["x-sage-engine"] for _ in range(20)}
    assert seen <= {"b", "c"}
    assert (await gateway.chat(model="own")).status_code == 200


async def test_a_changed_engine_keeps_its_running_request_and_its_drain(
    lab: Any, file: File
) -> None:
    gate = asyncio.Event()

    async def held(request: Any) -> None:
        await gate.wait()
        await lab.chat(request)

    old, new, idle = await lab.peer(held), await lab.peer(), await lab.peer()
    file.write({"e": old, "idle": idle})
    gateway = await file.gateway(lab)
    await gateway.client.post("/v1/management/engines/idle/drain")
    running = asyncio.ensure_future(gateway.chat())
    await lab.until(lambda: old.posts)
    file.write({"e": new, "idle": idle}, router_settings={"timeout": 17})
    changed = (await gateway.client.post(RELOAD)).json()["engines"]["changed"]
    assert sorted(changed) == ["e", "idle"]  # the time limit is both engines'
    assert (await gateway.chat()).headers["x-sage-engine"] == "e"
    assert len(new.posts) == 1
    gate.set()
    assert (await running).status_code == 200
    states = {state["name"]: state["state"] for state in gateway.gateway.engine_states()}
    assert states == {"e": "ready", "idle": "draining"}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("model_list: [", "not YAML"),
        ("model_list: 5", "model_list"),
        ("model_list: [{model_name: m, litellm_params: {model: openai/m, api_base: x}}]", "http"),
        ("router_settings: {routing_strategy: fifi}", "fifi"),
        ("general_settings: {master_key: os.environ/NOT_SET_HERE}", "NOT_SET_HERE"),
        ("sage_settings: {tenants: [{name: t, key: sk-test-master}]}", "master key"),
        (
            "model_list: [{model_name: m, litellm_params: {model: openai/m, api_base: 'http://h/v1',"
            " api_key: 'a b'}}]",
            "api_key",
        ),
    ],
)
async def test_a_bad_file_changes_nothing(
    lab: Any, file: File, caplog: pytest.LogCaptureFixture, text: str, part: str
) -> None:
    peer = await lab.peer()
    tenants = [{"name": "t", "key": "sk-t", "rpm": 100}]
    file.write(
        {"e": peer},
        sage_settings={"tenants": tenants},
        general_settings={"master_key": lab.KEY},
        router_settings={"num_retries": 1, "model_group_alias": {"gpt": "m"}},
    )
    gateway = await file.gateway(lab)
    engine, config = gateway.gateway.engines.get("e"), gateway.gateway.config
    file.path.write_text(text)
    answer = await gateway.client.post(RELOAD)
    assert answer.status_code == 400
    assert part in answer.json()["error"]["message"]
    assert "configuration not reloaded" in caplog.text
    assert part in caplog.text
    assert gateway.gateway.engines.get("e") is engine
    assert gateway.gateway.config is config
    assert gateway.gateway.manager.limits.max_retries == 1
    for headers in ({}, {"authorization": "Bearer sk-t"}):
        assert (await gateway.chat(model="gpt", headers=headers)).status_code == 200


async def test_everything_else_of_the_file_takes_effect(lab: Any, file: File) -> None:
    peer = await lab.peer()
    before = {
        "router_settings": {"routing_strategy": "fifo", "model_group_alias": {"old": "m"}},
        "sage_settings": {
            "tenants": [{"name": "t", "key": "sk-old", "weight": 2}],
            "bands": {"interactive": {"ttft_slo_ms": 500}},
        },
    }
    file.write({"e": peer}, **before)
    gateway = await file.gateway(lab, environ={})
    manager = gateway.gateway.manager
    interactive = manager._bands
    assert [spec.ttft_slo_s for spec in interactive.values()] == [0.5]
    file.write(
        {"e": peer},
        router_settings={
            "routing_strategy": "least-busy",
            "num_retries": 7,
            "model_group_alias": {"new": "m"},
            "fallbacks": [{"gone": ["m"]}],
            "allowed_fails": 1,
            "cooldown_time": 9,
        },
        general_settings={"master_key": "sk-other-master"},
        environment_variables={"SAGE_TEST_OF_RELOAD": "set"},
        sage_settings={
            "tenants": [{"name": "u", "key": "sk-new", "weight": 5}],
            "health": {"failures": 9},
            "server": {"shutdown_s": 3},
        },
    )
    answer = await gateway.client.post(RELOAD)
    assert answer.status_code == 200, answer.text
    assert answer.json()["policy"] == "least_outstanding"
    assert (
        "sage_settings.server.shutdown_s takes effect at the next start."
        in (answer.json()["warnings"])
    )
    assert manager.policy.name == "least_outstanding"
    assert manager.limits.max_retries == 7
    assert [spec.ttft_slo_s for spec in interactive.values()] == [None]
    assert {name: spec.weight for name, spec in manager._tenants.items()} == {"u": 5.0}
    assert os.environ["SAGE_TEST_OF_RELOAD"] == "set"
    assert gateway.gateway.cooldown.config.cooldown_s == 9
    assert gateway.gateway.health._config.failures == 9
    assert (await gateway.client.post(RELOAD)).status_code == 401  # the old master key
    for key, model, status in [
        ("sk-new", "new", 200),
        ("sk-new", "gone", 200),
        ("sk-new", "old", 404),
        ("sk-old", "m", 401),
        ("sk-other-master", "m", 200),
    ]:
        sent = await gateway.chat(model=model, headers={"authorization": f"Bearer {key}"})
        assert sent.status_code == status, (key, model)


async def test_a_policy_that_was_set_by_hand_stays_until_the_file_s_own_changes(
    lab: Any, file: File
) -> None:
    peer = await lab.peer()
    file.write({"e": peer}, router_settings={"routing_strategy": "fifo"})
    gateway = await file.gateway(lab)
    await gateway.client.put("/v1/management/policy", json={"policy": "random"})
    assert (await gateway.client.post(RELOAD)).json()["policy"] is None
    assert gateway.gateway.manager.policy.name == "random"
    file.write({"e": peer}, router_settings={"routing_strategy": "hybrid"})
    assert (await gateway.client.post(RELOAD)).json()["policy"] == "hybrid"


async def test_without_a_file_there_is_nothing_to_reload(lab: Any) -> None:
    gateway = await lab.gateway()
    answer = await gateway.client.post(RELOAD)
    assert answer.status_code == 400
    assert "without a configuration file" in answer.json()["error"]["message"]


async def test_used_limits_stay_used(lab: Any, file: File) -> None:
    peer = await lab.peer()

    def write(rpm: int) -> None:
        tenants = [{"name": "t", "key": "sk-t", "rpm": rpm}]
        file.write({"e": peer}, sage_settings={"tenants": tenants})

    write(2)
    gateway = await file.gateway(lab)
    tenant = {"authorization": "Bearer sk-t"}
    for _ in range(2):
        assert (await gateway.chat(headers=tenant)).status_code == 200
    await gateway.client.post(RELOAD)
    assert (await gateway.chat(headers=tenant)).status_code == 429
    write(3)
    await gateway.client.post(RELOAD)
    assert (await gateway.chat(headers=tenant)).status_code == 200
    assert (await gateway.chat(headers=tenant)).status_code == 429


async def test_no_request_is_lost_while_the_configuration_changes_all_the_time(
    lab: Any, file: File
) -> None:
    a, b = await lab.peer(), await lab.peer()
    file.write({"a": a, "b": b})
    gateway = await file.gateway(lab)
    done = asyncio.Event()

    async def ask() -> list[int]:
        codes = []
        while not done.is_set():
            answer = await gateway.chat(stream=len(codes) % 2 == 0)
            codes.append(answer.status_code)
            assert b"error" not in answer.content
        return codes

    asking = [asyncio.ensure_future(ask()) for _ in range(8)]
    for turn in range(30):
        shown = [{"a": a, "b": b}, {"a": b}, {"b": a, "c": b}][turn % 3]
        policy = ["fifo", "hybrid", "random"][turn % 3]
        file.write(shown, router_settings={"routing_strategy": policy, "timeout": 10 + turn})
        if turn % 5 == 4:
            file.path.write_text("nonsense")
        await gateway.client.post(RELOAD)
    done.set()
    codes = [code for asked in asking for code in await asked]
    assert len(codes) > 30
    assert set(codes) == {200}
    manager = gateway.gateway.manager
    assert (manager.running, manager.queued) == (0, 0)
