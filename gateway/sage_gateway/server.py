"""Listening: sockets, uvicorn, readiness, graceful shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import gc
import ipaddress
import logging
import math
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn
import uvloop

from sage_gateway.app import GatewayApp
from sage_gateway.auth import KeyRing
from sage_gateway.config import GatewayConfig, parse_config
from sage_gateway.connection_limits import ConnectionLimits, raise_descriptor_limit
from sage_gateway.dead_peers import notice_dead_peer
from sage_gateway.gateway import Gateway
from sage_gateway.http_protocol import LimitedHttpProtocol, limited_protocol
from sage_gateway.reload import ConfigSource
from sage_gateway.routes import INFERENCE_ROUTES
from sage_prefect.common.compiled import compiled_state
from sage_prefect.common.errors import PortInUseError, ServiceError, SettingsError
from sage_prefect.common.keys import read_master_key
from sage_prefect.common.ports import SagePorts, choose_port

log = logging.getLogger(__name__)


def serve(
    config_file: Path | None,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    policy: str | None = None,
    no_auth: bool = False,
    record: Path | None = None,
    announce: Callable[[str], None] = print,
) -> None:
    """Run a gateway in the foreground until SIGINT or SIGTERM.

    Args:
        config_file: ``gateway.yaml``; None: no engines yet, they come by the management API.
        host: address to bind.
        port: port to bind; None: ``SAGE_PORT_GATEWAY``, else 8888 or the next free one; 0: any.
        policy: scheduling policy; None: the configuration's.
        no_auth: ask for no key (loopback only).
        record: file that events are recorded in; None: the configuration's.
        announce: told the address once requests are answered.

    Raises:
        SettingsError: configuration or keys are wrong, or the event log cannot be written.
        PortInUseError: the chosen port is taken.
        ServiceError: the address cannot be bound.
        UnknownNameError: the policy is not known.
    """
    source = None if config_file is None else ConfigSource(config_file, policy, record)
    if source is not None:
        config = source.load()
    else:
        config = parse_config(None, policy=policy)
        config = dataclasses.replace(
            config, recording=dataclasses.replace(config.recording, file=record)
        )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    for warning in config.warnings:
        log.warning(warning)
    keys = make_key_ring(config, host, no_auth=no_auth)
    listener = bind(host, port, config.timeouts.unreachable_s)
    raise_descriptor_limit()
    # What start-up made stays: the collector need not look at it again and again.
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    try:
        uvloop.run(_serve(config, keys, listener, host, announce, source))
    finally:
        listener.close()


def make_key_ring(config: GatewayConfig, host: str, *, no_auth: bool) -> KeyRing:
    """The keys of this gateway.

    Raises:
        SettingsError: there is no key, or ``no_auth`` on an address that others can reach.
    """
    if no_auth:
        if not is_loopback(host):
            raise SettingsError(
                f"--no-auth on {host!r} would open every engine to the network.",
                hint="Bind to 127.0.0.1, or drop --no-auth.",
            )
        return KeyRing(None, config.tenants, open_to_all=True, replicas=config.replicas)
    master_key = config.master_key or read_master_key()
    if master_key is None:
        raise SettingsError(
            "no master key is configured.",
            hint="Set SAGE_MASTER_KEY, or general_settings.master_key in the configuration; "
            "for trying out on this machine alone there is --no-auth.",
        )
    return KeyRing(master_key, config.tenants, replicas=config.replicas)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener on ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int | None, unreachable_s: float = 0.0) -> socket.socket:
    """A socket that listens: from now on the port is ours, and connections wait in its backlog.

    Args:
        unreachable_s: a client that acknowledges nothing for so long is gone; 0: as the system has
            it.

    Raises:
        PortInUseError: the chosen port is taken.
        ServiceError: the address is not one of this machine.
    """
    chosen = 0 if port == 0 else choose_port(SagePorts.GATEWAY, explicit=port, host=host)
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, chosen, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
    except OSError as error:
        raise ServiceError(f"cannot bind {host!r}: {error.strerror or error}.") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if unreachable_s:
            notice_dead_peer(listener, unreachable_s)
        listener.bind(address)
        listener.listen(2048)
        listener.setblocking(False)
        listener.set_inheritable(False)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:  # taken since we looked
            raise PortInUseError(f"port {chosen} is taken on {host}.") from None
        raise ServiceError(f"cannot bind {host}:{chosen}: {error.strerror or error}.") from None
    return listener


async def _serve(
    config: GatewayConfig,
    keys: KeyRing,
    listener: socket.socket,
    host: str,
    announce: Callable[[str], None],
    source: ConfigSource | None,
) -> None:
    for package in ("sage_prefect.control_plane", "sage_gateway"):
        compiled = compiled_state(package)
        if not compiled.active:
            log.warning("%s is interpreted, much slower: %s", package, compiled.reason)
    gateway = Gateway(config, keys, source)
    app = GatewayApp(gateway, on_loopback=is_loopback(host))
    server = make_server(app, config)
    port = listener.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    scheme = "http" if config.server.tls_certificate is None else "https"
    server.on_ready = lambda: announce(f"sage gateway listening on {scheme}://{shown}:{port}")
    check = asyncio.create_task(gateway.check_engines())
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, gateway.reload_soon)
    try:
        await server.serve(sockets=[listener])
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        check.cancel()
        await asyncio.gather(check, return_exceptions=True)
        await gateway.close()


def make_server(app: GatewayApp, config: GatewayConfig) -> GatewayServer:
    """A uvicorn server for ``app`` with the configuration's limits."""
    limits = config.server
    return GatewayServer(
        uvicorn.Config(
            app,
            http=limited_protocol(  # type: ignore[arg-type]
                limits.max_header_bytes,
                limits.read_timeout_s,
                app.serve,
                INFERENCE_ROUTES,
                ConnectionLimits(limits.max_connections, limits.max_connections_per_ip),
            ),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=math.ceil(limits.shutdown_s),
            ssl_certfile=limits.tls_certificate,
            ssl_keyfile=limits.tls_key,
        )
    )


class GatewayServer(uvicorn.Server):
    """Uvicorn's server that tells when it is ready and exits with code 0 after SIGTERM."""

    on_ready: Callable[[], None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started and self.on_ready is not None:
            self.on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Uvicorn's, which knows of tasks only; inference requests that are left end here."""
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):
            if isinstance(connection, LimitedHttpProtocol):
                connection.cancel_exchange()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGINT and SIGTERM; uvicorn would raise the signal again when all is done."""
        loop = asyncio.get_running_loop()
        handled: list[signal.Signals] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                loop.add_signal_handler(number, self.handle_exit, number, None)
                handled.append(number)
            except (RuntimeError, ValueError):
                # Not the main thread (tests): whoever runs us there stops us by should_exit.
                break
        try:
            yield
        finally:
            for number in handled:
                loop.remove_signal_handler(number)
