"""Which Prefect server this process talks to. Imports no Prefect: its settings are read once."""

from __future__ import annotations

import os
import sys

from sage_prefect.common.errors import ServiceError
from sage_prefect.orchestration.services import connect_env

_VARIABLE = "PREFECT_API_URL"


def use_server() -> None:
    """Point Prefect at the server of ``sage up``, unless ``PREFECT_API_URL`` says otherwise.

    Without either, Prefect's implicit server is switched off, so that a run fails at once instead
    of starting one server per process.

    Raises:
        ServiceError: Prefect was imported before and knows of no server.
    """
    if os.environ.get(_VARIABLE):
        return
    try:
        env = connect_env()
    except ServiceError:
        env = {"PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false"}
    if "prefect" not in sys.modules:
        os.environ.update(env)
        return
    from prefect.settings import get_current_settings

    if get_current_settings().api.url is None and _VARIABLE in env:
        raise ServiceError(
            "Prefect was imported before it was told its server.",
            hint='Run `eval "$(sage env)"` first, or set PREFECT_API_URL.',
        )


def require_server() -> None:
    """Raise unless Prefect knows a server.

    Raises:
        ServiceError: says how to get one.
    """
    use_server()
    from prefect.settings import get_current_settings

    if get_current_settings().api.url is None:
        raise ServiceError(
            "no Prefect server runs.", hint="Start one with `sage up`, or set PREFECT_API_URL."
        )
