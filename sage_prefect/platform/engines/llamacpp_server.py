"""Run llama.cpp's HTTP server in this process until SIGTERM.

``python -m sage_prefect.platform.engines.llamacpp_server --model FILE --port PORT``

The server is llama.cpp's own (routes ``/v1/chat/completions``, ``/v1/completions``,
``/v1/models``, ``/health``, ``/slots``, ``/metrics``, ``/tokenize``...), built into ``xllamacpp``.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="sage-llamacpp", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--alias", help="model name in the API (default: the file's name)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--slots", type=int, default=4, help="requests worked on at once")
    parser.add_argument("--ctx", type=int, default=2048, help="context per slot, in tokens")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--prompt-cache-mib", type=int, default=256, help="memory for prompts of idle slots"
    )
    parser.add_argument("--verbosity", type=int, default=2, help="1 errors, 2 warnings, 3 info")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Exit status 1 when the model or the port cannot be used."""
    options = parse(arguments)
    # Until the model is loaded the C++ code holds the main thread, where a Python handler could
    # not run: let the signals end the process at once.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(options.model)
    params.model_alias = [options.alias or options.model.stem]
    params.hostnames = [options.host]
    params.port = options.port
    params.n_parallel = options.slots
    # llama.cpp divides n_ctx among the slots.
    params.n_ctx = options.ctx * options.slots
    params.cont_batching = True
    threads = options.threads or len(os.sched_getaffinity(0))
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    if options.device == "cpu":
        params.n_gpu_layers = 0
    params.cache_ram_mib = options.prompt_cache_mib
    params.endpoint_metrics = True
    params.endpoint_slots = True
    params.use_jinja = True
    params.ui = False
    # Only the gateway talks to it: no page of another origin may.
    params.cors_origins = ""
    # Each open connection holds a thread, also an idle one that the gateway keeps alive.
    params.n_threads_http = max(32, 4 * options.slots)
    params.verbosity = options.verbosity
    try:
        server = xllamacpp.Server(params)
    except (RuntimeError, ValueError) as error:
        print(f"error: llama.cpp could not start: {error}", file=sys.stderr)
        return 1
    print(f"listening on {server.listening_address}", flush=True)
    stop = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    signal.sigwait(stop)
    # Its destructor waits for running requests; whoever stops us has drained what it wanted.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
