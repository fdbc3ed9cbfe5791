"""A manifest with a field missing is refused, whichever it is."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from sage_bench.machine import CpuTicks, describe_hardware, load_between
from sage_bench.manifest import Manifest, config_hash, validate
from sage_bench.software import (
    describe_checkout,
    describe_software,
    installed_packages,
    packages_text,
    sha256_of,
)
from sage_prefect.common.errors import CorruptFileError

HASH = "0" * 64


@pytest.fixture(scope="module")
def surroundings() -> dict[str, Any]:
    """Real hardware and software; reading all packages takes a moment."""
    return {
        "hardware": describe_hardware(Path.cwd()),
        "software": describe_software(installed_packages()),
    }


@pytest.fixture
def manifest(surroundings: dict[str, Any]) -> dict[str, Any]:
    """A complete one, with this machine's real hardware and software."""
    load = {"own_percent": 1.0, "others_percent": 2.0, "steal_percent": 0.0}
    return {
        "schema_version": 1,
        "uid": "20261121T000000Z-abcdef",
        "exp": "imports",
        "number": "-",
        "title": "t",
        "status": "complete",
        "claims": ["c"],
        "expectation": "none",
        "git": {"commit": "not a checkout", "dirty": None},
        "sage_version": "0",
        "command": ["sage", "bench"],
        "options": {},
        "seed": 0,
        "started_at": "2026-11-21T00:00:00+00:00",
        "ended_at": "2026-11-21T00:00:01+00:00",
        "duration_s": 1.0,
        **surroundings,
        "load": {**load, "load_average_at_start": 0.5},
        "backend_kind": "real",
        "systems": [
            {
                "case": "",
                "name": "a",
                "role": "peer",
                "version": "1",
                "config": {},
                "config_sha256": HASH,
            }
        ],
        "models": [
            {
                "name": "m",
                "package": "p==1",
                "sha256": HASH,
                "quantisation": "none",
                "tokenizer_sha256": HASH,
            }
        ],
        "workload": {
            "dataset": "d",
            "dataset_sha256": HASH,
            "items": 1,
            "sizes": {},
            "arrival": "closed loop",
            "mix": "one",
            "tenants": "none",
        },
        "warmup": {"rounds": 1},
        "rounds": 5,
        "order": "ABBA",
        "pause_s": 0.0,
        "slo": {},
        "raw_files": ["measurements.jsonl"],
    }


def test_complete(manifest: dict[str, Any]) -> None:
    assert validate(manifest).hardware.cores_logical >= 1


@pytest.mark.parametrize("field", sorted(Manifest.model_fields))
def test_each_missing_field_is_named(manifest: dict[str, Any], field: str) -> None:
    del manifest[field]
    with pytest.raises(CorruptFileError, match=field):
        validate(manifest)


@pytest.mark.parametrize("part", ["hardware", "software", "workload", "load", "git"])
def test_each_missing_field_of_a_part_is_named(manifest: dict[str, Any], part: str) -> None:
    for field in list(manifest[part]):
        whole = {**manifest, part: {k: v for k, v in manifest[part].items() if k != field}}
        if (part, field) == ("git", "changed_files"):
            continue
        with pytest.raises(CorruptFileError, match=rf"{part}.*{field}"):
            validate(whole)


@pytest.mark.parametrize("field", ["ended_at", "duration_s", "load"])
def test_only_a_running_manifest_may_lack_its_end(manifest: dict[str, Any], field: str) -> None:
    manifest[field] = None
    with pytest.raises(CorruptFileError, match=field):
        validate(manifest)
    assert validate({**manifest, "status": "running"}).status == "running"


def test_unknown_fields_versions_and_kinds_are_refused(manifest: dict[str, Any]) -> None:
    with pytest.raises(CorruptFileError, match="surprise"):
        validate({**manifest, "surprise": 1})
    with pytest.raises(CorruptFileError, match="schema_version 2"):
        validate({**manifest, "schema_version": 2})
    with pytest.raises(CorruptFileError, match="backend_kind"):
        validate({**manifest, "backend_kind": "pretended"})
    with pytest.raises(CorruptFileError, match="systems"):
        validate({**manifest, "systems": []})


def test_config_hash_ignores_the_order_of_keys() -> None:
    assert config_hash({"a": 1, "b": [1, 2]}) == config_hash({"b": [1, 2], "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2})


def test_load_shares_out_the_cores() -> None:
    load = load_between(CpuTicks(10, 100, 1), CpuTicks(16, 102, 3), own_cpu_s=4.0)
    assert load == {"own_percent": 40.0, "others_percent": 20.0, "steal_percent": 20.0}
    nothing = CpuTicks(1, 1, 1)
    assert set(load_between(nothing, nothing, 1.0).values()) == {0.0}


def test_packages_and_their_hash() -> None:
    packages = installed_packages()
    assert any(package.startswith("numpy==") for package in packages)
    assert packages_text(["a==1", "b==2"]) == b"a==1\nb==2\n"
    assert describe_software(packages)["key_packages"]["numpy"]


def test_state_of_the_checkout(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text("x = 1\n")
    outside = {"commit": "not a checkout", "dirty": None}
    assert describe_checkout(file) == outside

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(
            ["git", *identity, "-C", str(tmp_path), *arguments], check=True, capture_output=True
        )

    git("init")
    (tmp_path / "other.txt").write_text("")
    git("add", "other.txt")
    git("commit", "-m", "other")
    # The checkout around an installed package is not its own.
    assert describe_checkout(file) == outside
    git("add", "module.py")
    git("commit", "-m", "module")
    clean = describe_checkout(file)
    assert (len(clean["commit"]), clean["dirty"], clean["changed_files"]) == (40, False, 0)
    file.write_text("x = 2\n")
    changed = describe_checkout(file)
    assert (changed["commit"], changed["dirty"]) == (clean["commit"], True)


def test_sha256_of_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a" / "x").startswith("ba7816bf")
    before = sha256_of(tmp_path / "a")
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    assert sha256_of(tmp_path / "a") != before
