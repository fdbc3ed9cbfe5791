"""Commands where nothing runs, and what ``sage up`` would start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from sage_prefect.cli import main as cli
from sage_prefect.cli.stack import addresses, gateway_spec, stack_specs
from sage_prefect.common import endpoints
from sage_prefect.common.keys import key_file
from sage_prefect.common.settings import load_settings


def test_status_of_nothing(capsys):
    assert cli.run(["status"]) == 1
    assert "nothing runs" in capsys.readouterr().out


def test_status_as_json(capsys):
    assert cli.run(["status", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"supervisor": "stopped", "services": []}


def test_down_of_nothing(capsys):
    assert cli.run(["down"]) == 0
    assert "nothing runs" in capsys.readouterr().out


def test_down_of_a_named_service_when_nothing_runs(capsys):
    assert cli.run(["down", "gateway"]) == 1
    assert "no supervisor runs" in capsys.readouterr().err


def test_logs_of_an_unknown_service(capsys):
    assert cli.run(["logs", "gatway"]) == 1
    assert "'gatway' has no log" in capsys.readouterr().err


def test_env_needs_a_prefect_server(capsys):
    assert cli.run(["env"]) == 1
    assert "no Prefect server runs" in capsys.readouterr().err


def test_env_never_prints_the_key(capsys, sage_home):
    endpoints.publish("prefect", "http://127.0.0.1:4200/api")
    endpoints.publish("gateway", "http://127.0.0.1:8889")
    gateway_spec(load_settings())
    assert cli.run(["env"]) == 0
    shown = capsys.readouterr().out
    assert "export PREFECT_API_URL=http://127.0.0.1:4200/api" in shown
    assert "export OPENAI_BASE_URL=http://127.0.0.1:8889/v1" in shown
    assert key_file().read_text().strip() not in shown


def test_the_stack_is_on_loopback(sage_home):
    specs = stack_specs(load_settings(), worker=True)
    kinds = [spec.kind for spec in specs]
    assert sorted(set(kinds)) == ["dask", "engine", "gateway", "prefect"]
    assert all(claim.host == "127.0.0.1" for spec in specs for claim in spec.ports)
    assert not any("0.0.0.0" in part for spec in specs for part in spec.command)


def test_what_exists_elsewhere_is_not_started(sage_home):
    settings = load_settings(
        {
            "prefect": {"api_url": "http://10.0.0.1:4200/api"},
            "cluster": {"address": "tcp://10.0.0.1:8786"},
        }
    )
    assert {spec.kind for spec in stack_specs(settings)} == {"engine", "gateway"}


def test_generated_gateway_config_carries_the_policy(sage_home):
    spec = gateway_spec(load_settings({"gateway": {"policy": "least_outstanding"}}))
    config = spec.command[spec.command.index("--config") + 1]
    content = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    assert content["router_settings"] == {"routing_strategy": "least_outstanding"}


def test_the_gateway_records_on_wish(sage_home, monkeypatch, tmp_path):
    assert "--record" not in gateway_spec(load_settings()).command
    monkeypatch.setenv("SAGE_GATEWAY__RECORD", str(tmp_path / "events.jsonl"))
    command = gateway_spec(load_settings()).command
    assert command[command.index("--record") + 1] == str(tmp_path / "events.jsonl")


@pytest.mark.parametrize("url", ["http://127.0.0.1:4200/api", "http://127.0.0.1:4200/api/"])
def test_addresses(sage_home, url):
    endpoints.publish("prefect", url)
    assert addresses() == {"Prefect UI": "http://127.0.0.1:4200"}
