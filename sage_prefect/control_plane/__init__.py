"""L1: the scheduler core. Pure and synchronous: events in, actions out; no I/O, no clock.

``events`` is the schema; ``manager.ControlPlaneManager`` the state machine; ``request_classifier``
turns an HTTP request into what the scheduler knows of it; ``ledger`` holds who runs where;
``strategies`` are the policies by name. The gateway drives it with the wall clock, the simulator
with virtual time.
"""

from sage_prefect.common.compiled import prefer_compiled

prefer_compiled(__name__, "sage_prefect._control_plane")
