"""``sage engines``: the engines behind a running gateway."""

from __future__ import annotations

import os
import time
from enum import Enum
from typing import Annotated, Any

import typer

from sage_prefect.cli.management.client import AsJson, ManagementClient, Url, print_json
from sage_prefect.common.errors import ServiceError, SettingsError

app = typer.Typer(help="The engines behind a running gateway.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name of the engine.")]
_POLL_S = 0.2


class ModeName(str, Enum):
    """What a model does."""

    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"


@app.command("list")
def list_engines(url: Url = None, as_json: AsJson = False) -> None:
    """List the engines with their state."""
    from rich.table import Table

    from sage_prefect.cli.console import console

    engines = ManagementClient(url).get("engines")["engines"]
    if as_json:
        print_json(engines)
        return
    if not engines:
        console.print("no engine; `sage engines register` adds one")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("engine", "state", "in flight", "driver", "device", "address", "models"):
        table.add_column(column)
    for engine in engines:
        models = [
            model["name"] + (f" (order {model['order']})" if model["order"] != 1 else "")
            for model in engine["models"]
        ]
        table.add_row(
            engine["name"],
            engine["state"],
            f"{engine['in_flight']}/{engine['max_concurrency']}",
            engine["driver"],
            engine["device"],
            engine["base_url"],
            ", ".join(models),
        )
    console.print(table)


@app.command("register")
def register(
    name: Name,
    base_url: Annotated[str, typer.Argument(help="Such as http://127.0.0.1:8001/v1.")],
    model: Annotated[list[str], typer.Option("--model", help="A model that it serves.")],
    mode: Annotated[ModeName, typer.Option(help="What its models do.")] = ModeName.CHAT,
    upstream_model: Annotated[
        str | None, typer.Option(help="The model's name at the engine, where it differs.")
    ] = None,
    driver: Annotated[str, typer.Option(help="llamacpp, vllm, ...")] = "openai",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    max_concurrency: Annotated[
        int, typer.Option(min=1, help="Requests inside it at once: its window.")
    ] = 8,
    order: Annotated[int, typer.Option(min=0, help="Engines of a lower order come first.")] = 1,
    weight: Annotated[float, typer.Option(help="Policy random draws it so often.")] = 1.0,
    price: Annotated[float, typer.Option(help="Of its time, for policy cost.")] = 1.0,
    takes_priority: Annotated[
        bool, typer.Option("--takes-priority", help="It schedules by the body's priority.")
    ] = False,
    kv_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens that its KV cache holds.")
    ] = None,
    max_batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of one iteration or embedding call.")
    ] = None,
    max_batch_inputs: Annotated[
        int | None, typer.Option(min=1, help="Inputs of one embedding call.")
    ] = None,
    padded: Annotated[
        bool, typer.Option("--padded", help="It pads a batch to its longest input.")
    ] = False,
    profile: Annotated[
        str | None,
        typer.Option(help="How long its work takes, such as s0=0.002,alpha=3e-6; none: learned."),
    ] = None,
    accelerator: Annotated[
        str | None, typer.Option(help="Its physical device; engines that name one share it.")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="Variable that holds the engine's key.")
    ] = None,
    url: Url = None,
) -> None:
    """Register an engine, or replace the one of that name."""
    body: dict[str, Any] = {
        "name": name,
        "base_url": base_url,
        "models": [{"name": one, "mode": mode.value, "order": order} for one in model],
        "driver": driver,
        "device": device,
        "max_concurrency": max_concurrency,
        "weight": weight,
        "price": price,
        "takes_priority": takes_priority,
        "kv_tokens": kv_tokens,
        "max_batch_tokens": max_batch_tokens,
        "max_batch_inputs": max_batch_inputs,
        "padded": padded,
        "profile": None if profile is None else profile_of(profile),
        "accelerator": accelerator,
        "upstream_model": upstream_model,
    }
    if api_key_env is not None:
        key = os.environ.get(api_key_env)
        if not key:
            raise SettingsError(
                f"environment variable {api_key_env!r} (--api-key-env) is not set.",
                hint=f"Run: export {api_key_env}=...",
            )
        body["api_key"] = key
    registered = ManagementClient(url).post("engines", body=body)
    typer.echo(f"{registered['name']}: registered, {', '.join(model)}")


@app.command("drain")
def drain(
    name: Name,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait until nothing runs in it any more.")
    ] = 0.0,
    url: Url = None,
) -> None:
    """Give an engine nothing new; what runs in it finishes."""
    client = ManagementClient(url)
    state = client.post("engines", name, "drain")
    deadline = time.monotonic() + wait
    while state["in_flight"] and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        state = next(e for e in client.get("engines")["engines"] if e["name"] == name)
    typer.echo(f"{name}: {state['state']}, {state['in_flight']} in flight")
    if wait and state["in_flight"]:
        raise ServiceError(
            f"{state['in_flight']} requests still run in engine {name!r} after {wait:g} s.",
            hint="Wait longer, or take it away: what runs in it finishes.",
        )


@app.command("undrain")
def undrain(name: Name, url: Url = None) -> None:
    """Let a drained engine take requests again."""
    state = ManagementClient(url).post("engines", name, "undrain")
    typer.echo(f"{name}: {state['state']}")


@app.command("remove")
def remove(name: Name, url: Url = None) -> None:
    """Take an engine away; what runs in it finishes."""
    ManagementClient(url).delete("engines", name)
    typer.echo(f"{name}: removed")


def profile_of(text: str) -> dict[str, float]:
    """``a=1e-5,b=2`` as numbers by name.

    Raises:
        SettingsError: a part is no such pair.
    """
    said: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            said[name.strip()] = float(value)
        except ValueError:
            raise SettingsError(
                f"--profile {part!r} is no NAME=NUMBER.",
                hint="Names: c0, a, b, g, s0, alpha; docs/gateway.md says what they are.",
            ) from None
    return said
