"""Who listens on a TCP port: one of ours, or somebody else?

A probe that gets the right answer from the wrong server is worse than one that fails: two users'
stacks on one machine choose the same default ports, and vLLM binds minutes after it was started.
Source: proc(5), /proc/net/tcp.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

_LISTEN = "0A"


def foreign_listener(port: int, host: str, own: Callable[[], Iterable[int]]) -> bool:
    """Whether ``host:port`` is held by a listener, and by none of the processes ``own()``."""
    inodes = listening_inodes(port, host)
    if not inodes or any(_holds(pid, inodes) for pid in own()):
        return False
    # One of ours may have ended between the two looks: its listener is gone then.
    return bool(inodes & listening_inodes(port, host))


def listening_inodes(port: int, host: str) -> set[str]:
    """Socket inodes of the listeners that connections to ``host:port`` may reach."""
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        addresses = _reachable(host, family)
        try:
            rows = Path("/proc/net", table).read_text().splitlines()[1:]
        except FileNotFoundError:  # a kernel without IPv6
            continue
        for row in rows:
            cells = row.split()
            address, _, hexadecimal = cells[1].partition(":")
            if cells[3] == _LISTEN and int(hexadecimal, 16) == port and address in addresses:
                found.add(cells[9])
    return found


def _reachable(host: str, family: socket.AddressFamily) -> set[str]:
    """Local addresses, as the kernel prints them, that answer for ``host``."""
    any_v4, any_v6, v4_in_v6 = "0" * 8, "0" * 32, "0" * 16 + "FFFF0000"
    name = "127.0.0.1" if host == "localhost" else host
    if family is socket.AF_INET:
        return {any_v4} if ":" in name else {any_v4, _hex(socket.inet_pton(family, name))}
    if ":" in name:
        return {any_v6, _hex(socket.inet_pton(family, name))}
    return {any_v6, v4_in_v6 + _hex(socket.inet_pton(socket.AF_INET, name))}


def _hex(packed: bytes) -> str:
    # The kernel prints each 32-bit word in host order.
    words = (packed[at : at + 4] for at in range(0, len(packed), 4))
    return "".join(word[::-1].hex().upper() for word in words)


def _holds(pid: int, inodes: set[str]) -> bool:
    wanted = {f"socket:[{inode}]" for inode in inodes}
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            return any(_link(entry.path) in wanted for entry in entries)
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return False  # it ended, or is not ours to look at


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return None  # closed in between
