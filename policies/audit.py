"""The append-only audit log: canonical JSON lines (RFC 8785) in a Merkle tree, signed after every commit.

Four files: `audit.jsonl` the records; `audit.checkpoints` a signed checkpoint for each commit, oldest first;
`audit.hashes` the tree's hashes, which can be made again from the records; `audit.key` the signing key. A commit writes
records, syncs, writes the checkpoint, syncs; all under a lock on the records' file, so many processes may write. A
writer that dies leaves at most a torn line, or whole records that no checkpoint covers: nobody was told that these are
there, and nobody can say who wrote them, so the next writer cuts them off and records their digest.
"""

import fcntl
import getpass
import hashlib
import json
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import rfc8785

from policies.checkpoint import Checkpoint, CheckpointError, Signer, load_signer, new_signer
from policies.merkle import HASH_BYTES, Frontier, frontier, leaf_hash, stored_count

SCHEMA = "labsandbox.audit/2"
MAX_RECORD = 65_535
"""Bytes of one record. Output and code are recorded by digest, so a record that is longer is a bug."""
_UNSIGNED_SCHEMA = "labsandbox.audit/1"
"""Of logs from before there were checkpoints; such a log is adopted, and the log says so."""
_CHUNK = 1 << 20
_NOTE_TAIL = 4096  # more than a checkpoint's bytes

Event = tuple[str, dict[str, Any]]


class AuditError(OSError):
    """The log cannot be written or read; nothing may run without it."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of records, checkpoints and stored hashes."""

    records: int
    checkpoints: int
    hashes: int


@dataclass
class _Head:
    """What a writer knows of the log's end."""

    bytes: int
    notes_bytes: int
    tree: Frontier


