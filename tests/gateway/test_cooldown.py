"""LiteLLM's cooldown, and who decides about an engine's state."""

from __future__ import annotations

from typing import Any

from sage_gateway.config_router import RouterConfig
from sage_gateway.cooldown import CooldownConfig, CooldownCounter
from sage_gateway.served_model import ServedModel
from sage_prefect.control_plane.events import EngineState


def counter(fails: int = 2, *, alone: bool = False) -> CooldownCounter:
    return CooldownCounter(CooldownConfig(fails, 7.0), lambda engine: alone)


def test_more_than_the_allowed_fails_within_a_minute() -> None:
    counted = counter()
    assert [counted.failed("e", at) for at in (0.0, 1.0)] == [None, None]
    assert counted.failed("other", 1.5) is None
    assert counted.failed("e", 2.0) == 7.0
    assert counted.failed("e", 3.0) is None  # counted anew
    spread = counter()
    assert [spread.failed("e", at) for at in (0.0, 50.0, 61.0, 115.0)] == [None] * 4
    off = CooldownCounter(None, lambda engine: False)
    assert [off.failed("e", at / 10) for at in range(20)] == [None] * 20


def test_an_engine_that_nobody_stands_in_for_does_not_rest() -> None:
    counted = counter(alone=True)
    assert [counted.failed("e", at / 10) for at in range(20)] == [None] * 20
    counted.forget("e")
    counted._is_alone = lambda engine: False
    assert counted.failed("e", 3.0) is None


async def failing(request: Any) -> None:
    await request.answer(500 if request.method == "POST" else 200, b'{"error":{"message":"no"}}')


def states(gateway: Any) -> dict[str, str]:
    return {state["name"]: state["state"] for state in gateway.gateway.engine_states()}


async def test_an_engine_that_fails_too_often_gets_nothing_for_a_while(lab: Any) -> None:
    bad, good = await lab.peer(failing), await lab.peer()
    gateway = await lab.gateway(
        lab.engine(bad, "bad"),
        lab.engine(good, "good"),
        policy="round_robin",
        router=RouterConfig(cooldown=CooldownConfig(allowed_fails=1, cooldown_s=0.3)),
    )
    while len(bad.posts) < 2:
        assert (await gateway.chat()).status_code == 200
    assert states(gateway) == {"bad": "suspect", "good": "ready"}
    listed = {state["name"]: state for state in gateway.gateway.engine_states()}
    assert 0 < listed["bad"]["cools_down_s"] <= 0.3
    for _ in range(5):
        assert (await gateway.chat()).headers["x-sage-engine"] == "good"
    assert len(bad.posts) == 2
    await lab.until(lambda: states(gateway)["bad"] == "ready", "the end of the rest")
    bad.behaviour = lab.chat
    while len(bad.posts) < 3:
        assert (await gateway.chat()).status_code == 200


async def test_the_only_engine_rests_when_another_model_stands_in(lab: Any) -> None:
    bad, good = await lab.peer(failing), await lab.peer()
    cooldown = CooldownConfig(allowed_fails=0, cooldown_s=60)
    alone = await lab.gateway(lab.engine(bad), router=RouterConfig(cooldown=cooldown))
    for _ in range(3):
        assert (await alone.chat()).status_code == 500
    assert states(alone) == {"e1": "ready"}
    two_orders = await lab.gateway(
        lab.engine(bad, "e1"),
        lab.engine(good, "e2", models=(ServedModel("m", order=2),)),
        router=RouterConfig(cooldown=cooldown),
    )
    before = len(bad.posts)
    for _ in range(3):
        assert (await two_orders.chat()).headers["x-sage-engine"] == "e2"
    assert len(bad.posts) == before + 1


async def test_no_voice_undoes_what_another_has_said(lab: Any) -> None:
    gateway = await lab.gateway(lab.engine(await lab.peer(), "e"))
    said = gateway.gateway.states

    def state() -> str:
        return states(gateway)["e"]

    said.drain("e")
    said.report("e", EngineState.READY, "answers")
    assert state() == "draining"
    said.report("e", EngineState.SUSPECT, "refused")
    assert state() == "draining"
    said.undrain("e")
    assert state() == "suspect"
    said.rest("e", 60)
    said.report("e", EngineState.READY, "answers again")
    assert state() == "suspect"
    said.rest("e", 0.01)
    await lab.until(lambda: state() == "ready")
    said.forget("e")
    assert said.public("e") == {"drained": False, "cools_down_s": None}
