"""Which Prefect server a process talks to; in processes of their own, because Prefect reads its
settings when it is imported."""

from __future__ import annotations

import os
import subprocess
import sys

from sage_prefect.common import endpoints

SHOW = """
from prefect.settings import get_current_settings as settings
print(settings().api.url, settings().server.ephemeral.enabled)
"""


def run(code: str, **env: str) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    return (done.stdout + done.stderr).strip()


USE = "from sage_prefect.orchestration.connection import use_server; use_server()"
REQUIRE = "from sage_prefect.orchestration.connection import require_server; require_server()"


def test_running_server_is_used():
    endpoints.publish("prefect", "http://127.0.0.1:4207/api")
    assert run(USE + SHOW) == "http://127.0.0.1:4207/api False"


def test_own_choice_counts():
    endpoints.publish("prefect", "http://127.0.0.1:4207/api")
    assert run(USE + SHOW, PREFECT_API_URL="http://mine/api").startswith("http://mine/api")


def test_without_any_server_prefect_must_not_start_one():
    assert run(USE + SHOW) == "None False"
    assert "no Prefect server runs. Start one with `sage up`" in run(REQUIRE)


def test_too_late_is_said():
    endpoints.publish("prefect", "http://127.0.0.1:4207/api")
    assert 'eval "$(sage env)"' in run("import prefect\n" + USE)
