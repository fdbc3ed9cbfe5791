"""Scenario files: strict keys, near names, and the scenarios that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sage_bench.simulation.assembly import assemble, variants
from sage_bench.simulation.controller import controller_factory
from sage_bench.simulation.experiment_run import run_scenario
from sage_bench.simulation.scenario import PolicySpec
from sage_bench.simulation.scenario_file import (
    find_scenario,
    known_scenarios,
    narrowed,
    parse_scenario,
    read_scenario,
)
from sage_bench.simulation.target_list import TARGETS
from sage_bench.simulation.target_run import scenario_of
from sage_prefect.common.errors import SettingsError, UnknownNameError
from sage_prefect.control_plane.events import Limits


def small(**changes: Any) -> dict[str, Any]:
    return {
        "name": "small",
        "duration_s": 20,
        "warmup_s": 0,
        "engines": [{"name": "llm", "count": 2}],
        "workloads": [{"name": "chat", "arrival": {"process": "poisson", "rate": 2}}],
        "policies": ["fifo"],
        **changes,
    }


def test_the_smallest_scenario_has_sensible_defaults() -> None:
    spec = parse_scenario(small())
    assert [p.label for p in spec.policies] == ["fifo"]
    assert spec.engines[0].profile == "h100-70b"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"duraton_s": 5}, "duraton_s: unknown key. Did you mean 'duration_s'"),
        ({"engines": [{"name": "llm", "max_num_seq": 5}]}, "Did you mean 'max_num_seqs'"),
        ({"engines": [{"kind": "gpu", "name": "llm"}]}, "engines.0"),
        (
            {"workloads": [{"name": "c", "arrival": {"process": "poisson", "rat": 2}}]},
            "arrival.poisson.rat: unknown key. Did you mean 'rate'",
        ),
        (
            {"workloads": [{"name": "c", "arrival": {"process": "poison", "rate": 2}}]},
            "workloads.0.arrival",
        ),
        (
            {"engines": [{"name": "llm", "model": "y"}]},
            "asks for model 'chat', which no engine serves",
        ),
        ({"warmup_s": 30}, "warmup_s 30.0 must be below"),
        ({"policies": ["fifo", "fifo"]}, "two of the policy entries are named 'fifo'"),
        ({"seeds": []}, "seeds"),
        ({"engines": [{"name": "llm", "speed": 0}]}, r"speed: .* \(is 0\)"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        parse_scenario(small(**changes))


def test_files_that_are_no_scenario(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    with pytest.raises(SettingsError, match="cannot read"):
        read_scenario(file)
    file.write_text("a: [1")
    with pytest.raises(SettingsError, match="is not YAML"):
        read_scenario(file)
    file.write_text("- 1")
    with pytest.raises(SettingsError, match="holds a list, not a mapping"):
        read_scenario(file)
    file.write_text(yaml.safe_dump(small()))
    assert read_scenario(file) == parse_scenario(small())
    assert find_scenario(str(file)) == file
    with pytest.raises(UnknownNameError, match="Did you mean 'no-gain'"):
        find_scenario("no-gian")


def test_unknown_policies_are_found_before_anything_runs() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'fifo'"):
        run_scenario(parse_scenario(small(policies=["fifo", "fifi"])), seeds=[0])
    with pytest.raises(SettingsError, match="Did you mean 'latency'"):
        controller_factory("baseline:static_split", Limits(), {"latenzy": 1})


def test_tuning_makes_every_combination() -> None:
    policy = PolicySpec(
        use="baseline:static_split",
        name="split",
        tune={"latency": [1, 2], "max_num_seqs": [8, 16, 32]},
    )
    found = variants(policy)
    assert len(found) == 6
    assert found[0].label == "split (latency=1, max_num_seqs=8)"
    assert (found[0].options, found[0].engines) == ({"latency": 1}, {"max_num_seqs": 8})
    with pytest.raises(SettingsError, match="Did you mean 'max_num_seqs'"):
        variants(PolicySpec(use="fifo", engines={"max_num_sqs": 8}))
    spec = parse_scenario(small(policies=[{"use": "fifo", "engines": {"max_num_seqs": 0}}]))
    with pytest.raises(SettingsError, match="engines of policy 'fifo': max_num_seqs"):
        assemble(spec, variants(spec.policies[0])[0], 0)


def test_narrowing_keeps_the_warm_ups_share() -> None:
    spec = parse_scenario(small(warmup_s=5, policies=["fifo", "least_outstanding"]))
    short = narrowed(spec, ["fifo"], 4.0)
    assert (short.duration_s, short.warmup_s) == (4.0, 1.0)
    assert [p.label for p in short.policies] == ["fifo"]
    with pytest.raises(UnknownNameError, match="policy of scenario small"):
        narrowed(spec, ["lifo"])


@pytest.mark.parametrize("name", known_scenarios())
def test_every_scenario_of_the_package_can_be_built(name: str) -> None:
    spec = read_scenario(known_scenarios()[name])
    assert spec.name == name
    assert spec.about
    factory = controller_factory("fifo", Limits())
    for policy in spec.policies:
        for variant in variants(policy):
            assert assemble(spec, variant, 0, controllers=factory).fleet.nodes


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.number)
def test_every_target_names_what_its_scenarios_have(target: Any) -> None:
    specs = {name: scenario_of(target, name) for name in target.scenarios}
    for claim in target.claims:
        for measure in (claim.measure, claim.over):
            if measure is not None:
                spec = specs[measure.scenario]
                assert measure.policy in [p.label for p in spec.policies]
                names = [w.name for w in spec.workloads]
                assert measure.metric.partition(".")[0] in [*names, "all", "fault0"]


def test_reshaped_scenarios_keep_the_load_per_engine() -> None:
    by_number = {target.number: target for target in TARGETS}
    scale = scenario_of(by_number["8"], "scale/64")
    assert scale.engines[0].count == 64
    assert scale.workloads[0].arrival.rate == pytest.approx(64 * 3)  # type: ignore[union-attr]
    swing = scenario_of(by_number["4"], "mixed-swing/2")
    assert [g.count for g in swing.engines] == [2, 2]
    assert swing.workloads[0].arrival.low == pytest.approx(14.25 / 2)  # type: ignore[union-attr]
