"""Each fuzz target holds for its seeds, for what once broke it, and for mutations of both."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

_FILE = Path(__file__).with_name("fuzz.py")
_SPEC = importlib.util.spec_from_file_location("sage_fuzz", _FILE)
assert _SPEC is not None
assert _SPEC.loader is not None
fuzz: ModuleType = importlib.util.module_from_spec(_SPEC)
sys.modules["sage_fuzz"] = fuzz
_SPEC.loader.exec_module(fuzz)


@pytest.fixture(scope="module", autouse=True)
def _loop_ends() -> Iterator[None]:
    fuzz.loop()  # not what a test leaves behind
    yield
    fuzz.loop().close()
    fuzz._loop.clear()


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_target_holds(name: str) -> None:
    seeds = (*fuzz.SEEDS[name], *fuzz.kept(name))
    for data in (*seeds, *fuzz.mutated(random.Random(name), seeds, 1500)):
        try:
            fuzz.TARGETS[name](data)
        except Exception as error:
            error.add_note(f"input: {data!r}")
            raise


def test_the_oracle_of_streams_sees_a_lost_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    def lossy(family: int, parts: list[bytes]) -> object:
        found, out, rest, refused = original(family, parts)
        return found, out[:-1] if len(parts) > 1 else out, rest, refused

    original = fuzz.relayed
    monkeypatch.setattr(fuzz, "relayed", lossy)
    with pytest.raises(AssertionError, match="the cut changes"):
        fuzz.streams(fuzz.SEEDS["streams"][0])
