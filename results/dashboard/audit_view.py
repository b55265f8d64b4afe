"""The audit log for a page: its last records, read from the end, and whether it is as it was signed.

Verifying hashes every record, so it is done in the background and kept until the log's files change.
"""

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from policies.audit import AuditError, AuditLog
from policies.audit_check import verify
from policies.audit_query import Wanted, what
from policies.checkpoint import CheckpointError
from results.dashboard.places import mark
from results.readable import day, line, plain

RECORDS = 50
_CHUNK = 1 << 20
_MOST_READ = 16 << 20
"""Bytes that are searched for one page; the next page goes on where it ended."""


@dataclass(frozen=True)
class Entry:
    """One record."""

    seq: str
    time: str
    event: str
    user: str
    subject: str
    """The sprint or execution that it is about."""
    what: str
    raw: str


@dataclass(frozen=True)
class AuditPage:
    """Some records, newest first."""

    entries: list[Entry]
    older: int | None
    """Where the next page begins; None at the log's beginning."""


def audit_page(path: Path, before: int | None, sprint: str = "") -> AuditPage:
    """The records that end before byte `before` (None: the last ones); only a sprint's where one is named.

    Raises AuditError when the log cannot be read.
    """
    wanted = Wanted(sprint=sprint or None)
    entries: list[Entry] = []
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            at = end if before is None else max(0, min(before, end))
            stop = max(0, at - _MOST_READ)
            for start, raw in _backwards(file.fileno(), at):
                record = _parsed(raw)
                if record is not None and _has(wanted, record):
                    entries.append(_entry(record, raw))
                if len(entries) >= RECORDS or start <= stop:
                    return AuditPage(entries, start or None)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise AuditError(f"cannot read the audit log {path}: {error.strerror}") from None
    return AuditPage(entries, None)


def _backwards(descriptor: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Whole lines that end before `end`, last first, each with where it begins. A torn end is left out."""
    kept, at, torn = b"", end, True
    while at > 0:
        begin = max(0, at - _CHUNK)
        kept, at = os.pread(descriptor, at - begin, begin) + kept, begin
        if torn:
            torn = b"\n" not in kept
            kept = kept if torn else kept[: kept.rindex(b"\n") + 1]
        if torn:
            continue
        stop = len(kept)
        while (feed := kept.rfind(b"\n", 0, stop - 1)) >= 0:
            yield at + feed + 1, kept[feed + 1 : stop - 1]
            stop = feed + 1
        kept = kept[:stop]
    if kept and not torn:
        yield 0, kept[:-1]


def _parsed(raw: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _has(wanted: Wanted, record: dict[str, Any]) -> bool:
    try:
        return wanted.has(record)
    except (AttributeError, TypeError):
        return False


def _entry(record: dict[str, Any], raw: bytes) -> Entry:
    actor = record.get("actor")
    user = actor.get("user") if isinstance(actor, dict) else ""
    try:
        told = what(record)
    except (AttributeError, TypeError, KeyError, ValueError):
        told = ""
    subject = record.get("sprint") or record.get("execution") or ""
    return Entry(
        line(record.get("seq"), 20), day(record.get("time")), line(record.get("event"), 40), line(user, 40),
        line(subject, 80), line(told, 400), plain(raw.decode("utf-8", "replace"), 70_000),
    )  # fmt: skip


# ---- is it as it was signed? ----


@dataclass(frozen=True)
class State:
    """What is known of the log."""

    word: str
    """"not verified yet", "verifying", "ok", "broken", or "empty"."""
    text: str
    lines: tuple[str, ...] = ()


class Verifier:
    """Verifies one log in the background, as often as it changes and somebody asks."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._state = State("not verified yet", "The log has not been verified yet.")
        self._of: object = None
        self._busy = False

    def state(self) -> State:
        """What is known; begins to verify where the log is not the one that this was said of."""
        marks = self._marks()
        with self._lock:
            if marks == self._of:
                return self._state
            if not self._busy:
                self._busy = True
                threading.Thread(target=self._verify, args=(marks,), name="audit-verify", daemon=True).start()
            before = f" Before its last records came: {self._state.word}." if self._of is not None else ""
            return State("verifying", f"The log is being verified.{before}", self._state.lines)

    def _verify(self, marks: object) -> None:
        try:
            state = _verified(self._path)
        except BaseException:
            state = State("broken", "The log could not be verified.")
            raise
        finally:
            with self._lock:
                self._state, self._of, self._busy = state, marks, False

    def _marks(self) -> object:
        log = AuditLog(self._path)
        return [mark(path) for path in (log.path, log.checkpoints, log.hashes, log.key)]


def _verified(path: Path) -> State:
    try:
        found = verify(path)
    except (AuditError, CheckpointError, OSError) as error:
        return State("broken", line(str(error), 400))
    notes = tuple(line(note, 400) for note in found.notes)
    if not found.ok:
        return State(
            "broken", "The log is not as it was signed.", tuple(line(one, 400) for one in found.problems) + notes
        )
    if found.checkpoint is None:
        return State("empty", "Nothing is signed yet.", notes)
    clock = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    return State("ok", f"All {found.records} records are as they were signed (verified {clock}).", notes)
