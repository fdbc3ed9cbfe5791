"""The endpoints registry: publish, look up, withdraw, from several processes at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sage_prefect.common import endpoints


def test_publish_look_up_withdraw() -> None:
    assert endpoints.read_all() == {}
    assert endpoints.lookup("gateway") is None
    endpoints.publish("gateway", "http://127.0.0.1:8889")
    endpoints.publish("prefect", "http://127.0.0.1:4200/api")
    assert endpoints.lookup("gateway") == "http://127.0.0.1:8889"
    endpoints.publish("gateway", "http://127.0.0.1:8890")
    assert endpoints.lookup("gateway") == "http://127.0.0.1:8890"
    endpoints.withdraw("gateway")
    endpoints.withdraw("nobody")
    assert endpoints.read_all() == {"prefect": "http://127.0.0.1:4200/api"}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_damaged_registry_is_an_empty_one_and_heals(content: bytes) -> None:
    endpoints.endpoints_file().parent.mkdir(parents=True)
    endpoints.endpoints_file().write_bytes(content)
    assert endpoints.read_all() == {}
    endpoints.publish("dask", "tcp://127.0.0.1:8786")
    assert endpoints.read_all() == {"dask": "tcp://127.0.0.1:8786"}


def test_processes_that_publish_together_lose_nothing() -> None:
    code = (
        "import sys\nfrom sage_prefect.common import endpoints\n"
        "for i in range(25): endpoints.publish(f'{sys.argv[1]}-{i}', 'http://x')"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(n)]) for n in range(4)]
    assert [writer.wait(timeout=60) for writer in writers] == [0] * 4
    assert len(endpoints.read_all()) == 100
