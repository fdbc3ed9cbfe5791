"""What a live gateway makes of requests, for the simulated one: the same classifier reads the very
bodies and headers that go over the wire."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from sage_bench.load.open_loop import Arrival
from sage_bench.workloads.client_request import ClientRequest
from sage_prefect.control_plane.events import RequestInfo
from sage_prefect.control_plane.request_classifier import Entitlement, RequestClassifier


class WireFacts:
    """Describes requests to the control plane as the gateway does.

    Args:
        arrivals: what goes over the wire, in the order in which the simulation asks.
    """

    def __init__(self, arrivals: Sequence[Arrival]) -> None:
        self._arrivals = arrivals
        self._classifier = RequestClassifier()
        self._infos: dict[ClientRequest, RequestInfo] = {}

    def describe(self, request_id: str, request: ClientRequest, now: float) -> RequestInfo:
        """The request as the gateway sees it at ``now``; ``request_id`` is its number."""
        at, sent = self._arrivals[int(request_id)]
        if at != request.at:
            raise RuntimeError(f"request {request_id} is another on the wire. This is a bug.")
        headers = dict(sent.headers)
        info = self._infos[request] = self._classifier.classify(
            request_id=request_id,
            kind="chat",
            body=orjson.loads(sent.body),
            body_bytes=len(sent.body),
            now=now,
            entitlement=Entitlement(),
            band=headers.get("x-sage-band"),
            ttft_slo_ms=headers.get("x-slo-ttft-ms"),
            tpot_slo_ms=headers.get("x-slo-tpot-ms"),
        )
        return info

    def learn(self, request: ClientRequest) -> None:
        """A request's usage has come."""
        info = self._infos.pop(request)
        self._classifier.learn(info, request.prompt, request.output)