class AuditLog:
    """The log at one path. Safe for concurrent writers (processes and threads) on one machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path.with_suffix(".checkpoints")
        self.hashes = path.with_suffix(".hashes")
        self.key = path.with_suffix(".key")
        self._head: _Head | None = None
        self._inode = 0
        self._signer: Signer | None = None
        self._lock = threading.Lock()

    def append(self, event: str, **fields: Any) -> int:
        """Adds one record and returns its sequence number (from 0). Durable and signed when it returns.

        `fields` must be JSON data; None values are kept. Raises AuditError.
        """
        return self.append_all([(event, fields)])[0]

    def append_all(self, events: Iterable[Event]) -> list[int]:
        """Adds records in one commit: all of them are durable when it returns. Raises AuditError."""
        with self._lock, self._locked() as descriptor:
            try:
                if self._signer is None:
                    self._signer = load_signer(self.key) if self.key.exists() else self._first_use(descriptor)
                head = self._known(descriptor) or self._recover(descriptor)
                self._head = None  # until the commit is through, nothing is known for certain
                first = head.tree.size
                self._commit(descriptor, head, list(events))
                self._head = head
                return list(range(first, head.tree.size))
            except CheckpointError as error:
                raise AuditError(f"the audit log {self.path}: {error}") from None
            except AuditError:
                raise
            except OSError as error:
                raise AuditError(f"cannot write the audit log {self.path}: {error.strerror or error}") from None

    def records(self) -> Iterator[dict[str, Any]]:
        """Every whole record, oldest first. Raises AuditError where a line is no record."""
        for number, record in enumerate(self.entries()):
            if record is None:
                raise AuditError(f"line {number + 1} of {self.path} is no record")
            yield record

    def entries(self, end: int | None = None) -> Iterator[dict[str, Any] | None]:
        """What each whole line up to byte `end` holds; None for a line that is no record. Raises AuditError."""
        for line in self.lines(end):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            yield record if isinstance(record, dict) else None

    def lines(self, end: int | None = None) -> Iterator[bytes]:
        """Every whole line up to byte `end`, without its own end. A torn last line is left to the next writer."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        except OSError as error:
            raise AuditError(f"cannot read the audit log {self.path}: {error.strerror}") from None
        with file:
            read = 0
            for line in file:
                read += len(line)
                if not line.endswith(b"\n") or (end is not None and read > end):
                    return
                yield line[:-1]

    def sizes(self) -> Sizes:
        """Bytes of the three files between two commits: they only grow, so what is below stays what it is."""
        try:
            with self.path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH)
                return Sizes(*map(_size, (self.path, self.checkpoints, self.hashes)))
        except FileNotFoundError:
            return Sizes(0, _size(self.checkpoints), _size(self.hashes))
        except OSError as error:
            raise AuditError(f"cannot read the audit log {self.path}: {error.strerror}") from None

    # ---- under the lock ----

    @contextmanager
    def _locked(self) -> Iterator[int]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(self.path, flags, 0o600)
        except OSError as error:
            raise AuditError(f"cannot open the audit log {self.path}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _known(self, descriptor: int) -> _Head | None:
        """What this object remembers, if nobody else has written since."""
        info = os.fstat(descriptor)
        head = self._head
        if head is None or (info.st_size, info.st_ino) != (head.bytes, self._inode):
            return None
        return head if _size(self.checkpoints) == head.notes_bytes else None

    def _first_use(self, descriptor: int) -> Signer:
        """A key for a log that has none. It is kept last: where there is a key, there has been a signed log."""
        _cut_torn_line(descriptor)
        last = _last_record(descriptor)
        if last is None:
            raise self._stuck("'s last record is damaged")
        note, _ = self._last_note()
        signed = last.get("schema") != _UNSIGNED_SCHEMA if last else _size(self.hashes) or (note and note.size)
        if signed:
            raise self._stuck("'s key is gone")
        tree = self._rebuilt(int(last["seq"]) + 1) if last else Frontier()
        if last and tree.size != int(last["seq"]) + 1:
            raise self._stuck("'s last record is damaged")
        self._signer = new_signer()
        self.checkpoints.unlink(missing_ok=True)  # of somebody who died just here
        self._sign(tree)
        self._signer.keep(self.key)
        return self._signer

    def _recover(self, descriptor: int) -> _Head:
        """Reads the end of the log, mends what a dead writer left, and records that it did. Raises AuditError."""
        mended: dict[str, Any] = {}
        if torn := _cut_torn_line(descriptor):
            mended |= {"torn_bytes": len(torn), "torn_sha256": hashlib.sha256(torn).hexdigest()}
        last = _last_record(descriptor)
        note, notes_bytes = self._last_note()
        if note is None:
            raise self._stuck("'s checkpoints are gone")
        if last is None or (int(last["seq"]) + 1 if last else 0) != note.size or _count(descriptor) != note.size:
            mended |= self._cut_unsigned(descriptor, note.size)
            last = _last_record(descriptor)
        if last is None:
            raise self._stuck("'s last record is damaged")
        tree = self._tree(note.size)
        if tree.root() != note.root:
            tree = self._rebuilt(note.size)
            if tree.size != note.size or tree.root() != note.root:
                raise self._stuck(" is not what was signed")
        info = os.fstat(descriptor)
        self._inode = info.st_ino
        head = _Head(info.st_size, notes_bytes, tree)
        if mended:
            self._commit(descriptor, head, [("log-repaired", mended)])
        elif last.get("schema") == _UNSIGNED_SCHEMA:
            self._commit(descriptor, head, [("log-adopted", {"records": note.size})])
        return head

    def _cut_unsigned(self, descriptor: int, signed: int) -> dict[str, Any]:
        """Cuts off what stands after the first `signed` records; what it was, for the record of it. Raises AuditError."""
        lengths = [len(line) + 1 for line in islice(self.lines(), signed)]
        if len(lengths) < signed:
            raise self._stuck(" is not what was signed")
        start, size, records, digest = sum(lengths), os.fstat(descriptor).st_size, 0, hashlib.sha256()
        if start >= size:  # as many as were signed, but the last one has another number
            raise self._stuck(" is not what was signed")
        for at in range(start, size, _CHUNK):
            part = os.pread(descriptor, min(_CHUNK, size - at), at)
            records += part.count(b"\n")
            digest.update(part)
        if _size(self.hashes) > stored_count(signed) * HASH_BYTES:
            os.truncate(self.hashes, stored_count(signed) * HASH_BYTES)
        os.ftruncate(descriptor, start)
        return {"dropped_records": records, "dropped_bytes": size - start, "dropped_sha256": digest.hexdigest()}

    def _stuck(self, what: str) -> AuditError:
        return AuditError(f"the audit log{what}, so nothing runs: see `labsandbox audit verify`; {remedy(self.path)}")

    def _commit(self, descriptor: int, head: _Head, events: list[Event]) -> None:
        first, tree = head.tree.size, head.tree
        lines = [_line(first + number, event, fields) for number, (event, fields) in enumerate(events)]
        data = b"".join(lines)
        if os.write(descriptor, data) != len(data):
            os.ftruncate(descriptor, head.bytes)
            raise OSError(28, "no space left for the audit log")
        os.fsync(descriptor)
        made = [one for line in lines for one in tree.append(leaf_hash(line[:-1]))]
        with self.hashes.open("r+b" if self.hashes.exists() else "x+b") as file:
            file.seek(stored_count(first) * HASH_BYTES)
            file.write(b"".join(made))
        head.bytes += len(data)
        head.notes_bytes += self._sign(tree)

    def _sign(self, tree: Frontier) -> int:
        """Adds a checkpoint, durably; returns its bytes."""
        assert self._signer is not None
        note = self._signer.sign(tree.size, tree.root()).text.encode()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        notes = os.open(self.checkpoints, flags, 0o600)
        try:
            if os.write(notes, note) != len(note):
                raise OSError(28, "no space left for the audit log's checkpoint")
            os.fsync(notes)
        finally:
            os.close(notes)
        return len(note)

    def _last_note(self) -> tuple[Checkpoint | None, int]:
        """The newest whole checkpoint, and the file's size after a torn one was cut off."""
        size = _size(self.checkpoints)
        if size == 0:
            return None, 0
        with self.checkpoints.open("r+b") as file:
            file.seek(max(0, size - _NOTE_TAIL))
            tail = file.read()
            note, rest = last_note(tail)
            if rest:
                file.truncate(size - rest)
        return note, size - rest

    def _tree(self, size: int) -> Frontier:
        """The frontier from the stored hashes; those that are missing at the end are made again."""
        if _size(self.hashes) < stored_count(size) * HASH_BYTES:
            return self._rebuilt(size)
        return frontier(size, self._stored)

    def _stored(self, number: int) -> bytes:
        with self.hashes.open("rb") as file:
            return os.pread(file.fileno(), HASH_BYTES, number * HASH_BYTES)

    def _rebuilt(self, size: int) -> Frontier:
        """All hashes anew, from the records."""
        tree = Frontier()
        temporary = self.hashes.with_suffix(".hashes.new")
        with temporary.open("wb") as file:
            for number, line in enumerate(self.lines()):
                if number == size:
                    break
                file.write(b"".join(tree.append(leaf_hash(line))))
        temporary.replace(self.hashes)
        return tree


def is_unsigned(log: AuditLog) -> bool:
    """Whether the log is from before there were checkpoints, and nothing was added since."""
    last = deque(log.lines(), maxlen=1)
    try:
        return bool(last and json.loads(last[0])["schema"] == _UNSIGNED_SCHEMA)
    except (ValueError, TypeError, KeyError):
        return False


def last_note(data: bytes) -> tuple[Checkpoint | None, int]:
    """The last whole checkpoint in `data`, and how many bytes stand after it."""
    lines = data.split(b"\n")
    for end in range(len(lines) - 1, 4, -1):
        text = b"\n".join(lines[end - 5 : end]) + b"\n"
        try:
            note = Checkpoint.read(text.decode("utf-8", "replace"))
        except CheckpointError:
            continue
        return note, len(b"\n".join(lines[end:]))
    return None, 0


def _line(sequence: int, event: str, fields: dict[str, Any]) -> bytes:
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    record = {
        **fields,
        "schema": SCHEMA,
        "seq": sequence,
        "time": now,
        "event": event,
        "actor": {"uid": os.getuid(), "user": _user()},
    }
    line = rfc8785.dumps(record) + b"\n"
    if len(line) > MAX_RECORD:
        raise AuditError(f"an audit record of {len(line)} bytes is over the limit of {MAX_RECORD}")
    return line


def remedy(path: Path) -> str:
    """What somebody can do about a log that takes no more records."""
    return f"to start a new log, move {path.with_suffix('.*')} elsewhere, and keep them"


def _cut_torn_line(descriptor: int) -> bytes:
    """Cuts an unfinished last line off; returns it."""
    size, torn = os.fstat(descriptor).st_size, 0
    while torn < size:
        start = max(0, size - torn - MAX_RECORD)
        tail = os.pread(descriptor, size - torn - start, start)
        if (end := tail.rfind(b"\n")) >= 0:
            torn += len(tail) - end - 1
            break
        torn += len(tail)
    cut = b"".join(os.pread(descriptor, min(_CHUNK, size - at), at) for at in range(size - torn, size, _CHUNK))
    if torn:
        os.ftruncate(descriptor, size - torn)
    return cut


def _count(descriptor: int) -> int:
    """How many lines there are: a copy of the last ones has the right numbers."""
    size = os.fstat(descriptor).st_size
    return sum(os.pread(descriptor, _CHUNK, at).count(b"\n") for at in range(0, size, _CHUNK))


def _last_record(descriptor: int) -> dict[str, Any] | None:
    """The last record, which has a sequence number; {} when there is none, None where the last line is no record."""
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, 2 * MAX_RECORD, max(0, size - 2 * MAX_RECORD))
    last = tail[:-1].rpartition(b"\n")[2]
    if not size:
        return {}
    try:
        record: dict[str, Any] = json.loads(last)
        int(record["seq"])
        return record
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
