"""How far an answer's signature can be believed; and which keys have been seen.

The service does not document how `responseHash` is computed, nor whether what is signed is the hash's bytes or its
text. So there are grades: a signature that fits under any of the readings is `signature-valid`; if the hash is also that
of the answer's content it is `content-bound`. Only the last says anything about the words that were read.
"""

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import rfc8785

from orchestrator.agents.keys import SigningKey, address_of, verifies

Grade = Literal["unsigned", "signature-valid", "content-bound", "invalid"]
ALGORITHM = "BSV-ECDSA-DER"


@dataclass(frozen=True)
class Signed:
    """What is known of an answer's signature."""

    grade: Grade
    identity: str = ""
    """Of whom it claims to be; anybody may claim anything."""
    public_key: str = ""
    """Hex; only of a signature that holds."""


def grade(result: dict[str, Any]) -> Signed:
    """Grades the `_signature` of a result as it stood in the answer."""
    said = result.get("_signature")
    if said is None:
        return Signed("unsigned")
    if not isinstance(said, dict):
        return Signed("invalid")
    identity = str(said.get("agentIdentity") or "")[:200]
    try:
        public, signature, digest = (bytes.fromhex(said[key]) for key in ("publicKey", "signature", "responseHash"))
    except (KeyError, TypeError, ValueError):
        return Signed("invalid", identity)
    text = str(said["responseHash"]).encode()
    readings = verifies(public, signature, text) or verifies(public, signature, digest)
    readings = readings or (len(digest) == 32 and verifies(public, signature, digest, hashed=True))
    if not readings or said.get("address") != address_of(public):
        return Signed("invalid", identity)
    bound = digest in _content_hashes(result)
    return Signed("content-bound" if bound else "signature-valid", identity, public.hex())


def sign(key: SigningKey, result: dict[str, Any], identity: str) -> dict[str, Any]:
    """The `_signature` of a result: over the text of the SHA-256 of its compact JSON, without underscore fields."""
    digest = hashlib.sha256(_compact(_content(result))).hexdigest()
    return {
        "signature": key.sign(digest.encode()).hex(),
        "responseHash": digest,
        "address": key.address,
        "publicKey": key.public.hex(),
        "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "algorithm": ALGORITHM,
        "encoding": "hex",
        "agentIdentity": identity,
    }


def _content(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if not key.startswith("_")}


def _compact(content: object) -> bytes:
    """As JavaScript's JSON.stringify writes it: fields in the order that they came in."""
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def _content_hashes(result: dict[str, Any]) -> Iterator[bytes]:
    """Of the content in the order that it came, and in canonical order (RFC 8785)."""
    content = _content(result)
    yield hashlib.sha256(_compact(content)).digest()
    with contextlib.suppress(rfc8785.CanonicalizationError, UnicodeError, RecursionError):
        yield hashlib.sha256(rfc8785.dumps(content)).digest()


class PinnedKeys:
    """The first key seen of each agent of each service, in SQLite. Many threads and processes may use it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = path
        with self._open() as database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS pins (service TEXT, agent TEXT, public_key TEXT, "
                "PRIMARY KEY (service, agent))"
            )

    def check(self, service: str, agent: str, public_key: str) -> str | None:
        """Pins a key that is the first, which is None; the pinned one where it is another, which stays pinned."""
        with self._open() as database:
            database.execute("INSERT OR IGNORE INTO pins VALUES (?, ?, ?)", (service, agent, public_key))
            where = "WHERE service = ? AND agent = ?"
            (pinned,) = database.execute(f"SELECT public_key FROM pins {where}", (service, agent)).fetchone()
        return None if pinned == public_key else str(pinned)

    def all(self) -> list[tuple[str, str, str]]:
        """Service, agent and key of each pin."""
        with self._open() as database:
            return list(database.execute("SELECT service, agent, public_key FROM pins ORDER BY 1, 2"))

    def forget(self, agent: str) -> int:
        """Lets the next key of an agent be pinned anew; how many pins that was."""
        with self._open() as database:
            return database.execute("DELETE FROM pins WHERE agent = ?", (agent,)).rowcount

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self._path, timeout=10)) as database, database:
            yield database
