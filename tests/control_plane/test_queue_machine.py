"""The bands' queues against a reference that searches through all that waits.

The reference knows the rules and nothing of heaps: the tenant with the least virtual time goes
first, of its requests the one that is due first; parked tenants are passed over.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sage_prefect.control_plane.events import Band, RequestInfo
from sage_prefect.control_plane.queues import LAG_S, Accounts, BandQueue
from sage_prefect.control_plane.scheduled_request import ScheduledRequest

TENANTS = st.sampled_from("abc")
MODELS = st.sampled_from(["m", "n"])
DUE = st.integers(0, 6).map(float)
COST = st.sampled_from([0.25, 0.5, 1.0, 2.0])


class QueueMachine(RuleBasedStateMachine):
    """Two models' queues of one band, which share their tenants' accounts."""

    fair = True
    by_deadline = True

    def __init__(self) -> None:
        super().__init__()
        self.accounts = Accounts()
        self.queues = {
            model: BandQueue(self.accounts, by_deadline=self.by_deadline, fair=self.fair)
            for model in ("m", "n")
        }
        self.waiting: dict[str, list[ScheduledRequest]] = {"m": [], "n": []}
        self.parked: dict[str, set[str]] = {"m": set(), "n": set()}
        self.virtual: dict[str, float] = {}
        self.present = 0.0
        self.gone: list[ScheduledRequest] = []
        self.running: list[ScheduledRequest] = []
        self.seq = 0

    # -- the reference ------------------------------------------------------------------------

    def joined(self, model: str, one: ScheduledRequest) -> None:
        tenant = one.info.tenant
        if not any(r.info.tenant == tenant for queue in self.waiting.values() for r in queue):
            self.virtual[tenant] = max(self.virtual.get(tenant, self.present), self.present - LAG_S)
        self.waiting[model].append(one)

    def expected(self, model: str) -> ScheduledRequest | None:
        free = [r for r in self.waiting[model] if r.info.tenant not in self.parked[model]]
        if not free:
            return None

        def own(r: ScheduledRequest) -> tuple[float, int]:
            return (r.due if self.by_deadline else 0.0, r.seq)

        if self.fair:
            return min(free, key=lambda r: (self.virtual[r.info.tenant], r.info.tenant, own(r)))
        return min(free, key=own)

    # -- what may happen ----------------------------------------------------------------------

    @rule(model=MODELS, tenant=TENANTS, due=DUE, cost=COST)
    def push(self, model: str, tenant: str, due: float, cost: float) -> None:
        info = RequestInfo(f"r{self.seq}", model, tenant=tenant, band=Band.STANDARD)
        one = ScheduledRequest(info, self.seq, 0.0, due=due, cost_s=cost)
        self.seq += 1
        self.queues[model].push(one)
        self.joined(model, one)

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        one = self.gone.pop(data.draw(st.integers(0, len(self.gone) - 1)))
        self.queues[one.info.model].push(one)
        self.joined(one.info.model, one)

    @rule(model=MODELS, tenants=st.lists(TENANTS, min_size=2, max_size=6))
    def burst(self, model: str, tenants: list[str]) -> None:
        for tenant in tenants:
            self.push(model, tenant, 0.0, 1.0)

    @rule(model=MODELS)
    def dispatch(self, model: str) -> None:
        one = self.queues[model].head()
        assert one is self.expected(model)
        if one is None:
            return
        self.queues[model].remove(one)
        self.waiting[model].remove(one)
        self.running.append(one)
        account = self.accounts.of(one.info.tenant)
        self.accounts.present = max(self.accounts.present, account.virtual)
        self.present = max(self.present, self.virtual[one.info.tenant])
        account.charge(one.cost_s)
        self.virtual[one.info.tenant] += one.cost_s

    @rule(model=MODELS)
    def dispatch_two(self, model: str) -> None:
        self.dispatch(model)
        self.dispatch(model)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), share=st.sampled_from([0.0, 0.5, 1.0, 3.0]))
    def end(self, data: st.DataObject, share: float) -> None:
        """It took less or more than it was charged for."""
        one = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.accounts.of(one.info.tenant).charge((share - 1.0) * one.cost_s)
        self.virtual[one.info.tenant] += (share - 1.0) * one.cost_s

    @precondition(lambda self: any(self.waiting.values()))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from([r for queue in self.waiting.values() for r in queue]))
        self.queues[one.info.model].remove(one)
        self.queues[one.info.model].remove(one)  # a second time: nothing
        self.waiting[one.info.model].remove(one)
        self.gone.append(one)

    @rule(model=MODELS, tenant=TENANTS)
    def park(self, model: str, tenant: str) -> None:
        """Only who waits is parked: the policy parks the tenant of a head."""
        if any(r.info.tenant == tenant for r in self.waiting[model]):
            self.queues[model].park(tenant)
            self.parked[model].add(tenant)

    @rule(model=MODELS, tenant=TENANTS)
    def unpark(self, model: str, tenant: str) -> None:
        self.queues[model].unpark(tenant)
        if tenant in self.parked[model]:
            self.parked[model].discard(tenant)
            if any(r.info.tenant == tenant for r in self.waiting[model]):
                self.virtual[tenant] = max(self.virtual[tenant], self.present - LAG_S)

    @rule(model=MODELS)
    def look(self, model: str) -> None:
        assert self.queues[model].head() is self.expected(model)

    def teardown(self) -> None:
        """All who wait come out in order, once everybody may go."""
        for model in ("m", "n"):
            for tenant in sorted(self.parked[model]):
                self.unpark(model, tenant)
            while self.waiting[model]:
                self.dispatch(model)
            assert self.queues[model].head() is None
            assert not self.queues[model]._flows
            assert not self.queues[model]._heap

    # -- what always holds ----------------------------------------------------------------------

    @invariant()
    def everybody_is_counted(self) -> None:
        for model, queue in self.queues.items():
            waiting = self.waiting[model]
            assert queue.size == len(waiting)
            assert sorted(r.seq for r in queue.requests()) == sorted(r.seq for r in waiting)
            assert all(r.waits_in is queue for r in waiting)
        everything = [r for queue in self.waiting.values() for r in queue]
        for tenant, account in self.accounts.by_tenant.items():
            own = [r for r in everything if r.info.tenant == tenant]
            assert account.queued == len(own)
            assert account.cost_s == sum(r.cost_s for r in own)  # sums of quarters are exact
            assert (tenant in self.accounts.backlogged) == bool(own)

    @invariant()
    def virtual_times_agree(self) -> None:
        for tenant, virtual in self.virtual.items():
            assert self.accounts.of(tenant).virtual == virtual


class UnfairQueueMachine(QueueMachine):
    """One flow by deadline: whose request is due first, whoever sent it."""

    fair = False


class ArrivalQueueMachine(QueueMachine):
    """Tenants by virtual time, each one's requests as they came."""

    by_deadline = False


SETTINGS = settings(max_examples=100, stateful_step_count=40)
TestQueue = QueueMachine.TestCase
TestQueue.settings = SETTINGS
TestUnfairQueue = UnfairQueueMachine.TestCase
TestUnfairQueue.settings = SETTINGS
TestArrivalQueue = ArrivalQueueMachine.TestCase
TestArrivalQueue.settings = SETTINGS
