"""Start vLLM's OpenAI server, after converting a GGUF model to safetensors where that is needed.

Runs with the Python of vLLM's own environment, as a file: it must import nothing of ours.

``python vllm_server.py [--gguf FILE --converted DIR] -- ARGUMENTS OF THE API SERVER``
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path


def convert(gguf: Path, target: Path) -> None:
    """Write ``target`` in Hugging Face layout (config, tokenizer, safetensors) from a GGUF file.

    Weights are dequantised by transformers, into bfloat16. ``target`` appears whole or not at all.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # Two engines of one model may start together: one converts, the other waits and finds it.
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (target / "config.json").is_file():
            return
        begun = time.monotonic()
        print(f"converting {gguf} to safetensors in {target}", flush=True)
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        folder, file = str(gguf.parent), gguf.name
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=file,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
        work = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            model.save_pretrained(work, safe_serialization=True)
            tokenizer.save_pretrained(work)
            work.rename(target)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        print(f"converted in {time.monotonic() - begun:.1f} s", flush=True)


def main() -> None:
    """Convert if asked to, then become the API server."""
    parser = argparse.ArgumentParser(prog="sage-vllm")
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--converted", type=Path)
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.gguf is not None and not (options.converted / "config.json").is_file():
        convert(options.gguf, options.converted)
    arguments = [part for part in options.arguments if part != "--"]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments]
    os.execv(sys.executable, command)


if __name__ == "__main__":
    main()
