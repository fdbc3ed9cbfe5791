"""``python -m sage_bench.gpu OUT [--model FOLDER] [--shapes NAME,...]``: what a GPU tells."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

from sage_bench.gpu import step_times
from sage_bench.gpu.decoder import SHAPES


def main() -> int:
    """Measure and write ``gpu.json``; 2 where there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m sage_bench.gpu")
    parser.add_argument("out", type=Path, help="folder for gpu.json")
    parser.add_argument("--model", type=Path, help="embedding model's folder; none: left out")
    parser.add_argument("--text", type=Path, default=Path("docs/gateway.md"))
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument(
        "--serve", action="store_true", help="also serve the model behind the gateway"
    )
    chosen = parser.parse_args()
    if chosen.serve and chosen.model is None:
        parser.error("--serve needs --model")
    import torch

    if not torch.cuda.is_available():
        print("error: PyTorch sees no GPU here.", file=sys.stderr)
        return 2
    report: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(0),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }
    chosen.out.mkdir(parents=True, exist_ok=True)
    file = chosen.out / "gpu.json"
    if chosen.model is not None:
        from sage_bench.gpu import embedding_times

        text = chosen.text.read_text(encoding="utf-8")
        report["embedding"] = embedding_times.measure(chosen.model, text)
        file.write_text(json.dumps(report, indent=1))
    if chosen.serve:
        from sage_bench.gpu import served

        words = text.split()
        texts = [" ".join(words[at : at + 20 + at % 160]) for at in range(0, len(words) - 200, 7)]
        report["served"] = served.measure(chosen.model, texts)
        file.write_text(json.dumps(report, indent=1))
    for shape in filter(None, chosen.shapes.split(",")):
        found = step_times.measure(shape)
        report.setdefault("step_times", []).append(found)
        file.write_text(json.dumps(report, indent=1))
        print(shape, json.dumps(found["fit"]), "decode only", json.dumps(found["decode_only"]))
    print(json.dumps({k: v for k, v in report.items() if k != "step_times"}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
