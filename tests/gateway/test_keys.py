"""Keys and tenants at run time: the ring, the directory, the API, limits on the wire."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from sage_gateway.auth import KeyRing
from sage_gateway.config import TenantConfig
from sage_gateway.config_tenants import KeyStoreConfig
from sage_gateway.errors import HttpError
from sage_gateway.key_directory import KeyDirectory
from sage_gateway.key_records import KeyRecord, new_key
from sage_gateway.key_store import SqliteKeyStore, StoreContent, StoreUnavailable
from sage_gateway.rate_limits import RateLimit
from sage_prefect.common.errors import SettingsError, UnknownNameError
from sage_prefect.common.paths import state_dir
from sage_prefect.control_plane.events import Band

TENANTS, KEYS = "/v1/management/tenants", "/v1/management/keys"
TENANT = TenantConfig("search", bands=(Band.STANDARD, Band.BATCH), models=("a*",))


def bearer(key: str) -> dict[bytes, bytes]:
    return {b"authorization": f"Bearer {key}".encode()}


def refusal(ring: KeyRing, key: str) -> str | None:
    with pytest.raises(HttpError) as caught:
        ring.caller(bearer(key))
    assert caught.value.status == 401
    assert key not in caught.value.message
    return caught.value.code


# -- the ring -----------------------------------------------------------------------------


def test_a_key_may_no_more_than_its_tenant() -> None:
    ring = KeyRing("master")
    key = new_key()
    fields: dict[str, Any] = {"name": "k", "tenant": "search", "created_at": 0.0}
    for bands, models, highest, allowed in [
        ((), (), Band.STANDARD, {"a1": True, "b1": False}),
        ((Band.CRITICAL,), ("*",), Band.STANDARD, {"a1": True, "b1": False}),
        ((Band.BATCH,), ("a1", "b1"), Band.BATCH, {"a1": True, "a2": False, "b1": False}),
    ]:
        ring.take([TENANT], [KeyRecord.make(key, bands=bands, models=models, **fields)])
        caller = ring.caller(bearer(key))
        assert caller.entitlement.tenant == "search"
        assert caller.entitlement.highest is highest
        assert {name: caller.access.allows(name) for name in allowed} == allowed
        assert not caller.may_manage


def test_expiry_revocation_and_a_tenant_that_is_gone() -> None:
    now = [100.0]
    ring = KeyRing("master", wall=lambda: now[0])
    key = new_key()
    record = KeyRecord.make(key, name="k", tenant="search", created_at=0.0, expires_at=200.0)
    ring.take([TENANT], [record])
    ring.caller(bearer(key))
    now[0] = 200.0
    assert refusal(ring, key) == "expired_api_key"
    assert record.state(199.0) == "active"
    assert record.state(200.0) == "expired"
    ring.take([TENANT], [replace(record, expires_at=None, revoked_at=150.0)])
    assert refusal(ring, key) == "invalid_api_key"
    ring.take([], [replace(record, expires_at=None)])
    assert refusal(ring, key) == "invalid_api_key"


def test_a_wrong_configuration_leaves_the_ring_as_it_was() -> None:
    ring = KeyRing("master", [TenantConfig("a", "key-a")])
    with pytest.raises(SettingsError, match="master key"):
        ring.configure([TenantConfig("b", "new-master")], "new-master")
    assert ring.caller(bearer("key-a")).entitlement.tenant == "a"
    assert ring.caller(bearer("master")).may_manage
    ring.configure([TenantConfig("b", "key-b")], "other")
    assert refusal(ring, "key-a") == "invalid_api_key"
    assert refusal(ring, "master") == "invalid_api_key"
    assert ring.caller(bearer("other")).may_manage
    ring.configure([], None)  # a file without a master key: the one before stays
    assert ring.caller(bearer("other")).may_manage


# -- the directory ------------------------------------------------------------------------


class Store:
    """A store in memory that can be told to fail, as a full disk makes it."""

    def __init__(self) -> None:
        self.content = StoreContent()
        self.changes = 0
        self.fails = False
        self.loads = 0

    def _check(self) -> None:
        if self.fails:
            raise StoreUnavailable("the disk is full.")

    def version(self) -> int:
        self._check()
        return self.changes

    def load(self) -> StoreContent:
        self._check()
        self.loads += 1
        return self.content

    def put_key(self, record: KeyRecord) -> None:
        self._check()
        others = tuple(k for k in self.content.keys if k.key_id != record.key_id)
        self.content = replace(self.content, keys=(*others, record))

    def put_tenant(self, tenant: TenantConfig) -> None:
        self._check()
        others = tuple(t for t in self.content.tenants if t.name != tenant.name)
        self.content = replace(self.content, tenants=(*others, tenant))

    def remove_tenant(self, name: str) -> None:
        self._check()
        left = tuple(t for t in self.content.tenants if t.name != name)
        self.content = replace(self.content, tenants=left)

    def close(self) -> None:
        pass


@pytest.fixture
async def parts() -> Any:
    ring, store, changes = KeyRing("master"), Store(), []
    directory = KeyDirectory(ring, store, 0.01, lambda: changes.append(1))
    directory.start()
    yield ring, store, directory, changes
    await directory.close()


async def test_a_key_is_made_only_when_it_is_stored(parts: Any) -> None:
    ring, store, directory, changes = parts
    await directory.put_tenant(TENANT)
    assert changes == [1]
    store.fails = True
    with pytest.raises(StoreUnavailable, match="full"):
        await directory.create_key(tenant="search", name="k")
    with pytest.raises(StoreUnavailable):
        await directory.put_tenant(replace(TENANT, weight=9.0))
    assert directory.keys == ()
    assert ring.tenants == (TENANT,)
    store.fails = False
    record, key = await directory.create_key(tenant="search", name="k")
    assert ring.caller(bearer(key)).entitlement.tenant == "search"
    assert store.content.keys == (record,)
    with pytest.raises(UnknownNameError, match=r"'serch'.*'search'"):
        await directory.create_key(tenant="serch", name="k")


async def test_a_revocation_holds_at_once_and_is_stored_when_that_is_possible(parts: Any) -> None:
    ring, store, directory, _ = parts
    await directory.put_tenant(TENANT)
    record, key = await directory.create_key(tenant="search", name="k")
    store.fails = True
    revoked, stored = await directory.revoke_key(record.key_id)
    assert not stored
    assert revoked.revoked_at is not None
    assert refusal(ring, key) == "invalid_api_key"
    assert store.content.keys[0].revoked_at is None
    store.changes += 1  # what others change in the meantime does not bring it back
    store.fails = False
    deadline = asyncio.get_running_loop().time() + 5
    while store.content.keys[0].revoked_at is None:
        assert asyncio.get_running_loop().time() < deadline
        assert refusal(ring, key) == "invalid_api_key"
        await asyncio.sleep(0.005)
    assert refusal(ring, key) == "invalid_api_key"
    again, stored = await directory.revoke_key(record.key_id)
    assert stored
    assert again.revoked_at == revoked.revoked_at
    with pytest.raises(UnknownNameError):
        await directory.revoke_key("key-none")


async def test_changes_of_others_are_taken_and_serving_reads_nothing(parts: Any) -> None:
    ring, store, _, changes = parts
    key = new_key()
    record = KeyRecord.make(key, name="k", tenant="search", created_at=0.0)
    store.content = StoreContent((TENANT,), (record,))
    store.changes += 1
    deadline = asyncio.get_running_loop().time() + 5
    while not changes:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.005)
    loads = store.loads
    for _ in range(100):
        ring.caller(bearer(key))
    assert store.loads == loads


async def test_a_store_that_is_away_at_the_start_is_read_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, ring = Store(), KeyRing("master")
    store.fails, store.content = True, StoreContent((TENANT,), ())
    directory = KeyDirectory(ring, store, 0.01, lambda: None)
    directory.start()
    try:
        assert ring.tenants == ()
        await asyncio.sleep(0.05)
        assert caplog.text.count("the disk is full") == 1  # said once, not every 10 ms
        store.fails = False
        deadline = asyncio.get_running_loop().time() + 5
        while ring.tenants != (TENANT,):
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.005)
    finally:
        await directory.close()


async def test_removing_a_tenant_revokes_its_keys(parts: Any) -> None:
    ring, _, directory, _ = parts
    await directory.put_tenant(TENANT)
    _, key = await directory.create_key(tenant="search", name="k")
    revoked = await directory.remove_tenant("search")
    assert [record.name for record in revoked] == ["k"]
    assert refusal(ring, key) == "invalid_api_key"
    with pytest.raises(UnknownNameError):
        await directory.remove_tenant("search")
    # One of the same name later is another tenant: the old key stays closed.
    await directory.put_tenant(TENANT)
    assert refusal(ring, key) == "invalid_api_key"


# -- the API and the wire -----------------------------------------------------------------


async def make_key(gateway: Any, **fields: Any) -> dict[str, Any]:
    made = await gateway.client.post(KEYS, json={"tenant": "search", "name": "ci", **fields})
    assert made.status_code == 201, made.text
    content: dict[str, Any] = made.json()
    return content


async def test_tenants_and_keys_by_the_api(lab: Any) -> None:
    peer = await lab.peer()
    config = (TenantConfig("fixed", "sk-fixed"),)
    keys = KeyRing(lab.KEY, config)
    gateway = await lab.gateway(lab.engine(peer), keys=keys, tenants=config)
    unknown = await gateway.client.post(KEYS, json={"tenant": "search"})
    assert unknown.status_code == 404
    assert "Known: fixed" in unknown.json()["error"]["message"]
    wish = {"name": "search", "weight": 2, "bands": ["standard"], "rpm": 100, "models": ["m"]}
    assert (await gateway.client.post(TENANTS, json=wish)).status_code == 201
    assert (await gateway.client.post(TENANTS, json={**wish, "weight": 3})).status_code == 200
    listed = (await gateway.client.get(TENANTS)).json()["tenants"]
    assert [(t["name"], t["weight"], t["origin"]) for t in listed] == [
        ("fixed", 1.0, "config"),
        ("search", 3.0, "management"),
    ]
    assert gateway.gateway.manager._tenants["search"].weight == 3.0
    refused = await gateway.client.post(TENANTS, json={"name": "fixed"})
    assert refused.status_code == 400
    assert "configuration file" in refused.json()["error"]["message"]
    assert (await gateway.client.delete(f"{TENANTS}/fixed")).status_code == 400
    made = await make_key(gateway)
    headers = {"authorization": f"Bearer {made['key']}"}
    assert (await gateway.chat(headers=headers)).status_code == 200
    listed = (await gateway.client.get(KEYS)).json()["keys"]
    assert [key["id"] for key in listed] == [made["id"]]
    assert made["key"] not in str(listed)
    assert listed[0]["key"] == f"sk-sage-...{made['key'][-4:]}"
    assert (await gateway.client.get(KEYS, headers=headers)).status_code == 403
    revoked = await gateway.client.delete(f"{KEYS}/{made['id']}")
    assert (revoked.json()["state"], revoked.json()["stored"]) == ("revoked", True)
    assert (await gateway.chat(headers=headers)).status_code == 401
    assert (await gateway.client.delete(f"{KEYS}/none")).status_code == 404
    other = await make_key(gateway, expires_in_s=3600)
    gone = await gateway.client.delete(f"{TENANTS}/search")
    assert gone.json() == {"removed": "search", "revoked": [other["id"]]}
    assert (await gateway.client.delete(f"{TENANTS}/search")).status_code == 404
    for wrong in ({"rpm": 0}, {"colour": 1}, {"expires_in_s": -1}, {"bands": ["batsch"]}):
        answer = await gateway.client.post(KEYS, json={"tenant": "fixed", **wrong})
        assert answer.status_code == 400
        assert next(iter(wrong)) in answer.json()["error"]["message"]


async def test_keys_outlive_the_gateway(lab: Any) -> None:
    peer = await lab.peer()
    first = await lab.gateway(lab.engine(peer))
    await first.client.post(TENANTS, json={"name": "search"})
    made = await make_key(first)
    second = await lab.gateway(lab.engine(peer))  # the same SAGE_HOME, as after a restart
    headers = {"authorization": f"Bearer {made['key']}"}
    assert (await second.chat(headers=headers)).status_code == 200


async def test_a_store_that_cannot_be_written_is_503_and_serving_goes_on(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer))
    await gateway.client.post(TENANTS, json={"name": "search"})
    made = await make_key(gateway)

    def full(*_: object) -> None:
        raise StoreUnavailable("the store of keys 'x' cannot be used now: database is full.")

    for method in ("put_key", "put_tenant", "version"):
        monkeypatch.setattr(SqliteKeyStore, method, full)
    refused = await gateway.client.post(KEYS, json={"tenant": "search"})
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "store_unavailable"
    assert refused.headers["retry-after"] == "5"
    headers = {"authorization": f"Bearer {made['key']}"}
    assert (await gateway.chat(headers=headers)).status_code == 200
    revoked = await gateway.client.delete(f"{KEYS}/{made['id']}")
    assert (revoked.status_code, revoked.json()["stored"]) == (200, False)
    assert (await gateway.chat(headers=headers)).status_code == 401


async def test_a_locked_database_holds_up_no_request_and_no_revocation(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sage_gateway.key_store._BUSY_S", 0.01)
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer), key_store=KeyStoreConfig(refresh_s=0.02))
    await gateway.client.post(TENANTS, json={"name": "search"})
    made = await make_key(gateway)
    headers = {"authorization": f"Bearer {made['key']}"}
    file = state_dir() / "gateway-keys.sqlite"
    with closing(sqlite3.connect(file, isolation_level=None)) as locker:
        locker.execute("BEGIN EXCLUSIVE")
        assert (await gateway.client.post(KEYS, json={"tenant": "search"})).status_code == 503
        assert (await gateway.chat(headers=headers)).status_code == 200
        revoked = await gateway.client.delete(f"{KEYS}/{made['id']}")
        assert revoked.json()["stored"] is False
        assert (await gateway.chat(headers=headers)).status_code == 401
        locker.execute("ROLLBACK")

    await lab.until(lambda: not gateway.gateway.directory._unstored, "the revocation is stored")
    with closing(SqliteKeyStore(file)) as reader:
        assert reader.load().keys[0].revoked_at is not None


async def test_gateways_with_one_file_see_each_other_s_keys(lab: Any) -> None:
    peer = await lab.peer()
    shared = KeyStoreConfig(refresh_s=0.02)
    first = await lab.gateway(lab.engine(peer), key_store=shared)
    second = await lab.gateway(lab.engine(peer), key_store=shared)
    await first.client.post(TENANTS, json={"name": "search", "weight": 3})
    made = await make_key(first)
    headers = {"authorization": f"Bearer {made['key']}"}
    ring = second.gateway.keys
    await lab.until(lambda: "search" in {tenant.name for tenant in ring.tenants})
    await lab.until(lambda: second.gateway.directory.keys)
    assert (await second.chat(headers=headers)).status_code == 200
    assert second.gateway.manager._tenants["search"].weight == 3
    await first.client.delete(f"{KEYS}/{made['id']}")
    await lab.until(lambda: second.gateway.directory.keys[0].revoked_at is not None)
    assert (await second.chat(headers=headers)).status_code == 401


def limited(**limit: int) -> KeyRing:
    tenant = TenantConfig("t", "sk-t", limit=RateLimit(**limit))
    return KeyRing("sk-test-master", [tenant])


TENANT_KEY = {"authorization": "Bearer sk-t"}


@pytest.fixture
def no_inflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute lasts for years: what is left of a limit is what has not been used."""
    monkeypatch.setattr("sage_gateway.rate_limits._MINUTE_S", 1e12)


