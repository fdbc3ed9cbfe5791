"""Two gateways before the same engines: together they keep what each keeps alone."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_gateway.config import parse_config
from sage_gateway.rate_limits import RateLimit
from sage_gateway.replicas import Replicas
from sage_prefect.common.errors import SettingsError
from sage_prefect.control_plane.events import EngineSpec, TenantSpec


@given(st.integers(1, 9), st.integers(1, 500), st.text(max_size=5))
def test_shares_add_up(count: int, whole: int, name: str) -> None:
    shares = [Replicas(count, index).share(whole, name) for index in range(count)]
    assert sum(shares) == max(whole, count)
    assert max(shares) - min(shares) <= 1


def test_what_is_shared() -> None:
    second = Replicas(2, 1)
    spec = second.engine(EngineSpec("e", ("m",), 8, kv_tokens=1001))
    assert (spec.max_concurrency, spec.kv_tokens) == (4, 500)
    assert second.engine(EngineSpec("e", ("m",), 8)).kv_tokens is None
    assert second.tenant(TenantSpec("t", 3.0, 10, None)) == TenantSpec("t", 3.0, 5, None)
    assert second.limit(RateLimit(60, None, 4), "k") == RateLimit(30, None, 2)


def test_configuration() -> None:
    entry = {
        "model_name": "m",
        "litellm_params": {"model": "openai/m", "api_base": "http://127.0.0.1:1/v1"},
        "model_info": {"max_concurrency": 1},
    }
    content = {"model_list": [entry], "sage_settings": {"replicas": {"count": 2, "index": 1}}}
    config = parse_config(content)
    assert config.replicas == Replicas(2, 1)
    assert any("together up to 2" in warning for warning in config.warnings)
    content["sage_settings"] = {"replicas": {"count": 2, "index": 2}}
    with pytest.raises(SettingsError, match=r"replicas\.index"):
        parse_config(content)


async def test_an_engine_never_holds_more_than_its_window(lab: Any) -> None:
    inside, most = 0, 0

    async def work(request: Any) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.003)
        inside -= 1
        await lab.chat(request)

    peer = await lab.peer(work)
    engine = lab.engine(peer, max_concurrency=6)
    gateways = [await lab.gateway(engine, replicas=Replicas(2, index)) for index in range(2)]
    answers = await asyncio.gather(
        *(gateway.chat() for gateway in gateways for _ in range(40)),
    )
    assert Counter(answer.status_code for answer in answers) == {200: 80}
    assert most == 6
