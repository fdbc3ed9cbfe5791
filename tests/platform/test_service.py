"""Specs: what they refuse, how placeholders are filled, how restarts are spaced."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sage_prefect.common.errors import ServiceError
from sage_prefect.common.ports import SagePorts
from sage_prefect.platform.service import (
    EngineRegistration,
    PortClaim,
    Probe,
    RestartPolicy,
    ServedModel,
    ServiceSpec,
    fill_placeholders,
)


def test_filled_everywhere() -> None:
    spec = ServiceSpec(
        name="llm",
        command=("serve", "--port", "{port}", "--other", "{port.admin}", '{"json": 1}'),
        env={"URL": "{endpoint.prefect}/api"},
        ports=(PortClaim(), PortClaim(name="admin")),
        ready=Probe(kind="http", target="http://127.0.0.1:{port.admin}/health"),
        engine=EngineRegistration(
            base_url="http://127.0.0.1:{port}/v1",
            models=(ServedModel(name="m", mode="chat"),),
            driver="d",
        ),
    )
    filled = spec.filled({"http": 1, "admin": 2}, {"prefect": "http://p"})
    assert filled.command == ("serve", "--port", "1", "--other", "2", '{"json": 1}')
    assert filled.env == {"URL": "http://p/api"}
    assert filled.ready is not None
    assert filled.ready.target == "http://127.0.0.1:2/health"
    assert filled.engine is not None
    assert filled.engine.base_url == "http://127.0.0.1:1/v1"
    assert filled.endpoints == {"llm": "http://127.0.0.1:1"}


def test_an_engine_names_the_gpu_that_it_has() -> None:
    engine = EngineRegistration(base_url="http://h:1/v1", models=(), driver="d")
    assert engine.on("h", []).accelerator is None
    assert engine.on("h", [0, 1]).accelerator is None
    placed = engine.on("h", [1])
    assert placed.accelerator == "h/gpu1"
    assert placed.on("h", [0]) == placed


@pytest.mark.parametrize("text", ["{port}", "{port.admin}", "{endpoint.prefect}"])
def test_unknown_placeholder_names_itself(text: str) -> None:
    with pytest.raises(ServiceError, match="which is not known") as caught:
        fill_placeholders(text, "llm", {}, {})
    assert text in caught.value.message


@given(st.text(alphabet=st.characters(blacklist_characters="{}")))
def test_text_without_braces_is_untouched(text: str) -> None:
    assert fill_placeholders(text, "x", {"http": 1}, {}) == text


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "../escape"},
        {"name": ""},
        {"name": "x", "command": (), "ready": None},
        {"name": "x", "after": ("x",)},
        {"name": "x", "ports": (PortClaim(), PortClaim())},
        {"name": "x", "start_timeout_s": 0},
        {"name": "x", "unknown_field": 1},
    ],
)
def test_wrong_specs_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ServiceSpec.model_validate({"command": ("true",), **wrong})


def test_unknown_port_row() -> None:
    with pytest.raises(ValidationError, match="no row 'NOPE'"):
        PortClaim(row="NOPE")


def test_environment_counts_as_explicit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGE_PORT_LLM", "4711")
    assert PortClaim.of(SagePorts.LLM).explicit == 4711
    assert PortClaim.of(SagePorts.LLM, 4712).explicit == 4712


def test_spec_survives_json() -> None:
    spec = ServiceSpec(
        name="web",
        command=("true",),
        ports=(PortClaim(explicit=80),),
        ready=Probe(kind="tcp", target="127.0.0.1:{port}"),
    )
    assert ServiceSpec.model_validate(spec.model_dump(mode="json")) == spec


@given(first=st.floats(0.01, 10), most=st.floats(0.01, 100), count=st.integers(1, 40))
def test_delays_grow_and_are_bounded(first: float, most: float, count: int) -> None:
    policy = RestartPolicy(first_delay_s=first, max_delay_s=most)
    assert policy.delay_s(count) <= policy.delay_s(count + 1) <= most
