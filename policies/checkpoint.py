"""Signed checkpoints: how large the audit log was, and the root of its tree.

Formats: C2SP signed-note and tlog-checkpoint (three lines: origin, size, base64 root), Ed25519 signatures. A log of one's
own cannot prove that its keeper did not write it anew: keep a checkpoint elsewhere, and verify against that.
"""

import base64
import binascii
import os
import re
import socket
import stat
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_ED25519 = b"\x01"
_DASH = "\u2014"
_NOTE = re.compile(
    rf"(?P<body>(?P<origin>[^\n\x00-\x1f]+)\n(?P<size>0|[1-9][0-9]{{0,18}})\n(?P<root>[A-Za-z0-9+/=]{{44}})\n)"
    rf"\n(?P<signatures>(?:{_DASH} [^ \n+]+ [A-Za-z0-9+/=]+\n)+)"
)


class CheckpointError(ValueError):
    """A key, signature or checkpoint that cannot be used; the text says why."""


@dataclass(frozen=True)
class Verifier:
    """A public key with its name: whose signatures count."""

    name: str
    key: bytes
    """32 bytes of Ed25519."""

    @property
    def key_id(self) -> bytes:
        return sha256(self.name.encode() + b"\n" + _ED25519 + self.key).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{base64.b64encode(_ED25519 + self.key).decode()}"

    @classmethod
    def read(cls, text: str) -> "Verifier":
        """From `name+hex+base64`, as `str` writes it. Raises CheckpointError."""
        try:
            name, digest, encoded = text.strip().split("+", 2)
            raw = base64.b64decode(encoded, validate=True)
        except (ValueError, binascii.Error):
            raise CheckpointError("not a verifier key: it is written name+id+base64") from None
        if len(raw) != 33 or raw[:1] != _ED25519:
            raise CheckpointError("not an Ed25519 verifier key")
        found = cls(name, raw[1:])
        if found.key_id.hex() != digest:
            raise CheckpointError("the verifier key's id is not that of its name and key")
        return found


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it was signed."""

    origin: str
    size: int
    root: bytes
    text: str
    """The whole signed note."""

    @property
    def root_text(self) -> str:
        """The root as the note has it, in base64."""
        return base64.b64encode(self.root).decode()

    @classmethod
    def read(cls, text: str) -> "Checkpoint":
        """Reads a note without judging its signatures. Raises CheckpointError."""
        match = _NOTE.fullmatch(text)
        if match is None:
            raise CheckpointError("not a signed checkpoint")
        try:
            root = base64.b64decode(match["root"], validate=True)
        except binascii.Error:
            raise CheckpointError("the checkpoint's root is no base64") from None
        return cls(match["origin"], int(match["size"]), root, text)

    def verify(self, verifier: Verifier) -> None:
        """Raises CheckpointError unless it is of that key's log and carries its signature."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        if self.origin != verifier.name:
            raise CheckpointError(f"the checkpoint is of {self.origin!a}, not of {verifier.name!a}")
        body, _, signatures = self.text.partition("\n\n")
        for line in signatures.removesuffix("\n").split("\n"):
            try:
                _, name, encoded = line.split(" ")
                raw = base64.b64decode(encoded, validate=True)
                if name == verifier.name and raw[:4] == verifier.key_id:
                    Ed25519PublicKey.from_public_bytes(verifier.key).verify(raw[4:], f"{body}\n".encode())
                    return
            except (ValueError, InvalidSignature):
                break
        raise CheckpointError(f"the checkpoint of size {self.size} does not carry the signature of {verifier.name}")


class Signer:
    """The log's private key."""

    def __init__(self, name: str, key: "Ed25519PrivateKey") -> None:
        self._key = key
        self.verifier = Verifier(name, key.public_key().public_bytes_raw())

    def keep(self, path: Path) -> None:
        """Writes the key to `path`, mode 0600, and beside it the verifier key, to give away. Raises OSError."""
        private = base64.b64encode(self._key.private_bytes_raw()).decode()
        _write(path, f"{self.verifier.name}\n{private}\n", 0o600)
        _write(path.with_suffix(".vkey"), f"{self.verifier}\n", 0o644)

    def sign(self, size: int, root: bytes) -> Checkpoint:
        """The checkpoint of a tree."""
        name = self.verifier.name
        body = f"{name}\n{size}\n{base64.b64encode(root).decode()}\n"
        signature = base64.b64encode(self.verifier.key_id + self._key.sign(body.encode())).decode()
        return Checkpoint(name, size, root, f"{body}\n{_DASH} {name} {signature}\n")


def new_signer() -> Signer:
    """A new key, named after this machine; only in memory."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    name = "labsandbox.audit/" + (re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname()) or "unnamed")
    return Signer(name, Ed25519PrivateKey.generate())


def load_signer(path: Path) -> Signer:
    """The key in `path`; the verifier key beside it is made again where it is missing. Raises CheckpointError, OSError."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    mode = path.stat().st_mode
    if stat.S_IMODE(mode) & 0o077:
        raise CheckpointError(
            f"the audit log's key {path} can be read by others (chmod 600, and do not trust the past)"
        )
    try:
        name, encoded = path.read_text().splitlines()
        signer = Signer(name, Ed25519PrivateKey.from_private_bytes(base64.b64decode(encoded, validate=True)))
    except ValueError:
        raise CheckpointError(f"the audit log's key {path} is damaged") from None
    if not path.with_suffix(".vkey").exists():
        _write(path.with_suffix(".vkey"), f"{signer.verifier}\n", 0o644)
    return signer


def load_verifier(path: Path) -> Verifier:
    """The verifier key beside the private key `path`. Raises CheckpointError."""
    try:
        return Verifier.read(path.with_suffix(".vkey").read_text())
    except OSError as error:
        raise CheckpointError(f"cannot read the log's verifier key: {error.strerror}") from None


def _write(path: Path, text: str, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
