from __future__ import annotations

import pytest

from sage_gateway.auth import KeyRing
from sage_gateway.config import GatewayConfig, TenantConfig
from sage_gateway.errors import HttpError
from sage_gateway.server import is_loopback, make_key_ring
from sage_prefect.common.errors import SettingsError
from sage_prefect.control_plane.events import Band

TENANT = TenantConfig("search", "tenant-key", bands=(Band.STANDARD, Band.BATCH))


def bearer(key: str) -> dict[bytes, bytes]:
    return {b"authorization": f"Bearer {key}".encode()}


def test_callers() -> None:
    ring = KeyRing("master", [TENANT])
    master, tenant = ring.caller(bearer("master")), ring.caller(bearer("tenant-key"))
    assert master.may_manage
    assert not tenant.may_manage
    assert tenant.entitlement.tenant == "search"
    assert tenant.entitlement.highest is Band.STANDARD
    assert ring.caller({b"authorization": b"bearer  master "}) is master


@pytest.mark.parametrize(
    "headers", [{}, bearer(""), bearer("maste"), bearer("masterx"), {b"authorization": b"Basic x"}]
)
def test_wrong_keys(headers: dict[bytes, bytes]) -> None:
    with pytest.raises(HttpError) as caught:
        KeyRing("master", [TENANT]).caller(headers)
    assert caught.value.status == 401
    assert "maste" not in caught.value.message


def test_no_key_is_kept_in_clear() -> None:
    ring = KeyRing("master-secret", [TENANT])
    # Not vars(): compiled objects have no __dict__.
    held = repr([getattr(ring, name) for name in dir(ring) if not name.startswith("__")])
    assert "_by_prefix" in dir(ring)
    assert "master-secret" not in held
    assert "tenant-key" not in held


def test_a_tenant_with_the_master_key() -> None:
    with pytest.raises(SettingsError, match="master key"):
        KeyRing("tenant-key", [TENANT])


def test_where_the_master_key_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="no master key"):
        make_key_ring(GatewayConfig(), "127.0.0.1", no_auth=False)
    monkeypatch.setenv("SAGE_MASTER_KEY", "from-environment")
    ring = make_key_ring(GatewayConfig(), "127.0.0.1", no_auth=False)
    assert ring.caller(bearer("from-environment")).may_manage
    configured = make_key_ring(GatewayConfig(master_key="own"), "0.0.0.0", no_auth=False)
    assert configured.caller(bearer("own")).may_manage
    with pytest.raises(HttpError):
        configured.caller(bearer("from-environment"))


def test_no_auth_only_on_loopback() -> None:
    assert make_key_ring(GatewayConfig(), "127.0.0.1", no_auth=True).manager({}).may_manage
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(SettingsError, match="--no-auth"):
            make_key_ring(GatewayConfig(), host, no_auth=True)
    assert is_loopback("localhost")
    assert is_loopback("::1")
