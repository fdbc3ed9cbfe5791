"""TLS on the gateway's own address."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest

from sage_gateway.config import ServerLimits, parse_config
from sage_prefect.common.errors import SettingsError


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    x509 = pytest.importorskip("cryptography.x509")
    import ipaddress

    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gateway")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    chain, private = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return chain, private


@pytest.mark.parametrize("stream", [False, True])
async def test_https_alone(lab: Any, files: tuple[Path, Path], stream: bool) -> None:
    chain, key = files
    limits = ServerLimits(tls_certificate=str(chain), tls_key=str(key))
    gateway = await lab.gateway(lab.engine(await lab.peer()), server=limits)
    context = ssl.create_default_context(cafile=str(chain))
    url = f"https://127.0.0.1:{gateway.port}/v1/chat/completions"
    async with httpx.AsyncClient(verify=context, headers=lab.HEADERS, trust_env=False) as client:
        for _ in range(3):  # the same connection, a head that is known by then
            answer = await client.post(url, json={**lab.CHAT, "stream": stream})
            assert answer.status_code == 200
            assert answer.headers["x-sage-engine"] == "e1"
    with pytest.raises(httpx.TransportError):
        await gateway.chat()  # plain http


def test_files_are_checked_at_start(files: tuple[Path, Path], tmp_path: Path) -> None:
    chain, key = files

    def parse(**server: str) -> Any:
        return parse_config({"sage_settings": {"server": server}}).server

    assert parse(tls_certificate=str(chain), tls_key=str(key)).tls_key == str(key)
    with pytest.raises(SettingsError, match="only one of"):
        parse(tls_certificate=str(chain))
    with pytest.raises(SettingsError, match="No such file"):
        parse(tls_certificate=str(chain), tls_key=str(tmp_path / "none.pem"))
    with pytest.raises(SettingsError, match="cannot be used"):
        parse(tls_certificate=str(key), tls_key=str(key))
