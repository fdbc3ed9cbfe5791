"""Whatever happens, every arrival ends in exactly one way and no window is ever overrun."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from sage_prefect.control_plane.events import (
    Abort,
    Action,
    Arrival,
    Cancel,
    Dispatch,
    Done,
    EngineAdded,
    EngineRemoved,
    EngineReport,
    EngineSpec,
    EngineState,
    Event,
    Failed,
    FailureCause,
    FirstToken,
    Limits,
    PolicyChanged,
    Progress,
    Reject,
    RequestInfo,
    SetTimer,
    Timer,
)
from sage_prefect.control_plane.manager import ControlPlaneManager
from sage_prefect.control_plane.strategies import POLICIES

MODELS = ("m1", "m2", "m3")
ENGINES = ("e1", "e2", "e3")
POLICY_NAMES = st.sampled_from(sorted(POLICIES))


class Conservation(RuleBasedStateMachine):
    """Plays driver and engines; keeps its own books and compares them with the manager's."""

    requests = Bundle("requests")

    @initialize(policy=POLICY_NAMES)
    def start(self, policy: str) -> None:
        self.limits = Limits(max_queued_requests=6, max_queued_bytes=50, queue_timeout_s=30)
        self.manager = ControlPlaneManager(policy, self.limits)
        self.now = 0.0
        self.timer: float | None = None
        self.counter = 0
        self.waiting: set[str] = set()
        self.running: dict[str, str] = {}
        self.ended: dict[str, str] = {}
        self.windows: dict[str, int] = {}

    # -- what the driver and the world do -------------------------------------------------

    @rule(
        target=requests,
        model=st.sampled_from((*MODELS, "unknown")),
        size=st.integers(0, 30),
        deadline=st.none() | st.floats(-5, 40),
    )
    def arrive(self, model: str, size: int, deadline: float | None) -> str:
        self.counter += 1
        name = f"r{self.counter}"
        self.waiting.add(name)
        absolute = None if deadline is None else self.now + deadline
        self.feed(Arrival(RequestInfo(name, model, body_bytes=size, deadline=absolute)))
        return name

    @rule(name=requests)
    def finish(self, name: str) -> None:
        was_running = self.running.pop(name, None)
        if was_running is not None:
            self.end(name, "done")
        self.feed(Done(name, 3, 4))

    @rule(name=requests, retryable=st.booleans(), cause=st.sampled_from(FailureCause))
    def fail(self, name: str, retryable: bool, cause: FailureCause) -> None:
        engine = self.running.pop(name, None)
        if engine is not None:
            self.waiting.add(name)  # until the manager says where it goes
        self.feed(Failed(name, engine or "e1", cause, retryable))

    @rule(name=requests)
    def cancel(self, name: str) -> None:
        if name in self.waiting or name in self.running:
            self.waiting.discard(name)
            self.running.pop(name, None)
            self.end(name, "cancelled")
        self.feed(Cancel(name))

    @rule(name=requests)
    def chatter(self, name: str) -> None:
        self.feed(FirstToken(name))
        self.feed(Progress(name, 2))

    @rule(
        name=st.sampled_from(ENGINES),
        models=st.lists(st.sampled_from(MODELS), min_size=1, unique=True),
        window=st.integers(1, 3),
    )
    def add_engine(self, name: str, models: list[str], window: int) -> None:
        self.windows[name] = window
        self.feed(EngineAdded(EngineSpec(name, tuple(models), window)))

    @rule(name=st.sampled_from(ENGINES), abort=st.booleans())
    def remove_engine(self, name: str, abort: bool) -> None:
        self.feed(EngineRemoved(name, abort))

    @rule(name=st.sampled_from(ENGINES), state=st.sampled_from(EngineState))
    def report(self, name: str, state: EngineState) -> None:
        self.feed(EngineReport(name, state))

    @rule(policy=POLICY_NAMES)
    def switch(self, policy: str) -> None:
        before = self.manager.queued
        self.feed(PolicyChanged(policy))
        assert self.manager.policy.name == policy
        assert self.manager.queued <= before

    @rule(step=st.floats(-10, 40))
    def pass_time(self, step: float) -> None:
        self.now += step
        if self.timer is not None and self.now >= self.timer:
            self.timer = None
            self.feed(Timer())

    # -- what the manager answers ---------------------------------------------------------

    def feed(self, event: Event) -> None:
        for action in self.manager.handle(event, self.now):
            self.obey(action)

    def obey(self, action: Action) -> None:
        if isinstance(action, SetTimer):
            self.timer = action.at
        elif isinstance(action, Dispatch):
            assert action.request_id in self.waiting, "dispatched twice, or after its end"
            self.waiting.remove(action.request_id)
            self.running[action.request_id] = action.engine
            inside = list(self.running.values()).count(action.engine)
            assert inside <= self.windows[action.engine], "over the window"
            entry = self.manager.ledger.get(action.engine)
            assert entry is not None
            assert entry.state is EngineState.READY
            assert not entry.leaving
        elif isinstance(action, Reject):
            assert action.request_id in self.waiting, "rejected twice, or while it runs"
            self.waiting.remove(action.request_id)
            self.end(action.request_id, "rejected")
            assert action.status in (404, 429, 502, 503, 504)
            assert action.message
        else:
            assert isinstance(action, Abort)

    def end(self, name: str, how: str) -> None:
        assert name not in self.ended, "two ends"
        self.ended[name] = how

    # -- what must always hold ------------------------------------------------------------

    @invariant()
    def books_agree(self) -> None:
        if not hasattr(self, "manager"):
            return
        manager: Any = self.manager
        assert manager.queued == len(self.waiting)
        assert manager.running == len(self.running)
        assert len(self.waiting) + len(self.running) + len(self.ended) == self.counter
        for name, engine in self.running.items():
            assert name in manager.ledger.get(engine).running
        assert manager.queued_bytes >= 0
        if not self.waiting:
            assert manager.queued_bytes == 0

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        """Work conservation: no request is queued while an engine could take it."""
        if not hasattr(self, "manager"):
            return
        for request in self.manager.policy.pending():
            for entry in self.manager.ledger.pool(request.info.model).values():
                assert entry.room == 0, f"{request.request_id} waits beside {entry.name}"

    def teardown(self) -> None:
        """With healthy engines and time, everything comes to its end."""
        if not hasattr(self, "manager"):
            return
        for name in ENGINES:
            self.add_engine(name, list(MODELS), 3)
        while self.running:
            self.finish(next(iter(self.running)))
        assert not self.waiting
        assert self.manager.queued == self.manager.running == 0
        assert set(self.ended) == {f"r{i + 1}" for i in range(self.counter)}


TestConservation = Conservation.TestCase
TestConservation.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
