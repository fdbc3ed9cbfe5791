"""Prefect, Dask and worker as services: what is started, with which environment."""

from __future__ import annotations

import pytest

from sage_prefect.common import endpoints
from sage_prefect.common.errors import ServiceError
from sage_prefect.common.settings import load_settings
from sage_prefect.orchestration import services

PORTS = {"http": 4200, "scheduler": 8786, "dashboard": 8787, "health": 9000}
ENDPOINTS = {"prefect": "http://127.0.0.1:4200/api"}


@pytest.mark.parametrize(
    "spec", [services.prefect_server(), services.dask_cluster(), services.prefect_worker()]
)
def test_all_placeholders_can_be_filled(spec):
    ports = {claim.name: PORTS[claim.name] for claim in spec.ports}
    filled = spec.filled(ports, ENDPOINTS)
    texts = [*filled.command, *filled.env.values(), *filled.endpoints.values()]
    assert not [text for text in texts if "{port" in text or "{endpoint" in text]
    assert filled.env["PREFECT_API_URL"] == ENDPOINTS["prefect"]
    assert filled.env["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] == "false"
    assert filled.env["DO_NOT_TRACK"] == "1"


def test_server_and_cluster_publish_what_others_look_up():
    server = services.prefect_server().filled({"http": 4201}, {})
    assert server.endpoints == {"prefect": "http://127.0.0.1:4201/api"}
    assert "127.0.0.1" in server.command
    cluster = services.dask_cluster().filled(PORTS, ENDPOINTS)
    assert cluster.endpoints == {
        "dask": "tcp://127.0.0.1:8786",
        "dask-dashboard": "http://127.0.0.1:8787/status",
    }
    assert cluster.after == ("prefect",)


def test_an_existing_server_is_not_waited_for(tmp_path):
    file = tmp_path / "cluster.yaml"
    cluster = services.dask_cluster(file, api_url="http://elsewhere/api")
    assert cluster.after == ()
    assert cluster.env["PREFECT_API_URL"] == "http://elsewhere/api"
    assert str(file) in cluster.command


def test_own_prefect_home(sage_home):
    home = services.prefect_server().env["PREFECT_HOME"]
    assert home == str(sage_home / "data" / "prefect")
    assert (sage_home / "data" / "prefect").is_dir()


def test_connect_env_finds_settings_then_the_running_server():
    with pytest.raises(ServiceError, match="sage up"):
        services.connect_env()
    endpoints.publish("prefect", "http://127.0.0.1:4207/api")
    assert services.connect_env()["PREFECT_API_URL"] == "http://127.0.0.1:4207/api"
    settings = load_settings({"prefect": {"api_url": "http://elsewhere/api"}})
    assert services.connect_env(settings)["PREFECT_API_URL"] == "http://elsewhere/api"


def test_dask_address():
    assert services.dask_address() is None
    endpoints.publish("dask", "tcp://127.0.0.1:8799")
    assert services.dask_address() == "tcp://127.0.0.1:8799"
    settings = load_settings({"cluster": {"address": "tcp://far:1"}})
    assert services.dask_address(settings) == "tcp://far:1"
