"""Lengths of prompts, outputs and embedding inputs, in tokens.

Published traces are not lognormal enough in their tails (Azure's outputs have two modes), so
lengths are drawn from tables of quantiles by linear interpolation. The tables have points of their
own above 0.95: with none, the interpolation up to the maximum makes Azure's mean prompt 13 % too
long. Embedding traffic has no
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
Lengths = NDArray[np.int64]


@dataclass(frozen=True)
class LengthTable:
    """Prompt and output lengths, drawn independently (their rank correlation is under 0.1).

    Args:
        name: of the table.
        levels: rising from 0 to 1.
        prompt: the quantiles of the prompt at the levels.
        output: the same of the output.
    """

    name: str
    levels: tuple[float, ...]
    prompt: tuple[float, ...]
    output: tuple[float, ...]

    def __post_init__(self) -> None:
        levels = self.levels
        if levels[:1] != (0.0,) or levels[-1:] != (1.0,) or list(levels) != sorted(set(levels)):
            raise CorruptFileError(f"length table {self.name!r}: levels must rise from 0 to 1.")
        for what, values in (("prompt", self.prompt), ("output", self.output)):
            if len(values) != len(levels) or list(values) != sorted(values) or values[0] < 1:
                raise CorruptFileError(
                    f"length table {self.name!r}: {what} must be {len(levels)} rising numbers "
                    "from 1 on."
                )

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Lengths, Lengths]:
        """``count`` prompt and output lengths."""
        return self._drawn(rng, self.prompt, count), self._drawn(rng, self.output, count)

    def mean(self) -> tuple[float, float]:
        """Mean prompt and output length."""
        return self._mean(self.prompt), self._mean(self.output)

    def _drawn(self, rng: np.random.Generator, table: tuple[float, ...], count: int) -> Lengths:
        drawn = np.interp(rng.random(count), self.levels, table)
        return np.maximum(1, np.rint(drawn)).astype(np.int64)

    def _mean(self, table: tuple[float, ...]) -> float:
        widths = np.diff(self.levels)
        middles = (np.asarray(table[1:]) + np.asarray(table[:-1])) / 2
        return float(widths @ middles)


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
        name: LengthTable(
            name, tuple(table["levels"]), tuple(table["prompt"]), tuple(table["output"])
        )
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
