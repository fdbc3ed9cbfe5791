"""Client configuration and the search for a server."""

from __future__ import annotations

import pickle
import stat
from pathlib import Path

import pytest

from sage_prefect.common.errors import SettingsError
from sage_prefect.common.keys import ensure_master_key
from sage_prefect.inference import discovery
from sage_prefect.inference.config import ClientConfig, is_loopback, normalize_url, server_root


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://h:1", "http://h:1/v1"),
        ("http://h:1/", "http://h:1/v1"),
        ("http://h:1/v1/", "http://h:1/v1"),
        ("https://h/api/v2", "https://h/api/v2"),
        ("https://h/openai", "https://h/openai/v1"),
        ("https://h/v1beta", "https://h/v1beta"),
    ],
)
def test_urls(given: str, expected: str) -> None:
    assert normalize_url(given) == expected


@pytest.mark.parametrize("url", ["", "localhost:8888", "ftp://h", "http://"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(SettingsError, match="not the URL"):
        normalize_url(url)


def test_loopback() -> None:
    assert is_loopback("http://127.0.0.1:8888/v1")
    assert is_loopback("http://[::1]:1")
    assert is_loopback("http://localhost")
    assert not is_loopback("http://127.0.0.1.example.com")
    assert not is_loopback("http://10.0.0.1")
    assert server_root("http://h:1/v1") == "http://h:1"


def test_config_travels_but_never_shows_its_key() -> None:
    config = ClientConfig("http://h:1", api_key="sk-secret")
    assert "sk-secret" not in repr(config)
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    "options", [{"timeout_s": 0}, {"retries": -1}, {"embed_texts": 0}, {"connect_timeout_s": -1}]
)
def test_bad_options(options: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match=next(iter(options))):
        ClientConfig("http://h", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["sk-\n", "schlüssel", "a\x00"])
def test_a_key_that_no_header_carries_is_not_shown(key: str) -> None:
    with pytest.raises(SettingsError, match="header cannot carry") as caught:
        ClientConfig("http://h", api_key=key)
    assert key not in str(caught.value)


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert discovery.configure(None, None, None) is None
    monkeypatch.setenv("SAGE_BASE_URL", "http://h:1")
    monkeypatch.setenv("SAGE_API_KEY", "k")
    monkeypatch.setenv("SAGE_REQUEST_TIMEOUT", "7.5")
    config = discovery.configure(None, None, None, retries=1)
    assert config == ClientConfig("http://h:1", api_key="k", timeout_s=7.5, retries=1)
    explicit = discovery.configure("http://other", "mine", 3.0)
    assert explicit == ClientConfig("http://other", api_key="mine", timeout_s=3.0)


@pytest.mark.parametrize("value", ["soon", "-1", "0", "inf", "nan"])
def test_bad_timeout(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGE_REQUEST_TIMEOUT", value)
    with pytest.raises(SettingsError, match="SAGE_REQUEST_TIMEOUT"):
        discovery.configure("http://h", None, None)


def test_master_key_stays_on_this_machine(sage_home: Path) -> None:
    key = ensure_master_key()
    (file,) = sage_home.rglob("master.key")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    here = discovery.configure("http://127.0.0.1:8888", None, None)
    there = discovery.configure("http://gateway.example.com", None, None)
    assert here is not None
    assert here.api_key == key
    assert there is not None
    assert there.api_key is None
