"""cluster.yaml: what is read, and what a mistake in it says."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_prefect.common.errors import SettingsError
from sage_prefect.kernel.resources import Resources
from sage_prefect.platform.cluster_spec import load_cluster_spec, parse_cluster_spec

REPOSITORY = Path(__file__).parents[2]


def test_default_has_one_cpu_and_one_gpu_worker():
    cpu, gpu = load_cluster_spec().pools
    assert (cpu.name, cpu.count, cpu.counters()) == ("cpu", 1, {"CPU": 2.0})
    assert (gpu.name, gpu.count, gpu.counters()) == ("gpu", 1, {"GPU": 1.0})
    assert Resources(gpu=1).fits(gpu.counters())
    assert not Resources(gpu=1).fits(cpu.counters())


def test_packaged_default_is_the_one_in_deployments():
    packaged = REPOSITORY / "sage_prefect" / "platform" / "cluster.yaml"
    assert packaged.read_text() == (REPOSITORY / "deployments" / "cluster.yaml").read_text()


def test_all_keys(tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text(
        """
        pools:
          big:
            count: 3
            nthreads: 4
            resources: {CPU: 4, gpu: 0.5}
            labels: [fast-disk, eu]
            memory: 2GiB
            env: {LEVEL: 3}
          none: {count: 0}
        """
    )
    spec = load_cluster_spec(file)
    pool = spec.pools[0]
    assert spec.workers == 3
    assert pool.memory == 2 << 30
    assert pool.env == {"LEVEL": "3"}
    assert Resources(cpu=4, gpu=0.5, memory="2GiB", labels=("eu",)).fits(pool.counters())
    assert not Resources(labels=("us",)).fits(pool.counters())


def test_memory_of_the_machine_is_offered_where_the_pool_says_nothing():
    pool = parse_cluster_spec("pools: {a: {memory: auto}}").pools[0]
    assert pool.counters(memory=10**9) == {"MEMORY": 1e9}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pools: {a: {cuont: 2}}", ["'pools.a.cuont'", "Did you mean 'count'"]),
        ("pool: {}", ["'pool'", "Did you mean 'pools'"]),
        ("pools: {a: {resources: {gpus: 1}}}", ["'pools.a.resources.gpus'", "'gpu'"]),
        ("pools: {a: {count: -1}}", ["pools.a.count is -1", "0 or more"]),
        ("pools: {a: {count: true}}", ["pools.a.count is True"]),
        ("pools: {a: {nthreads: 0}}", ["pools.a.nthreads is 0", "1 or more"]),
        ("pools: {a: {resources: {cpu: much}}}", ["pools.a.resources.cpu is 'much'"]),
        ("pools: {a: {resources: {cpu: .nan}}}", ["pools.a.resources.cpu is nan"]),
        ("pools: {a: {memory: 2 bananas}}", ["pools.a.memory is '2 bananas'", "4GiB"]),
        ("pools: {a: {labels: x}}", ["pools.a.labels is 'x'", "a list"]),
        ("pools: {a: {env: {X: [1]}}}", ["pools.a.env.X is [1]"]),
        ("pools: {a: 3}", ["pools.a is 3", "a mapping"]),
        ("pools: {'a b': {}}", ["pool name 'a b'"]),
        ("pools: {}", ["has no pools"]),
        ("pools: {a: {count: 0}}", ["has no workers"]),
        ("[1]", ["the file is [1]"]),
        ("{", ["is not YAML"]),
    ],
)
def test_mistakes_are_named(text, words):
    with pytest.raises(SettingsError) as caught:
        parse_cluster_spec(text, "my.yaml")
    for word in ["my.yaml", *words]:
        assert word in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(SettingsError, match="cannot read cluster file"):
        load_cluster_spec(tmp_path / "none.yaml")


@given(st.text(max_size=200))
def test_any_text_parses_or_is_a_settings_error(text):
    with contextlib.suppress(SettingsError):
        parse_cluster_spec(text)
