"""Reads the server's name out of a TLS ClientHello, without taking part in the handshake.

Formats: the record layer and ClientHello of RFC 8446 (5.1, 4.1.2), server_name of RFC 6066 (3). A hello may be spread
over several records. An encrypted hello (extension 0xfe0d) names another server inside than outside, so it is refused.
"""

import struct

_MAX_HELLO = 64 * 1024
_MAX_RECORDS = 64
_SERVER_NAME, _ENCRYPTED_HELLO = 0, 0xFE0D


class HelloError(ValueError):
    """What came first is no ClientHello that can be judged; the text says why."""


class HelloReader:
    """Takes bytes as they come, and looks at each once."""

    def __init__(self) -> None:
        self.data = bytearray()
        """Everything that was fed."""
        self._message = bytearray()
        self._at = self._records = 0
        self.name: str | None = None
        """The server's name in lower case; None where the hello has none."""

    def feed(self, data: bytes) -> bool:
        """Whether the hello is whole now, so that `name` is known. Raises HelloError."""
        self.data += data
        if self.data and self.data[0] != 22:
            raise HelloError("the tunnel carries no TLS")
        while len(self.data) - self._at >= 5:
            kind, _, length = struct.unpack_from(">BHH", self.data, self._at)
            if kind != 22 or length == 0 or length > 1 << 14:
                raise HelloError("the tunnel carries no TLS handshake")
            if len(self.data) - self._at - 5 < length:
                break
            self._records += 1
            if self._records > _MAX_RECORDS:
                raise HelloError("the ClientHello is spread over too many records")
            self._message += self.data[self._at + 5 : self._at + 5 + length]
            self._at += 5 + length
            if self._whole():
                return True
        return False

    def _whole(self) -> bool:
        if len(self._message) < 4:
            return False
        if self._message[0] != 1:
            raise HelloError("the handshake does not begin with a ClientHello")
        size = int.from_bytes(self._message[1:4], "big")
        if size > _MAX_HELLO:
            raise HelloError("the ClientHello is too long")
        if len(self._message) < 4 + size:
            return False
        self.name = _name(bytes(self._message[4 : 4 + size]))
        return True


def _name(hello: bytes) -> str | None:
    try:
        extensions = _extensions(hello)
        if any(kind == _ENCRYPTED_HELLO for kind, _ in extensions):
            raise HelloError("the ClientHello is encrypted")
        names = [body for kind, body in extensions if kind == _SERVER_NAME]
        if len(names) > 1:
            raise HelloError("the ClientHello names its server twice")
        if not names:
            return None
        kind, length = struct.unpack_from(">BH", names[0], 2)
        if kind != 0 or len(names[0]) != 5 + length:
            raise HelloError("the ClientHello's server name is malformed")
        return names[0][5:].decode("ascii").lower().removesuffix(".")
    except (struct.error, IndexError, UnicodeDecodeError):
        raise HelloError("the ClientHello is malformed") from None


def _extensions(hello: bytes) -> list[tuple[int, bytes]]:
    at = 34  # legacy version and random
    at += 1 + hello[at]  # session id
    at += 2 + struct.unpack_from(">H", hello, at)[0]  # cipher suites
    at += 1 + hello[at]  # compression methods
    end = at + 2 + struct.unpack_from(">H", hello, at)[0]
    at += 2
    if end != len(hello):
        raise HelloError("the ClientHello's length is malformed")
    found = []
    while at < end:
        kind, length = struct.unpack_from(">HH", hello, at)
        if at + 4 + length > end:
            raise HelloError("the ClientHello's extensions are malformed")
        found.append((kind, hello[at + 4 : at + 4 + length]))
        at += 4 + length
    return found
