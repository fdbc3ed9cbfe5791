"""Lengths of prompts, outputs and embedding inputs, in tokens.

Published traces are not lognormal enough in their tails (Azure's outputs have two modes), so
lengths are drawn from tables of 21 quantiles by linear interpolation. Embedding traffic has no
public trace: its lengths are lognormal and synthetic.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sage_prefect.common.errors import CorruptFileError, SettingsError, UnknownNameError

_FILE = Path(__file__).with_name("lengths.json")
_LEVELS = np.linspace(0.0, 1.0, 21)
Lengths = NDArray[np.int64]


@dataclass(frozen=True)
class LengthTable:
    """Prompt and output lengths, drawn independently (their rank correlation is under 0.1).

    Args:
        name: of the table.
        prompt: 21 quantiles from 0 to 1.
        output: the same of the output.
    """

    name: str
    prompt: tuple[float, ...]
    output: tuple[float, ...]

    def __post_init__(self) -> None:
        for what, values in (("prompt", self.prompt), ("output", self.output)):
            if len(values) != len(_LEVELS) or list(values) != sorted(values) or values[0] < 1:
                raise CorruptFileError(
                    f"length table {self.name!r}: {what} must be 21 rising numbers from 1 on."
                )

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Lengths, Lengths]:
        """``count`` prompt and output lengths."""
        return _interpolate(rng, self.prompt, count), _interpolate(rng, self.output, count)

    def mean(self) -> tuple[float, float]:
        """Mean prompt and output length."""
        return _mean(self.prompt), _mean(self.output)


def _mean(table: tuple[float, ...]) -> float:
    return (sum(table) - (table[0] + table[-1]) / 2) / (len(table) - 1)


def _interpolate(rng: np.random.Generator, table: tuple[float, ...], count: int) -> Lengths:
    drawn = np.interp(rng.random(count), _LEVELS, table)
    return np.maximum(1, np.rint(drawn)).astype(np.int64)


@dataclass(frozen=True)
class LognormalLengths:
    """Lengths around ``median`` with ``sigma`` of the logarithm, from 1 to ``cap``."""

    median: float
    sigma: float
    cap: int

    def __post_init__(self) -> None:
        if not (self.median >= 1 and self.sigma >= 0 and self.cap >= 1):
            raise SettingsError(
                f"lognormal lengths median={self.median}, sigma={self.sigma}, cap={self.cap}: "
                "median and cap are at least 1, sigma at least 0."
            )

    def draw(self, rng: np.random.Generator, count: int) -> Lengths:
        """``count`` lengths."""
        drawn = self.median * np.exp(self.sigma * rng.standard_normal(count))
        return np.clip(np.rint(drawn), 1, self.cap).astype(np.int64)


QUERIES = LognormalLengths(14, 0.6, 512)
CHUNKS = LognormalLengths(260, 0.5, 512)


@cache
def length_tables() -> dict[str, LengthTable]:
    """The tables that come with the package, by name."""
    content = json.loads(_FILE.read_text(encoding="utf-8"))
    if content.get("format") != 1:
        raise CorruptFileError(f"{_FILE.name} has format {content.get('format')!r}, not 1.")
    return {
        name: LengthTable(name, tuple(table["prompt"]), tuple(table["output"]))
        for name, table in content["tables"].items()
    }


def length_table(name: str) -> LengthTable:
    """The table of this name.

    Raises:
        UnknownNameError: lists the known ones.
    """
    tables = length_tables()
    if name not in tables:
        raise UnknownNameError("length table", name, tables)
    return tables[name]
