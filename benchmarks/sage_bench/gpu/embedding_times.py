"""Service times of the embedding server's own encoder on this GPU, beside its CPU.

``S = s0 + alpha*tokens`` (padding counted), and how far vectors of the GPU, also in half precision,
are from those of the CPU (cosine).
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sage_prefect.platform.embedding_server.server import load_encoder

LENGTHS = (16, 64, 256)
BATCHES = (1, 8, 32, 128, 512)
_MOST_TOKENS = 65_536
_ROUNDS = 5


def measure(model: Path, text: str) -> dict[str, Any]:
    """Times and drift.

    Args:
        model: folder of a sentence-transformers model.
        text: some natural text that inputs are cut from.
    """
    import torch

    words = text.split()
    draw = random.Random(0)
    texts = [" ".join(words[at : at + draw.randint(3, 180)]) for at in range(0, 12_800, 200)]
    cpu = load_encoder(model, "cpu")
    tokens = [each.ids for each in cpu.tokenize(texts)]
    exact = cpu.encode(tokens)
    result: dict[str, Any] = {
        "model": model.name,
        "cpu": _times(cpu, tokens[0], most_tokens=4096),
        "threads": torch.get_num_threads(),
    }
    for dtype in ("float32", "bfloat16", "float16"):
        encoder = load_encoder(model, "cuda", dtype)
        found = encoder.encode(tokens)
        cosine = (found * exact).sum(axis=1) / (
            np.linalg.norm(found, axis=1) * np.linalg.norm(exact, axis=1)
        )
        result[dtype] = {
            **_times(encoder, tokens[0], most_tokens=_MOST_TOKENS),
            "least_cosine_to_cpu": float(cosine.min()),
            "new_shapes_s": _new_shapes(encoder, tokens),
            "peak_mb": torch.cuda.max_memory_allocated() / 1e6,
        }
        del encoder
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return result


def _new_shapes(encoder: Any, tokens: Sequence[list[int]]) -> list[float]:
    """Seconds of batches, each of a shape that was not there before, padded as in service."""
    taken = []
    for number in range(24):
        batch = [text[: 30 + 7 * number] for text in tokens[: 20 + number]]
        begun = time.perf_counter()
        encoder.encode(batch)
        taken.append(time.perf_counter() - begun)
    return taken


def _times(encoder: Any, ids: Sequence[int], most_tokens: int) -> dict[str, Any]:
    points = []
    for length in LENGTHS:
        text = (list(ids) * (length // len(ids) + 1))[:length]
        for count in BATCHES:
            if count * length > most_tokens:
                continue
            batch = [text] * count
            encoder.encode(batch)
            taken = []
            for _ in range(_ROUNDS):
                begun = time.perf_counter()
                encoder.encode(batch)  # ends with a copy to the CPU: nothing is left running
                taken.append(time.perf_counter() - begun)
            points.append((count * length, statistics.median(taken)))
    rows = np.array([[1.0, tokens] for tokens, _ in points])
    times = np.array([seconds for _, seconds in points])
    solved, *_ = np.linalg.lstsq(rows / times[:, None], np.ones(len(points)), rcond=None)
    errors = np.abs(rows @ solved - times) / times
    return {
        "points": points,
        "s0": float(solved[0]),
        "alpha": float(solved[1]),
        "median_error": float(np.median(errors)),
        "largest_error": float(errors.max()),
    }
