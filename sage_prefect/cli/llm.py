"""``sage llm``: serve chat models with vLLM or llama.cpp, supervised and known to the gateway."""

from __future__ import annotations

from typing import Annotated

import typer

from sage_prefect.cli import engines

app = typer.Typer(help="Serve LLMs: serve, list, stop.", no_args_is_help=True)


@app.command()
def serve(
    model: Annotated[
        str,
        typer.Argument(help="A model of `sage models list`, or a path; with --base-url a name."),
    ],
    engine: Annotated[
        str, typer.Option(help="auto (vllm where a GPU is, else llamacpp), vllm, llamacpp, openai.")
    ] = "auto",
    port: Annotated[
        int | None, typer.Option(help="Port (an error if it is taken); none: 8001 or the next.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Service name; none: the model's.")] = None,
    slots: Annotated[int | None, typer.Option(min=1, help="Requests worked on at once.")] = None,
    context: Annotated[int | None, typer.Option(min=256, help="Tokens per request.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; none: all.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    gpu_memory: Annotated[
        int | None, typer.Option(min=1, help="GPU memory to claim, in MiB (vllm).")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(help="URL of an external server, with /v1 (openai).")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="Environment variable with its API key (openai).")
    ] = None,
    upstream_model: Annotated[
        str | None, typer.Option(help="The model's name at the external server (openai).")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace an engine of this name.")
    ] = False,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Follow its log; Ctrl-C stops it.")
    ] = False,
) -> None:
    """Start an engine, supervise it, and register it with the gateway when one runs."""
    from sage_prefect.platform.engines.choice import choose_llm_driver, llm_service

    options = engines.options(
        slots=slots,
        context=context,
        threads=threads,
        device=device,
        gpu_memory_mib=gpu_memory,
        base_url=base_url,
        api_key_env=api_key_env,
        upstream_model=upstream_model,
    )
    if base_url is not None and engine == "auto":
        engine = "openai"
    if engine == "auto":
        chosen, reason = choose_llm_driver(model)
        typer.echo(f"engine: {reason}")
        engine = chosen.name
    spec = llm_service(model, engine, name=name, port=port, options=options)
    engines.serve(spec, replace=replace, foreground=foreground)


@app.command("list")
def list_engines() -> None:
    """List the LLM engines of this machine."""
    engines.show("chat")


@app.command()
def stop(name: Annotated[str, typer.Argument(help="As `sage llm list` shows it.")]) -> None:
    """Take an engine from the gateway, let it finish its requests, and stop it."""
    engines.stop(name)
