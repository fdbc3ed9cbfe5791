"""Step times over a grid of loads, and the affine model of the scheduler fitted to them.

``T = c0 + a*p + b*n + g*C`` (sage_bench.simulation.step_profile) for p prefill tokens, n decoding
sequences and C tokens of their context together. Fitted by least squares of relative errors.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sage_bench.gpu.decoder import SHAPES, Decoder

PREFILLS = (0, 64, 256, 512, 1024, 2048, 4096)
SEQUENCES = (0, 1, 8, 32, 64, 128, 256)
CONTEXTS = (512, 2048)
_ROUNDS = 5
_MOST_CACHE_BYTES = 24e9


@dataclass(frozen=True, slots=True)
class Point:
    """One load and what a step took, in seconds (median of several replays)."""

    prefill: int
    sequences: int
    context: int
    seconds: float


def measure(shape: str) -> dict[str, Any]:
    """Points and fit of one shape."""
    import torch

    decoder = Decoder(SHAPES[shape])
    sizes = decoder.shape
    points = []
    for prefill, sequences, context in itertools.product(PREFILLS, SEQUENCES, CONTEXTS):
        if not prefill + sequences or (not sequences and context != CONTEXTS[0]):
            continue
        cache = 4 * sizes.layers * sequences * sizes.kv_heads * context * sizes.head_size
        if cache > _MOST_CACHE_BYTES:
            continue
        graph = decoder.iteration(prefill, sequences, context)
        taken = [_replay(torch, graph) for _ in range(_ROUNDS + 1)][1:]
        points.append(Point(prefill, sequences, context, statistics.median(taken)))
        del graph
        torch.cuda.empty_cache()
    return {
        "shape": shape,
        "points": [asdict(point) for point in points],
        "fit": fit(points),
        "decode_only": fit([point for point in points if not point.prefill]),
    }


def _replay(torch: Any, graph: Any) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def fit(points: Sequence[Point]) -> dict[str, float]:
    """Constants in seconds, and how far the model is off (relative error: median, p90, largest)."""
    rows = np.array(
        [[1.0, p.prefill, p.sequences, p.sequences * p.context] for p in points], dtype=np.float64
    )
    times = np.array([p.seconds for p in points])
    used = rows.any(axis=0)
    weighted = rows[:, used] / times[:, None]
    solved, *_ = np.linalg.lstsq(weighted, np.ones(len(points)), rcond=None)
    constants = np.zeros(4)
    constants[used] = solved
    errors = np.abs(rows @ constants - times) / times
    return {
        **dict(zip(("c0", "a", "b", "g"), map(float, constants), strict=True)),
        "median_error": float(np.median(errors)),
        "p90_error": float(np.quantile(errors, 0.9)),
        "largest_error": float(errors.max()),
        "points": len(points),
    }
