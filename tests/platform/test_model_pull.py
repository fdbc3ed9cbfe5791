"""``sage models pull``: packages, the hub, and a hub that is not there."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sage_prefect.common.errors import MissingDependencyError
from sage_prefect.platform import models
from sage_prefect.platform.model_pull import pull


def test_what_is_here_is_only_checked(home: Path) -> None:
    said: list[str] = []
    assert pull("smollm2-135m", said.append).mode == "chat"
    assert "checksum right" in said[-1]
    path = str(models.resolve("smollm2-135m").path)
    assert str(pull(path, said.append).path) == path
    assert "here already" in said[-1]


def test_hub_out_of_reach(home: Path, unused_port: int) -> None:
    # huggingface_hub reads its address once, at import: ask in a process of its own.
    code = (
        "from sage_prefect.platform.model_pull import pull\n"
        "from sage_prefect.common.errors import ModelNotFoundError\n"
        "try:\n    pull('org/name', print)\n"
        "except ModelNotFoundError as error:\n    print('REFUSED', error)\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{unused_port}"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "REFUSED cannot pull 'org/name' from the hub" in done.stdout, done.stderr
    assert "the default models need no hub" in done.stdout
    assert models.pulled_names() == ()


def test_hub_client_missing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "huggingface_hub" else real(name),
    )
    with pytest.raises(MissingDependencyError, match="huggingface_hub"):
        pull("org/name", print)
