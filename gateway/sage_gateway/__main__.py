"""``python -m sage_gateway --config gateway.yaml``: the gateway in the foreground."""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

from sage_gateway.server import serve
from sage_prefect.common.errors import SageError
from sage_prefect.common.logs import configure_logging


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and serve; the process's exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m sage_gateway", description="OpenAI-compatible gateway of SAGE."
    )
    parser.add_argument("--config", type=Path, help="gateway.yaml; none: engines register later")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (%(default)s)")
    parser.add_argument("--port", type=int, help="port; none: 8888 or the next free; 0: any")
    parser.add_argument("--policy", help="scheduling policy; none: the configuration's")
    parser.add_argument("--record", type=Path, help="event log to write; none: the configuration's")
    parser.add_argument("--no-auth", action="store_true", help="ask for no key (loopback only)")
    parser.add_argument(
        "--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"]
    )
    parser.add_argument("--log-format", default="text", choices=["text", "json"])
    options = parser.parse_args(arguments)
    configure_logging(options.log_level, options.log_format)
    try:
        serve(
            options.config,
            host=options.host,
            port=options.port,
            policy=options.policy,
            no_auth=options.no_auth,
            record=options.record,
            announce=functools.partial(print, flush=True),
        )
    except SageError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
