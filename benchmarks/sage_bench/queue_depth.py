"""What a very deep queue costs: CPU per event and memory, by policy.

``python -m sage_bench.queue_depth --requests 1000000 --policy hybrid`` fills a manager's queue with
so many requests of many tenants and all bands, works at that depth for a while, then lets all of
them time out. No event may get slower with the depth by more than a logarithm; the longest one is
shown.
"""

from __future__ import annotations

import argparse
import gc
import resource
import time
from random import Random

from sage_prefect.control_plane.events import (
    Action,
    Arrival,
    Band,
    Cancel,
    Dispatch,
    Done,
    EngineAdded,
    EngineReport,
    EngineSpec,
    EngineState,
    Event,
    Failed,
    FailureCause,
    FirstToken,
    Limits,
    RequestInfo,
    Timer,
)
from sage_prefect.control_plane.manager import ControlPlaneManager
from sage_prefect.control_plane.strategies import POLICIES

TENANTS, ENGINES, SLOTS, SESSIONS = 1000, 8, 16, 500
TIMEOUT_S = 100_000.0


class DeepQueue:
    """A manager whose queue is filled, used and emptied; each event's CPU time is taken."""

    def __init__(self, policy: str) -> None:
        limits = Limits(1 << 40, 1 << 60, TIMEOUT_S)
        self.manager = ControlPlaneManager(policy, limits)
        self.now = 0.0
        self.running: list[str] = []
        self.spent: dict[str, list[float]] = {}
        self._rng = Random(0)
        self._made = 0
        for number in range(ENGINES):
            self.feed(EngineAdded(EngineSpec(f"e{number}", ("m",), SLOTS)), "engine added")

    def feed(self, event: Event, phase: str) -> list[Action]:
        """Hand an event over and note what it took."""
        began = time.process_time_ns()
        actions = self.manager.handle(event, self.now)
        took = (time.process_time_ns() - began) / 1e3
        count, total, longest = self.spent.get(phase, (0, 0.0, 0.0))
        self.spent[phase] = [count + 1, total + took, max(longest, took)]
        self.running += [a.request_id for a in actions if isinstance(a, Dispatch)]
        return actions

    def arrive(self, phase: str) -> None:
        """One more request, of any tenant and band."""
        rng = self._rng
        info = RequestInfo(
            f"r{self._made}",
            "m",
            tenant=f"t{rng.randrange(TENANTS)}",
            band=Band(rng.randrange(4)),
            stream=True,
            body_bytes=1000,
            prompt_tokens=rng.randrange(20, 2000),
            output_estimate=rng.randrange(20, 400),
            session=f"s{rng.randrange(SESSIONS)}",
        )
        self._made += 1
        self.now += 1e-5
        self.feed(Arrival(info), phase)

    def fill(self, requests: int) -> None:
        """Queue so many requests."""
        while self.manager.queued < requests:
            self.arrive("arrival, filling")

    def work(self, rounds: int) -> None:
        """What a gateway sees, at full depth."""
        rng = self._rng
        for number in range(rounds):
            self.now += 1e-3
            name = self.running.pop(rng.randrange(len(self.running)))
            self.feed(FirstToken(name), "first token")
            engine = f"e{number % ENGINES}"
            if number % 10 == 9:
                story = self.manager.explain(name)
                inside = str(story and story["engine"])
                failed = Failed(name, inside, FailureCause.RESET, retryable=True)
                self.feed(failed, "failed, retried")
            else:
                self.feed(Done(name, 500, 100), "done, next dispatched")
            self.arrive("arrival, full")
            self.feed(Cancel(f"r{rng.randrange(self._made)}"), "cancel")
            self.running = [r for r in self.running if self._runs(r)]
            if number % 50 == 0:
                self.feed(EngineReport(engine, EngineState.SUSPECT), "engine suspect")
                self.feed(EngineReport(engine, EngineState.READY), "engine back")
            self.feed(Timer(), "timer")

    def expire(self) -> None:
        """All that waits has waited too long, and is told so."""
        self.now += 2 * TIMEOUT_S
        while self.manager.queued:
            self.feed(Timer(), "timer, all expire")

    def _runs(self, name: str) -> bool:
        story = self.manager.explain(name)
        return story is not None and story["state"] == "running"


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--policy", default="hybrid", choices=sorted(POLICIES))
    options = parser.parse_args(arguments)
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)  # as the gateway
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    queue = DeepQueue(options.policy)
    queue.fill(options.requests)
    queue.work(options.rounds)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    queue.expire()
    print(f"policy {options.policy}, {options.requests} queued requests")
    print(f"memory {memory / 1024:.0f} MB, {memory * 1024 / options.requests:.0f} bytes a request")
    print(f"{'event':24} {'count':>9} {'mean us':>9} {'longest us':>11}")
    for phase, (count, total, longest) in queue.spent.items():
        print(f"{phase:24} {count:9.0f} {total / count:9.1f} {longest:11.0f}")


if __name__ == "__main__":
    main()
