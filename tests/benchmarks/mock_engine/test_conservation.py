"""Under any requests and faults each request ends once, and nothing of it stays in an engine."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sage_bench.mock_engine.outages import FaultOrder

from .conftest import Answer, Caller, chat, mock_server, mock_spec

Virtually = Callable[[Any], Any]
ENGINES = 2
PATIENCE_S = 60.0

_REQUESTS = st.lists(
    st.tuples(
        st.floats(0, 2),
        st.integers(0, ENGINES - 1),
        st.sampled_from(["chat", "completion", "embedding"]),
        st.integers(1, 300),
        st.integers(1, 60),
        st.booleans(),
        st.none() | st.floats(0.01, 1),
    ),
    min_size=1,
    max_size=12,
)
_SECONDS = st.floats(0.01, 1)
_FAULTS = st.lists(
    st.fixed_dictionaries(
        {"at_s": st.floats(0, 2), "engine": st.none() | st.integers(0, ENGINES - 1)},
    ).flatmap(
        lambda base: st.one_of(
            st.builds(
                lambda kind, seconds, cold: {
                    **base, "kind": kind, "seconds": seconds, "cold_s": cold
                },
                st.sampled_from(["crash", "half_open", "stall", "slow", "refuse", "cold"]),
                _SECONDS,
                st.floats(0, 0.5),
            ),
            st.builds(
                lambda kind, after: {**base, "kind": kind, "after_bytes": after},
                st.sampled_from(["kill", "truncate", "hang", "garbage", "status"]),
                st.integers(0, 2000),
            ),
        )
    ),
    max_size=4,
)  # fmt: skip


async def ask(port: int, at: float, request: Any) -> Answer | None:
    """The answer; None: no connection."""
    _, _, kind, prompt, output, stream, leaves_after = request
    await asyncio.sleep(at)
    if kind == "embedding":
        path, body = "/v1/embeddings", {"model": "mock", "input": [[1] * prompt]}
    elif kind == "completion":
        path = "/v1/completions"
        body = {"model": "mock", "prompt": [1] * prompt, "mock_output_tokens": output}
        body["stream"] = stream
    else:
        path, body = "/v1/chat/completions", chat(prompt, output, stream=stream)
    try:
        async with Caller(port) as caller:
            await caller.send("POST", path, body)
            patience = PATIENCE_S if leaves_after is None else leaves_after
            return await asyncio.wait_for(caller.receive(), patience)
    except asyncio.TimeoutError:
        return Answer()
    except OSError:
        return None


@given(_REQUESTS, _FAULTS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
def test_each_request_ends_once(virtually: Virtually, requests: Any, faults: Any) -> None:
    async def main() -> None:
        spec = mock_spec(llm={"max_num_seqs": 3}, max_queued_requests=4)
        async with mock_server(spec, ENGINES) as server:
            for fault in faults:
                server.order(FaultOrder.from_json(fault))
            answers = await asyncio.gather(
                *(ask(server.ports[request[1]], request[0], request) for request in requests)
            )
            await asyncio.sleep(PATIENCE_S)
            outcomes: Counter[str] = Counter()
            for number, engine in enumerate(server.engines):
                outcomes.update(engine.books.outcomes())
                assert engine.llm.running == engine.llm.waiting == 0
                assert engine.llm.free_tokens == spec.llm.profile.kv_tokens
                assert engine.embedding.running == engine.embedding.waiting == 0
                assert engine.clock.inside == engine.pooling.inside == 0
                assert engine.state()["connections"] == 0, number
                assert server.describe()["engines"][number]["port"] == server.ports[number]
            assert outcomes["running"] == 0
            assert sum(outcomes.values()) <= len(requests)
            whole = [answer for answer in answers if answer and answer.complete]
            good = sum(answer.status == 200 for answer in whole)
            # A fault that waits for more bytes than there are lets the answer through.
            assert good <= outcomes["done"] + outcomes["fault"]
            if not faults:
                left = sum(request[6] is not None for request in requests)
                assert outcomes["done"] + outcomes["refused"] >= len(requests) - left

    virtually(main())