def tokens_left(gateway: Any) -> float:
    (usage,) = gateway.gateway.keys.usage()
    assert usage["running"] == 0
    left: float = usage["tokens_left"]
    return round(left, 3)


async def test_requests_per_minute_on_the_wire(lab: Any) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(lab.engine(peer), keys=limited(rpm=2))
    first = await gateway.chat(headers=TENANT_KEY)
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert "x-ratelimit-limit-tokens" not in first.headers
    stream = await gateway.chat(headers=TENANT_KEY, stream=True)
    assert stream.headers["x-ratelimit-remaining-requests"] == "0"
    refused = await gateway.chat(headers=TENANT_KEY)
    assert refused.status_code == 429
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert "tenant 't'" in error["message"]
    assert 20 <= int(refused.headers["retry-after"]) <= 30
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert len(peer.posts) == 2
    assert "x-ratelimit-limit-requests" not in (await gateway.chat()).headers


@pytest.mark.usefixtures("no_inflow")
async def test_tokens_on_the_wire_are_those_that_the_engine_counted(lab: Any) -> None:
    gateway = await lab.gateway(lab.engine(await lab.peer()), keys=limited(tpm=1000))
    first = await gateway.chat(headers=TENANT_KEY)
    # Prompt and 256 tokens of answer were reserved; the engine says 7 and 2.
    assert int(first.headers["x-ratelimit-remaining-tokens"]) < 1000 - 256
    assert tokens_left(gateway) == 991
    await gateway.chat(headers=TENANT_KEY, stream=True)
    assert tokens_left(gateway) == 982


