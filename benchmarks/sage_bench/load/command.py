"""``sage bench load``: send a load to an OpenAI-compatible server and say what came back."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

UNPROVED = 3


def load(
    url: Annotated[
        list[str],
        typer.Option(help="Base URL, e.g. http://127.0.0.1:8888/v1; several: in turn."),
    ],
    model: Annotated[str, typer.Option(help="The requests' model name.")],
    rate: Annotated[
        float | None, typer.Option(help="Requests per second, sent on schedule (open loop).")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="Instead of a rate: requests kept in flight (closed loop).")
    ] = None,
    duration: Annotated[float | None, typer.Option(help="Seconds of load.")] = None,
    requests: Annotated[int | None, typer.Option(help="End after so many requests.")] = None,
    kind: Annotated[str, typer.Option(help="chat, completion or embedding.")] = "chat",
    prompt_tokens: Annotated[
        int, typer.Option(help="Words per prompt (per input of an embedding).")
    ] = 256,
    output_tokens: Annotated[int, typer.Option(help="Tokens per answer.")] = 64,
    prefix_tokens: Annotated[
        int, typer.Option(help="Words at the prompts' beginning that all share.")
    ] = 0,
    inputs: Annotated[int, typer.Option(help="Texts per embedding request.")] = 1,
    stream: Annotated[bool, typer.Option(help="Ask for streams.")] = True,
    arrivals: Annotated[str, typer.Option(help="poisson, constant or gamma.")] = "poisson",
    cv: Annotated[
        float, typer.Option(help="Coefficient of variation of gamma arrivals; above 1: bursts.")
    ] = 1.0,
    think: Annotated[
        float, typer.Option(help="Closed loop: pause after an answer, in seconds.")
    ] = 0.0,
    tenant: Annotated[str, typer.Option(help="Sent as x-sage-tenant.")] = "",
    band: Annotated[str, typer.Option(help="Sent as x-sage-band.")] = "",
    api_key_variable: Annotated[
        str, typer.Option(help="Environment variable that holds the key; unset: none is sent.")
    ] = "SAGE_API_KEY",
    timeout: Annotated[float, typer.Option(help="Seconds that a request may take.")] = 600.0,
    drain: Annotated[
        float, typer.Option(help="Seconds to wait for the last answers; then they are cut off.")
    ] = 60.0,
    warmup: Annotated[
        float, typer.Option(help="Requests of the first seconds are left out of the summary.")
    ] = 0.0,
    max_in_flight: Annotated[
        int, typer.Option(help="More are not sent, and make the run invalid.")
    ] = 4096,
    ttft_slo_ms: Annotated[float | None, typer.Option(help="Objective for goodput.")] = None,
    tpot_slo_ms: Annotated[float | None, typer.Option(help="Objective for goodput.")] = None,
    e2e_slo_ms: Annotated[float | None, typer.Option(help="Objective for goodput.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of arrivals and prompts.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Parquet file for one row per request.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Allow targets that are not on this machine.")
    ] = False,
) -> None:
    """Send an open-loop (or closed-loop) load and report latencies from the scheduled times.

    Ends with 3 when the run is invalid because the client itself was too slow.
    """
    from sage_bench.load.client import ClientOptions
    from sage_bench.load.prompts import RequestShape
    from sage_bench.load.report import print_summary
    from sage_bench.load.run import Bounds
    from sage_bench.load.session import LoadPlan, checked_kind, checked_process, execute
    from sage_bench.load.summary import Objectives
    from sage_bench.load.target import Target

    plan = LoadPlan(
        targets=tuple(Target.parse(one, allow_remote=allow_remote) for one in url),
        shape=RequestShape(
            model=model,
            kind=checked_kind(kind),
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            prefix_tokens=prefix_tokens,
            inputs=inputs,
            stream=stream,
            tenant=tenant,
            band=band,
        ),
        bounds=Bounds(duration, requests, drain, warmup),
        options=ClientOptions(
            timeout_s=timeout,
            max_in_flight=max_in_flight,
            api_key=os.environ.get(api_key_variable) or None,
        ),
        objectives=Objectives(
            *(None if ms is None else ms / 1e3 for ms in (ttft_slo_ms, tpot_slo_ms, e2e_slo_ms))
        ),
        rate_per_s=rate,
        concurrency=concurrency,
        process=checked_process(arrivals),
        cv=cv,
        think_s=think,
        seed=seed,
    )
    summary = execute(plan, out)
    if as_json:
        import orjson

        sys.stdout.write(orjson.dumps(summary, option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        print_summary(summary, out)
    if not summary["valid"]:
        raise typer.Exit(UNPROVED)
