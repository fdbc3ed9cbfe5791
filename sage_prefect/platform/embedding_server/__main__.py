"""``python -m sage_prefect.platform.embedding_server``: the command line of the server."""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys

from sage_prefect.common.errors import MissingDependencyError, SageError, SettingsError
from sage_prefect.common.logs import configure_logging
from sage_prefect.common.ports import SagePorts


def main(arguments: list[str] | None = None) -> int:
    """Run the server; returns the exit code (0 after a drained stop, 1 on an error of ours)."""
    parsed = parser().parse_args(arguments)
    configure_logging(parsed.log_level, parsed.log_format)
    try:
        _run(parsed)
    except SageError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """All options, with their defaults."""
    result = argparse.ArgumentParser(
        prog="python -m sage_prefect.platform.embedding_server",
        description="Serve an embedding model over OpenAI's HTTP protocol.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = result.add_argument
    add("--model", required=True, help="catalog name or path of a folder")
    add("--served-name", help="model name for clients (default: the model's)")
    add("--host", default="127.0.0.1", help="address to bind")
    add("--port", type=int, default=int(SagePorts.EMBEDDING), help="0: the kernel chooses")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add(
        "--dtype",
        choices=("auto", "float32", "float16", "bfloat16"),
        default="auto",
        help="number format (auto: float16 on a GPU, float32 on a CPU)",
    )
    positive = _positive
    add(
        "--max-batch-tokens",
        type=positive,
        help="tokens of a batch, padding counted (default: 1024 on a CPU, 16384 on a GPU)",
    )
    add("--threads", type=positive, help="CPU threads for the model (default: all cores)")
    add(
        "--workers",
        type=positive,
        help="batches at once (default: one per thread, up to 8; 1 on a GPU)",
    )
    add("--max-queued-tokens", type=positive, default=524_288, help="above: 429")
    add("--max-requests", type=positive, default=512, help="in flight at once; above: 429")
    add("--max-inputs", type=positive, default=2048, help="texts of a request; above: 400")
    add("--max-body-bytes", type=positive, default=16 * 2**20, help="above: 413")
    add(
        "--too-long",
        choices=("truncate", "error"),
        default="truncate",
        help="what becomes of a text longer than the model reads",
    )
    add("--api-key-env", metavar="VARIABLE", help="environment variable with the key to ask for")
    add("--allow-open", action="store_true", help="allow a non-loopback address without a key")
    add("--drain-s", type=float, default=30.0, help="seconds for requests in flight at the end")
    add("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    add("--log-format", default="text", choices=("text", "json"))
    return result


def _run(parsed: argparse.Namespace) -> None:
    api_key = _api_key(parsed.api_key_env)
    if api_key is None and not parsed.allow_open and not _is_loopback(parsed.host):
        raise SettingsError(
            f"--host {parsed.host} lets others in, and there is no key to ask them for.",
            hint="Give --api-key-env VARIABLE, or --allow-open if the network is closed.",
        )
    try:
        from sage_prefect.platform.embedding_server import server
        from sage_prefect.platform.embedding_server.request import Limits
    except ImportError as error:
        raise MissingDependencyError(
            error.name or "uvicorn", "embedding", "The embedding server"
        ) from error
    server.keep_offline()
    options = server.ServerOptions(
        model=parsed.model,
        served_name=parsed.served_name,
        host=parsed.host,
        port=parsed.port,
        device=parsed.device,
        dtype=parsed.dtype,
        token_budget=parsed.max_batch_tokens,
        threads=parsed.threads,
        workers=parsed.workers,
        max_queued_tokens=parsed.max_queued_tokens,
        max_requests=parsed.max_requests,
        limits=Limits(max_inputs=parsed.max_inputs, max_body_bytes=parsed.max_body_bytes),
        too_long=parsed.too_long,
        api_key=api_key,
        drain_s=parsed.drain_s,
    )
    server.serve(options)


def _api_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise SettingsError(
            f"--api-key-env names {variable}, which is not set.", hint="Set it to the key."
        )
    return key


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


if __name__ == "__main__":
    sys.exit(main())
