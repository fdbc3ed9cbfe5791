"""``sage bench mock-engine``: OpenAI-compatible engines that need no model."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sage_bench.mock_engine.engine import MockSpec
    from sage_bench.mock_engine.outages import FaultOrder


def mock_engine(
    count: Annotated[int, typer.Option(help="Engines, each on a port of its own.")] = 1,
    model: Annotated[
        list[str] | None, typer.Option(help="Model names that they serve; default: mock.")
    ] = None,
    profile: Annotated[str, typer.Option(help="Step profile of the LLM side.")] = "h100-8b",
    embedding_profile: Annotated[
        str, typer.Option(help="Profile of the embedding side.")
    ] = "gpu-ragged",
    speed: Annotated[float, typer.Option(help="0.5: half as fast as the profiles.")] = 1.0,
    max_num_seqs: Annotated[int, typer.Option(help="As vLLM's option.")] = 256,
    max_num_batched_tokens: Annotated[int, typer.Option(help="As vLLM's option.")] = 8192,
    scheduling_policy: Annotated[
        str, typer.Option(help="As vLLM's option: fcfs or priority.")
    ] = "fcfs",
    max_model_len: Annotated[int, typer.Option(help="As vLLM's option.")] = 131_072,
    max_queued_requests: Annotated[
        int | None, typer.Option(help="503 when so many wait (vLLM: max_num_queued_reqs).")
    ] = None,
    max_queued_tokens: Annotated[
        int | None, typer.Option(help="503 when so many prompt tokens would wait.")
    ] = None,
    kv_tokens: Annotated[
        int | None, typer.Option(help="KV cache in tokens; default: the profile's.")
    ] = None,
    time_scale: Annotated[
        float, typer.Option(help="Engine seconds per second; 10: all goes ten times as fast.")
    ] = 1.0,
    fault: Annotated[
        list[str] | None,
        typer.Option(help="E.g. crash,engine=0,at_s=5,seconds=2; several times for several."),
    ] = None,
    port: Annotated[int, typer.Option(help="Of the first engine; 0: free ports.")] = 0,
    control_port: Annotated[int, typer.Option(help="Of the faults' control; 0: a free one.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the faults' chance.")] = 0,
) -> None:
    """Serve mock engines on the loopback: real HTTP, simulated time, faults on demand.

    Prints one line of JSON with all ports once they listen.
    """
    from sage_bench.load.session import quiet_collector, run_in_loop
    from sage_bench.mock_engine.api import Limits
    from sage_bench.mock_engine.engine import MockSpec
    from sage_bench.mock_engine.outages import FaultOrder
    from sage_bench.simulation.embedding_engine import EmbeddingEngineSpec
    from sage_bench.simulation.llm_engine_spec import LlmEngineSpec
    from sage_bench.simulation.step_profile import embedding_profile as embedding_constants
    from sage_bench.simulation.step_profile import step_profile

    steps = step_profile(profile).scaled(speed)
    if kv_tokens is not None:
        steps = replace(steps, kv_tokens=kv_tokens)
    orders = [FaultOrder.parse(text) for text in fault or ()]
    spec = MockSpec(
        llm=LlmEngineSpec(
            steps,
            max_num_batched_tokens,
            max_num_seqs,
            scheduling_policy,  # type: ignore[arg-type]  # checked by the class
        ),
        embedding=EmbeddingEngineSpec(embedding_constants(embedding_profile).scaled(speed)),
        limits=Limits(
            tuple(model or ["mock"]), max_model_len, priorities=scheduling_policy == "priority"
        ),
        max_queued_requests=max_queued_requests,
        max_queued_tokens=max_queued_tokens,
        seed=seed,
    )
    with quiet_collector():
        run_in_loop(_serve(spec, count, port, control_port, time_scale, orders))


async def _serve(
    spec: MockSpec,
    count: int,
    port: int,
    control_port: int,
    time_scale: float,
    orders: Sequence[FaultOrder],
) -> None:
    import orjson

    from sage_bench.mock_engine.server import MockServer

    async with MockServer(
        spec, count, port=port, control_port=control_port, time_scale=time_scale
    ) as server:
        for order in orders:
            server.order(order)
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(RuntimeError, ValueError):  # not the main thread
                loop.add_signal_handler(number, stopped.set)
        sys.stdout.write(orjson.dumps(server.describe()).decode() + "\n")
        sys.stdout.flush()
        server.failure.add_done_callback(lambda _: stopped.set())
        await stopped.wait()
        if server.failure.done():
            server.failure.result()
