"""``session``: a session stays on its engine."""

from __future__ import annotations

from collections import OrderedDict
from random import Random

from sage_prefect.control_plane.ledger import EngineEntry, Ledger
from sage_prefect.control_plane.scheduled_request import ScheduledRequest
from sage_prefect.control_plane.strategies.least_outstanding import LeastOutstandingPolicy

_REMEMBERED = 100_000


class SessionPolicy(LeastOutstandingPolicy):
    """Requests with ``x-session-id`` go to the engine of the session's last request while it has
    room; the others, and first ones, to the least loaded."""

    name = "session"

    def __init__(self, ledger: Ledger, rng: Random) -> None:
        super().__init__(ledger, rng)
        self._homes: OrderedDict[tuple[str, str], str] = OrderedDict()

    def place(self, request: ScheduledRequest) -> EngineEntry | None:
        session = request.info.session
        if session is None:
            return super().place(request)
        key = (request.info.tenant, session)
        home = self.ledger.pool(request.info.model).get(self._homes.get(key, ""))
        if home is None or home.room < 1 or home.name in request.tried:
            home = super().place(request)
        if home is not None:
            self._homes[key] = home.name
            self._homes.move_to_end(key)
            if len(self._homes) > _REMEMBERED:
                self._homes.popitem(last=False)
        return home
