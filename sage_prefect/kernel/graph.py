"""The graph behind a pipeline: chains of steps, joined by exchanges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sage_prefect.kernel.exchange import ExchangeReader, Route
from sage_prefect.kernel.plan import OnError, Step
from sage_prefect.kernel.source import Source


@dataclass(frozen=True)
class Feed:
    """A chain whose rows go through an exchange to the chain after it."""

    chain: Chain
    route: Route


@dataclass(frozen=True)
class Chain:
    """A source and its steps, up to the next exchange or the sink.

    Args:
        source: an :class:`ExchangeReader` where ``feeds`` is not empty.
        feeds: what the exchange before this chain reads.
    """

    source: Source
    source_on_error: OnError = "retry"
    steps: tuple[Step, ...] = ()
    feeds: tuple[Feed, ...] = ()

    def walk(self) -> Iterator[Chain]:
        """This chain and all before it, in the order in which they can run; one that feeds two
        comes twice."""
        for feed in self.feeds:
            yield from feed.chain.walk()
        yield self

    def sources(self) -> tuple[Source, ...]:
        """Where rows come from outside."""
        return tuple(c.source for c in self.walk() if not isinstance(c.source, ExchangeReader))
