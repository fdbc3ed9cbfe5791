"""A cluster.yaml becomes nannies: names, resources, devices, environment."""

from __future__ import annotations

import pytest

from sage_prefect.common.errors import ClusterError
from sage_prefect.orchestration.clusters import worker_specs
from sage_prefect.platform.cluster_spec import load_cluster_spec, parse_cluster_spec

SERVER = {"PREFECT_API_URL": "http://127.0.0.1:4200/api"}
GPUS = """
pools:
  cpu: {count: 2, nthreads: 3, resources: {cpu: 3}, memory: 1GiB}
  gpu: {count: 3, resources: {gpu: 1}, labels: [big]}
  pair: {count: 1, resources: {gpu: 2}, env: {CUDA_VISIBLE_DEVICES: "7"}}
"""


def specs(text: str | None = None, devices: list[int] | None = None):
    spec = parse_cluster_spec(text) if text else load_cluster_spec()
    return worker_specs(spec, devices=devices or [], machine_memory=6 << 30, environ=SERVER)


def test_default_cluster_without_gpus():
    made = specs()
    assert list(made) == ["cpu-0", "gpu-0"]
    assert made["cpu-0"]["resources"] == {"CPU": 2.0, "MEMORY": 3 << 30}
    assert made["gpu-0"]["resources"] == {"GPU": 1.0, "MEMORY": 3 << 30}
    assert made["gpu-0"]["env"]["CUDA_VISIBLE_DEVICES"] == ""


def test_everything_listens_on_loopback_and_knows_its_server():
    for options in specs(GPUS).values():
        assert options["host"] == "127.0.0.1"
        assert options["dashboard_address"].startswith("127.0.0.1:")
        assert options["env"]["PREFECT_API_URL"] == SERVER["PREFECT_API_URL"]
        assert options["env"]["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] == "false"
        assert options["env"]["OMP_NUM_THREADS"] == "1"


def test_gpu_workers_see_one_device_each_going_round():
    made = specs(GPUS, devices=[0, 1])
    seen = {name: options["env"]["CUDA_VISIBLE_DEVICES"] for name, options in made.items()}
    assert seen == {
        "cpu-0": "",
        "cpu-1": "",
        "gpu-0": "0",
        "gpu-1": "1",
        "gpu-2": "0",
        "pair-0": "7",  # the pool's own word counts
    }
    assert made["gpu-0"]["resources"]["label:big"] > 1000


def test_memory_limits():
    made = specs(GPUS)
    assert made["cpu-0"]["memory_limit"] == made["cpu-0"]["resources"]["MEMORY"] == 1 << 30
    assert made["gpu-0"]["memory_limit"] == 1 << 30  # 6 GiB among six


def test_without_a_prefect_server_there_are_no_workers():
    with pytest.raises(ClusterError, match="PREFECT_API_URL"):
        worker_specs(load_cluster_spec(), devices=[], machine_memory=1, environ={})