@pytest.mark.usefixtures("no_inflow")
async def test_who_leaves_gives_its_place_back(lab: Any) -> None:
    gate = asyncio.Event()

    async def held(request: Any) -> None:
        await gate.wait()
        await lab.chat(request)

    peer = await lab.peer(held)
    gateway = await lab.gateway(
        lab.engine(peer), keys=limited(max_parallel_requests=1, tpm=100_000)
    )
    running = asyncio.ensure_future(gateway.chat(headers=TENANT_KEY))
    await lab.until(lambda: peer.posts)
    assert (await gateway.chat(headers=TENANT_KEY)).status_code == 429
    running.cancel()
    await lab.until(lambda: gateway.gateway.keys.usage()[0]["running"] == 0)
    assert tokens_left(gateway) == 100_000
    gate.set()
    assert (await gateway.chat(headers=TENANT_KEY)).status_code == 200


@pytest.mark.usefixtures("no_inflow")
async def test_an_embedding_call_is_settled_by_its_own_tokens(lab: Any) -> None:
    peer = await lab.peer()
    gateway = await lab.gateway(
        lab.engine(peer, models=(lab.embedding_model,)), keys=limited(tpm=1000)
    )
    body = {"model": "m", "input": "hello"}
    answer = await gateway.client.post("/v1/embeddings", json=body, headers=TENANT_KEY)
    assert answer.status_code == 200
    assert tokens_left(gateway) == 997


@pytest.mark.usefixtures("no_inflow")
async def test_an_error_of_the_engine_costs_no_tokens(lab: Any) -> None:
    async def wrong(request: Any) -> None:
        await request.answer(400, b'{"error":{"message":"no"}}')

    gateway = await lab.gateway(lab.engine(await lab.peer(wrong)), keys=limited(tpm=1000))
    assert (await gateway.chat(headers=TENANT_KEY)).status_code == 400
    assert tokens_left(gateway) == 1000
