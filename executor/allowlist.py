"""Which destinations may be reached: a judgement on parsed bytes, without any input or output."""

import ipaddress
from collections.abc import Iterable

# Of version 6 only what is handed out to networks (RFC 4291, 2.4): not site-local addresses, nor the many forms that
# carry one of version 4 which somebody on the way would dial (RFC 6052 and its elders).
_GLOBAL = ipaddress.ip_network("2000::/3")


class Refused(Exception):
    """A request that is not let through: the rule, and the reason in a few words."""

    def __init__(self, rule: str, reason: str) -> None:
        super().__init__(reason)
        self.rule, self.reason = rule, reason


class AllowList:
    """Which destinations may be reached: a pure judgement on parsed bytes."""

    def __init__(self, hosts: Iterable[str]) -> None:
        self._hosts = frozenset(hosts)

    def name(self, authority: str, default_port: int | None = None) -> tuple[str, int]:
        """Host and port of `authority` if they are listed. Raises Refused."""
        host, port = split_authority(authority, default_port)
        if join_authority(host, port) not in self._hosts:
            raise Refused("network.host", f"{join_authority(host, port)} is not listed")
        return host, port

    def address(self, text: str, port: int) -> str:
        """`text` if that address may be dialled: a public one, or one that is listed itself. Raises Refused."""
        address = ipaddress.ip_address(text.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address):
            address = address.ipv4_mapped or address
        public = address.is_global and not address.is_multicast
        if isinstance(address, ipaddress.IPv6Address):
            public = public and address in _GLOBAL and address.sixtofour is None and address.teredo is None
        if not public and join_authority(str(address), port) not in self._hosts:
            raise Refused("network.address", f"the name leads to {address}, which is not a public address")
        return str(address)


def split_authority(authority: str, default_port: int | None = None) -> tuple[str, int]:
    """Lower-case host without a trailing dot, and port. Raises Refused for what is no such thing."""
    host, colon, port = authority.rpartition(":")
    if not colon or authority.endswith("]"):
        host, port = authority, str(default_port or "")
    host = host.lower().removesuffix(".").removeprefix("[").removesuffix("]")
    plain = host.replace("-", "").replace(".", "").replace(":", "").isalnum() and host.isascii()
    if not plain or not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise Refused("network.request", "no host and port")
    return host, int(port)


def join_authority(host: str, port: int) -> str:
    """As policies write it: an address of version 6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_address(host: str) -> bool:
    """Whether `host` is an address and no name."""
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return False
