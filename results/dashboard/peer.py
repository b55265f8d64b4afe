"""Whose connection it is: on a shared machine, loopback is everybody's.

Linux tells the owner of every socket (proc_pid_net(5)); the other end of a loopback connection is one of them.
"""

import ipaddress
import os
import sys
from pathlib import Path


def is_ours(client: tuple[str, int], server: tuple[str, int]) -> bool:
    """Whether the socket at `client`, connected to `server` on this machine, belongs to this process's user.

    A socket that its process has closed counts as nobody's: the kernel shows it as root's.
    """
    wanted = (_row(*client), _row(*server))
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{name}").read_text().splitlines()[1:]
        except OSError:
            continue
        for text in lines:
            words = text.split()
            if len(words) > 9 and (_short(words[1]), _short(words[2])) == wanted:
                return int(words[7]) == os.geteuid() and words[9] != "0"
    return False


def _row(host: str, port: int) -> str:
    """An address as the kernel's tables have it, version 4 in version 6 shortened."""
    packed = ipaddress.ip_address(host.partition("%")[0]).packed
    words = [packed[at : at + 4] for at in range(0, len(packed), 4)]
    if sys.byteorder == "little":
        words = [word[::-1] for word in words]
    return _short(f"{b''.join(words).hex().upper()}:{port:04X}")


def _short(address: str) -> str:
    """Version 4, where an address is one in version 6's clothes."""
    mapped = "0000000000000000FFFF0000" if sys.byteorder == "little" else "00000000000000000000FFFF"
    return address.removeprefix(mapped)
