"""One run: clients ask, gateways decide, engines work, in virtual time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sage_bench.simulation.clients import Clients
from sage_bench.simulation.cluster import Node, NodeSpec
from sage_bench.simulation.controller import Controller, ControllerFactory
from sage_bench.simulation.event_queue import EventQueue
from sage_bench.simulation.faults import Fault
from sage_bench.simulation.fleet import Fleet
from sage_bench.simulation.flight import Flight, Job
from sage_bench.simulation.gateway import Gateway, Journal, Surroundings
from sage_bench.simulation.records import Records
from sage_bench.simulation.request_facts import Facts
from sage_bench.workloads.sources import ClosedLoop, OpenLoop
from sage_prefect.control_plane.events import (
    BandsChanged,
    BandSpec,
    EngineAdded,
    EngineReport,
    EngineState,
    FailureCause,
    TenantsChanged,
    TenantSpec,
)


class Simulation:
    """One run; :meth:`run` may be called once.

    Args:
        nodes: the engines.
        sources: what asks.
        controllers: makes a gateway's controller.
        around: network, gateways, times.
        facts: what a gateway is told of a request.
        faults: what goes wrong when.
        weights: of tenants; those not named have 1.
        bands: promises that differ from the control plane's own.
        journal: called with every event that a controller takes.
    """

    def __init__(
        self,
        nodes: list[NodeSpec],
        sources: Sequence[OpenLoop | ClosedLoop],
        controllers: ControllerFactory,
        around: Surroundings,
        facts: Facts,
        faults: Sequence[Fault] = (),
        *,
        weights: Mapping[str, float] | None = None,
        bands: Sequence[BandSpec] = (),
        journal: Journal | None = None,
    ) -> None:
        self.queue = EventQueue()
        self.fleet = Fleet(nodes, self.queue, self, faults)
        self.around = around
        self.slowdowns = [
            (fault.at_s, node.name)
            for fault in faults
            if fault.kind == "slow"
            for node in self.fleet.nodes
            if fault.hits(node.name)
        ]
        """When which engine becomes slow."""
        self.weights = dict(weights or {})
        self.bands = tuple(bands)
        self.records = Records([node.name for node in self.fleet.nodes])
        self.clients = Clients(
            sources,
            self.queue,
            self.records,
            around.gateways,
            lambda flight: self.gateways[flight.gateway].arrive(flight),
            lambda flight: self.gateways[flight.gateway].hang_up(flight),
        )
        self.gateways = [
            Gateway(i, controllers(), self.queue, self.fleet, self.clients, facts, around, journal)
            for i in range(around.gateways)
        ]

    @property
    def controllers(self) -> list[Controller]:
        """What decides, one per gateway."""
        return [gateway.controller for gateway in self.gateways]

    def run(self) -> Records:
        """Run until the last open-loop request has ended, or the time to drain is over."""
        self._begin()
        queue, clients, until = self.queue, self.clients, self.around.until_s
        end = until + self.around.drain_s
        while (at := queue.next_at) is not None:
            if at > end or (at > until and not clients.open):
                break
            queue.step()
        clients.close()
        return self.records

    def _begin(self) -> None:
        around = self.around
        for gateway in self.gateways:
            for node in self.fleet.nodes:
                spec = node.spec.spec
                window = max(1, spec.max_concurrency // around.gateways)
                gateway.tell(EngineAdded(replace(spec, max_concurrency=window)))
            if self.bands:
                gateway.tell(BandsChanged(self.bands))
            if self.weights:
                tenants = tuple(TenantSpec(name, weight) for name, weight in self.weights.items())
                gateway.tell(TenantsChanged(tenants))
        self.clients.begin()
        if around.staleness_s > 0:
            self.queue.push(around.staleness_s, self._on_scrape, None)

    # -- what leaves the engines ----------------------------------------------------------

    def first_token(self, flight: Flight) -> None:
        """To the flight's gateway."""
        self.gateways[flight.gateway].first_token(flight)

    def answered(self, job: Job) -> None:
        """To the job's gateway."""
        self.gateways[job.gateway].answered(job)

    def failed(self, job: Job, node: Node, cause: FailureCause, message: str) -> None:
        """To the job's gateway."""
        self.gateways[job.gateway].failed(job, node, cause, message)

    def noticed(self, node: Node, fault: Fault) -> None:
        """Probes of all gateways find it out after a while."""
        if fault.state is not None and (node.up or fault.state is not EngineState.READY):
            report = EngineReport(node.name, fault.state, fault.kind)
            self.queue.push(self.queue.now + self.around.detection_s, self._on_reports, [report])

    def _on_reports(self, reports: list[EngineReport]) -> None:
        for gateway in self.gateways:
            for report in reports:
                gateway.tell(report)

    # -- what gateways look at by themselves ----------------------------------------------

    def _on_scrape(self, _: None) -> None:
        late = self.around.staleness_s
        reports = [
            EngineReport(node.name, EngineState.READY, "", node.gauges())
            for node in self.fleet.nodes
            if node.up
        ]
        self.queue.push(self.queue.now + late, self._on_reports, reports)
        self.queue.push(self.queue.now + late, self._on_scrape, None)
