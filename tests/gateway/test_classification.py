"""What the control plane is told of a request that came over the wire."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sage_gateway.auth import KeyRing
from sage_gateway.config import TenantConfig
from sage_prefect.control_plane.events import Arrival, Band, RequestInfo

LONG = "Answer from these documents only. " * 40


@pytest.fixture
def told(lab: Any) -> Any:
    """``told(gateway)``: a function that gives every request classified since then."""

    def watch(gateway: Any) -> Callable[[], list[RequestInfo]]:
        heard = lab.overhear(gateway)
        return lambda: [event.request for event in heard if isinstance(event, Arrival)]

    return watch


async def test_headers_and_body_reach_the_control_plane(lab: Any, told: Any) -> None:
    gateway = await lab.gateway(lab.engine(await lab.peer()))
    seen = told(gateway)
    headers = {"x-slo-ttft-ms": "800", "x-slo-tpot-ms": "50", "x-session-id": "s"}
    message = {"role": "system", "content": LONG}
    for question in ("Why?", "How so?"):
        ask = {"role": "user", "content": question}
        answer = await gateway.chat(messages=[message, ask], max_tokens=9, headers=headers)
        assert answer.status_code == 200
    first, second = seen()
    assert (first.ttft_slo_s, first.tpot_slo_s, first.session) == (0.8, 0.05, "s")
    assert (first.max_tokens, first.output_estimate) == (9, 9)
    assert len(first.prefix) == len(LONG) // 256
    assert first.prefix == second.prefix


@pytest.mark.parametrize(
    ("headers", "fields", "band"),
    [
        ({}, {"stream": True}, Band.INTERACTIVE),
        ({}, {"priority": -1}, Band.INTERACTIVE),
        ({}, {"service_tier": "flex"}, Band.BATCH),
        ({"x-llm-d-inference-objective": "batch"}, {"priority": -1}, Band.BATCH),
        ({"x-llm-d-inference-objective": "unheard-of"}, {}, Band.STANDARD),
        ({"x-llm-d-inference-objective": "batch", "x-sage-band": "critical"}, {}, Band.CRITICAL),
    ],
)
async def test_bands(
    lab: Any, told: Any, headers: dict[str, str], fields: dict[str, Any], band: Band
) -> None:
    gateway = await lab.gateway(lab.engine(await lab.peer()))
    seen = told(gateway)
    assert (await gateway.chat(headers=headers, **fields)).status_code == 200
    assert seen()[0].band is band


async def test_a_tenants_entitlement_is_the_end_of_all_wishes(lab: Any, told: Any) -> None:
    keys = KeyRing(lab.KEY, [TenantConfig("t", "sk-t", bands=(Band.STANDARD, Band.BATCH))])
    gateway = await lab.gateway(lab.engine(await lab.peer()), keys=keys)
    seen = told(gateway)
    mine = {"authorization": "Bearer sk-t"}
    for headers, fields in (
        ({"x-sage-band": "critical"}, {}),
        ({"x-llm-d-inference-objective": "critical"}, {}),
        ({}, {"priority": -100}),
        ({}, {"service_tier": "priority"}),
    ):
        await gateway.chat(headers={**mine, **headers}, **fields)
    assert [(info.tenant, info.band) for info in seen()] == [("t", Band.STANDARD)] * 4


async def test_answers_teach_lengths(lab: Any, told: Any) -> None:
    gateway = await lab.gateway(lab.engine(await lab.peer()))
    seen = told(gateway)
    for _ in range(2):
        assert (await gateway.chat(stream=True)).status_code == 200
    before, after = seen()
    assert before.output_estimate == 256
    assert after.output_estimate == 2  # as the peer's usage says
