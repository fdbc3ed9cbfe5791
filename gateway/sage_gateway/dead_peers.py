"""Noticing a peer that is gone without a word: power lost, cable cut, a firewall that forgot.

TCP says nothing of it by itself: what was sent is repeated for a quarter of an hour, and who only
waits never learns of it. A lost peer must give its engine's slot, or its client's, back.
"""

from __future__ import annotations

import socket


def notice_dead_peer(connection: socket.socket, unreachable_s: float) -> None:
    """Have the kernel end a connection whose peer acknowledges nothing for so long.

    Args:
        connection: accepted ones inherit it from one that listens.
        unreachable_s: until unacknowledged data, or probes of a silent connection, end it
            (RFC 5482, RFC 9293 3.8.4). Probes go in whole seconds: the last quarter may be rounded.
    """
    wait, every = max(1, round(unreachable_s / 2)), max(1, round(unreachable_s / 4))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, wait)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, every)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(unreachable_s * 1000))
