"""Which addresses a set of processes listens on, as the kernel tells."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path

_LISTEN = "0A"


@dataclass(frozen=True)
class Listener:
    """A listening TCP socket.

    Attributes:
        process: the name of who has it, such as ``raylet``; its arguments, if any, are left out.
    """

    process: str
    host: str
    port: int

    @property
    def beyond_loopback(self) -> bool:
        address = ip_address(self.host)
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            return not address.ipv4_mapped.is_loopback
        return not address.is_loopback


def listeners(pids: Iterable[int]) -> set[Listener]:
    """Of the given processes."""
    addresses = _addresses()
    found = set()
    for pid in pids:
        try:
            links = _links(pid)
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        name = Path(words[0].decode().split()[0]).name if words[0] else ""
        if name.startswith("python"):  # what runs says more than with what
            scripts = (w.decode() for w in words[1:] if w.endswith(b".py"))
            name = next((Path(script).name for script in scripts), name)
        for link in links:
            if link.startswith("socket:[") and link[8:-1] in addresses:
                found.add(Listener(name, *addresses[link[8:-1]]))
    return found


def _links(pid: int) -> list[str]:
    """What a process has open; what it closes meanwhile is left out, not all of the process."""
    links = []
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):
            links.append(os.readlink(entry.path))
    return links


def _addresses() -> dict[str, tuple[str, int]]:
    """Address by inode, of every listening TCP socket here."""
    found = {}
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTEN:
                host, port = fields[1].split(":")
                # Words of 32 bits in the machine's order.
                words = [int(host[i : i + 8], 16) for i in range(0, len(host), 8)]
                raw = struct.pack(f"={len(words)}I", *words)
                found[fields[9]] = (socket.inet_ntop(family, raw), int(port, 16))
    return found
