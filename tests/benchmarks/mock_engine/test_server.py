"""Mock engines over HTTP, in virtual time: what is answered, and when."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Callable
from typing import Any

import pytest

from sage_bench.simulation.llm_engine import LlmEngine
from sage_bench.simulation.sequence import Sequence
from sage_prefect.common.errors import BenchmarkError

from .conftest import Caller, call, chat, mock_server, mock_spec

Virtually = Callable[[Any], Any]
CHAT, COMPLETION, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


def test_a_stream_has_its_tokens_at_the_borders_of_steps(virtually: Virtually) -> None:
    async def main() -> None:
        async with mock_server() as server:
            answer = await call(
                server.ports[0], "POST", CHAT, chat(stream_options={"include_usage": True})
            )
        assert answer.headers["content-type"].startswith("text/event-stream")
        # 5 prompt tokens: 15 ms, then 10 ms a step.
        assert answer.token_times() == pytest.approx([0.015, 0.025, 0.035, 0.045], abs=1e-9)
        events = [event for _, event in answer.events()]
        assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        reasons = [event["choices"][0]["finish_reason"] for event in events[:-2]]
        assert reasons == [None, None, None, None, "length"]
        assert events[-1] is None
        assert events[-2]["choices"] == []
        assert events[-2]["usage"] == {
            "prompt_tokens": 5,
            "completion_tokens": 4,
            "total_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 0},
        }
        assert {event["id"] for event in events[:-1]} == {events[0]["id"]}

    virtually(main())


def test_without_a_stream_the_answer_comes_whole(virtually: Virtually) -> None:
    async def main() -> None:
        async with mock_server() as server:
            port = server.ports[0]
            chatted = await call(port, "POST", CHAT, chat(stream=False))
            prompt = {"model": "other", "prompt": "one two three", "mock_output_tokens": 2}
            completed = await call(port, "POST", COMPLETION, prompt)
            by_ids = await call(port, "POST", COMPLETION, {**prompt, "prompt": [1, 2, 3, 4]})
        assert chatted.ended_s == pytest.approx(0.045)
        choice = chatted.json()["choices"][0]
        assert choice["finish_reason"] == "length"
        assert len(choice["message"]["content"].split()) == 4
        assert completed.json()["object"] == "text_completion"
        assert completed.json()["choices"][0]["finish_reason"] == "stop"
        assert completed.json()["usage"]["completion_tokens"] == 2
        assert by_ids.json()["usage"]["prompt_tokens"] == 4

    virtually(main())


def test_equal_prompts_get_equal_answers_that_end_by_themselves(virtually: Virtually) -> None:
    async def main() -> None:
        async with mock_server() as server:
            free = chat(stream=False)
            del free["max_tokens"], free["ignore_eos"]
            one, two = [await call(server.ports[0], "POST", CHAT, free) for _ in range(2)]
            short = await call(server.ports[0], "POST", CHAT, {**free, "max_tokens": 1})
        assert one.json()["choices"][0]["finish_reason"] == "stop"
        assert one.json()["usage"]["completion_tokens"] == two.json()["usage"]["completion_tokens"]
        assert short.json()["choices"][0]["finish_reason"] == "length"

    virtually(main())


def test_a_prefix_is_cached_and_says_so(virtually: Virtually) -> None:
    async def main() -> None:
        async with mock_server() as server:
            port = server.ports[0]
            for cached in (0, 8):  # blocks of 4; the last token is always computed
                answer = await call(port, "POST", CHAT, chat(prompt_tokens=9, stream=False))
                details = answer.json()["usage"]["prompt_tokens_details"]
                assert details == {"cached_tokens": cached}
            assert answer.ended_s == pytest.approx(0.011 + 3 * 0.010)

    virtually(main())


def test_embeddings(virtually: Virtually) -> None:
    async def main() -> None:
        async with mock_server() as server:
            port = server.ports[0]
            body = {"model": "mock", "input": ["a b c", "d"]}
            plain = await call(port, "POST", EMBEDDINGS, body)
            coded = await call(port, "POST", EMBEDDINGS, {**body, "encoding_format": "base64"})
            ids = await call(port, "POST", EMBEDDINGS, {"model": "mock", "input": [1, 2, 3]})
            lists = await call(port, "POST", EMBEDDINGS, {"model": "mock", "input": [[1], [2, 3]]})
        assert plain.ended_s == pytest.approx(0.004 + 4 * 0.001)
        vectors = [item["embedding"] for item in plain.json()["data"]]
        assert [len(vector) for vector in vectors] == [8, 8]
        decoded = [base64.b64decode(item["embedding"]) for item in coded.json()["data"]]
        assert [list(struct.unpack("<8f", data)) for data in decoded] == vectors
        assert plain.json()["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
        assert [len(one.json()["data"]) for one in (ids, lists)] == [1, 2]

    virtually(main())


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (CHAT, b"{", 400),
        (CHAT, [], 400),
        (CHAT, {"model": "mock"}, 400),
        (CHAT, {"model": "mock", "messages": [{"role": "user", "content": 3}]}, 400),
        (CHAT, {"model": "mock", "messages": [{"role": "user", "content": " "}]}, 400),
        (CHAT, chat(model="third"), 404),
        (CHAT, chat(max_tokens=0), 400),
        (CHAT, chat(max_tokens=True), 400),
        (CHAT, chat(max_tokens=3000), 400),
        (CHAT, chat(prompt_tokens=2000), 400),
        (CHAT, chat(n=2), 400),
        (CHAT, chat(mock_output_tokens=0), 400),
        (CHAT, chat(stream=False, stream_options={"include_usage": True}), 400),
        (CHAT, chat(priority="high"), 400),
        (CHAT, chat(priority=1), 400),  # the policy is fcfs
        (COMPLETION, {"model": "mock", "prompt": 3}, 400),
        (EMBEDDINGS, {"model": "mock", "input": []}, 400),
        (EMBEDDINGS, {"model": "mock", "input": ["a", 3]}, 400),
        (EMBEDDINGS, {"model": "mock", "input": "a", "encoding_format": "hex"}, 400),
        ("/v1/nothing", {}, 404),
    ],
)
def test_mistakes_are_refused_in_the_shape_of_the_api(
    virtually: Virtually, path: str, body: Any, status: int
) -> None:
    async def main() -> None:
        async with mock_server() as server:
            answer = await call(server.ports[0], "POST", path, body)
            assert (answer.status, answer.json()["error"]["code"]) == (status, status)
            assert (await call(server.ports[0], "GET", CHAT)).status == 405
            assert server.engines[0].llm.running == 0

    virtually(main())


def test_health_models_and_keep_alive(virtually: Virtually) -> None:
    async def main() -> None:
        async with mock_server() as server, Caller(server.ports[0]) as caller:
            assert (await caller.call("GET", "/health")).status == 200
            models = (await caller.call("GET", "/v1/models?x=1")).json()["data"]
            assert [model["id"] for model in models] == ["mock", "other"]
            assert (await caller.call("GET", "/version")).json()["version"].startswith("0.32")
            assert (await caller.call("POST", CHAT, chat())).complete
            assert (await caller.call("GET", "/ping", connection="close")).complete
            assert await caller.reader.read() == b""

    virtually(main())


def test_priority_under_the_priority_policy(virtually: Virtually) -> None:
    async def main() -> None:
        spec = mock_spec(llm={"scheduling": "priority", "max_num_seqs": 1})
        async with mock_server(spec) as server:
            port = server.ports[0]
            calls = [
                asyncio.create_task(call(port, "POST", CHAT, chat(output_tokens=10))),
                asyncio.create_task(call(port, "POST", CHAT, chat(priority=5))),
                asyncio.create_task(call(port, "POST", CHAT, chat(), x_vllm_priority="-1")),
            ]
            first, low, high = await asyncio.gather(*calls)
        assert first.ended_s < high.ended_s < low.ended_s

    virtually(main())


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ({"max_queued_requests": 1}, "max_num_queued_reqs"),
        ({"max_queued_tokens": 9}, "max_num_queued_tokens"),
    ],
)
def test_admission_limits_answer_503(
    virtually: Virtually, limit: dict[str, int], reason: str
) -> None:
    async def main() -> None:
        async with mock_server(mock_spec(llm={"max_num_seqs": 1}, **limit)) as server:
            port = server.ports[0]
            calls = []
            for _ in range(3):  # one runs, one waits, one is too many
                calls.append(asyncio.create_task(call(port, "POST", CHAT, chat())))
                await asyncio.sleep(0.001)
            answers = await asyncio.gather(*calls)
            text = (await call(port, "GET", "/metrics")).body.decode()
        assert [answer.status for answer in answers] == [200, 200, 503]
        assert "retry-after" not in answers[2].headers  # as vLLM
        assert f'reason="{reason}"}} 1.0' in text

    virtually(main())


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_ends_its_sequence(virtually: Virtually, stream: bool) -> None:
    async def main() -> None:
        async with mock_server() as server:
            engine = server.engines[0]
            async with Caller(server.ports[0]) as caller:
                await caller.send("POST", CHAT, chat(output_tokens=1000, stream=stream))
                await asyncio.sleep(0.1)
                assert engine.llm.running == 1
            await asyncio.sleep(0.05)
            assert engine.llm.running == 0
            [record] = engine.books.records
            assert record.outcome == "aborted"
            assert record.generated == (9 if stream else 1)
            async with Caller(server.ports[0]) as caller:
                await caller.send("POST", EMBEDDINGS, {"model": "mock", "input": "a " * 500})
                await asyncio.sleep(0.01)
            await asyncio.sleep(1)
            assert engine.books.outcomes() == {"aborted": 2}
            assert engine.metrics.finished["abort"] == 2

    virtually(main())


def test_the_time_scale(virtually: Virtually) -> None:
    async def main() -> None:
        async with mock_server(time_scale=10.0) as server:
            answer = await call(server.ports[0], "POST", CHAT, chat())
            assert answer.token_times() == pytest.approx([0.0015, 0.0025, 0.0035, 0.0045])
            body = {"model": "mock", "input": "a"}
            embedded = await call(server.ports[0], "POST", EMBEDDINGS, body)
            assert embedded.ended_s == pytest.approx(0.0005)
            assert server.describe()["time_scale"] == 10.0
        for wrong in (0.0, -1.0, float("nan"), 1e9):
            with pytest.raises(BenchmarkError, match="time scale"):
                mock_server(time_scale=wrong)
        with pytest.raises(BenchmarkError, match="0 mock engines"):
            mock_server(count=0)

    virtually(main())


def test_metrics_agree_with_what_was_sent(virtually: Virtually) -> None:
    async def main() -> dict[str, float]:
        async with mock_server() as server:
            port = server.ports[0]
            for _ in range(2):
                await call(port, "POST", CHAT, chat(prompt_tokens=9))
            return parsed((await call(port, "GET", "/metrics")).body.decode())

    found = virtually(main())

    def of(name: str, more: str = "") -> float:
        return float(found[f'vllm:{name}{{engine="0",model_name="mock"{more}}}'])

    assert of("prompt_tokens_total") == of("prefix_cache_queries_total") == 18
    assert of("prompt_tokens_cached_total") == of("prefix_cache_hits_total") == 8
    assert of("generation_tokens_total") == 8
    assert of("request_success_total", ',finished_reason="length"') == 2
    assert of("e2e_request_latency_seconds_sum") == pytest.approx(0.049 + 0.041)
    assert of("time_to_first_token_seconds_sum") == pytest.approx(0.019 + 0.011)
    assert of("inter_token_latency_seconds_count") == 6
    assert of("inter_token_latency_seconds_sum") == pytest.approx(0.060)
    assert of("request_time_per_output_token_seconds_sum") == pytest.approx(0.020)
    assert of("request_decode_time_seconds_sum") == pytest.approx(0.060)
    assert of("iteration_tokens_total_count") == 8
    assert of("iteration_tokens_total_sum") == 9 + 1 + 6
    assert of("time_to_first_token_seconds_bucket", ',le="0.02"') == 2
    assert of("time_to_first_token_seconds_bucket", ',le="+Inf"') == 2
    for name in (
        "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc",
        "num_preemptions_total", "request_queue_time_seconds_sum", "request_num_preemptions_sum",
    ):  # fmt: skip
        assert of(name) == pytest.approx(0, abs=1e-9)
    for name in (
        "request_prefill_time_seconds_count", "request_inference_time_seconds_count",
        "request_prompt_tokens_count", "request_generation_tokens_count",
    ):  # fmt: skip
        assert of(name) == 2


def parsed(text: str) -> dict[str, float]:
    """Samples of a page, after a real parser has read it."""
    from prometheus_client.parser import text_string_to_metric_families

    assert list(text_string_to_metric_families(text))
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_many_streams_have_the_times_of_the_model(virtually: Virtually) -> None:
    """Twenty requests through HTTP against the engine model alone."""
    plans = [(0.0037 * n, 3 + 17 * n % 40, 1 + 7 * n % 30) for n in range(20)]

    async def main() -> list[list[float]]:
        async with mock_server(mock_spec(llm={"max_num_seqs": 6})) as server:
            loop = asyncio.get_running_loop()
            began = loop.time()

            async def ask(at: float, prompt: int, output: int) -> list[float]:
                await asyncio.sleep(began + at - loop.time())
                body = {"model": "mock", "prompt": [int(1e6 * at)] * prompt, "stream": True}
                answer = await call(
                    server.ports[0], "POST", COMPLETION, {**body, "mock_output_tokens": output}
                )
                assert answer.complete
                return [at + time for time in answer.token_times()]

            return await asyncio.gather(*(ask(*plan) for plan in plans))

    engine = LlmEngine(mock_spec(llm={"max_num_seqs": 6}).llm)
    sequences = [(at, Sequence(n, prompt, output)) for n, (at, prompt, output) in enumerate(plans)]
    ends = {}
    for at, sequence in sequences:
        ends.update({e.sequence: e.at for e in engine.advance(at) if e.finished})
        engine.submit(sequence, at)
    ends.update({e.sequence: e.at for e in engine.advance(1e9) if e.finished})
    for times, (_, sequence) in zip(virtually(main()), sequences, strict=True):
        assert len(times) == sequence.output
        assert times[0] == pytest.approx(sequence.first_at, abs=1e-6)
        assert times[-1] == pytest.approx(ends[sequence], abs=1e-6)
