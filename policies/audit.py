"""The append-only audit log: one canonical JSON line (RFC 8785) for each decision, start, limit and end.

Lines are appended under a file lock and synced before `append` returns, so that several processes may write
and a crash loses at most the line in flight. A torn last line is cut off by the next writer, which records it.
"""

import fcntl
import getpass
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import rfc8785

SCHEMA = "labsandbox.audit/1"
MAX_RECORD = 65_535
"""Bytes of one record. Output and code are recorded by digest, so a record that is longer is a bug."""


class AuditError(OSError):
    """The log cannot be written or read; nothing may run without it."""


class AuditLog:
    """The log in one file. Safe for concurrent writers on one machine."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: str, **fields: Any) -> int:
        """Adds one record and returns its sequence number (from 0). Durable when it returns.

        `fields` must be JSON data; None values are kept. Raises AuditError.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(self.path, flags, 0o600)
        except OSError as error:
            raise AuditError(f"cannot open the audit log {self.path}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            sequence = self._repair(descriptor)
            self._write(descriptor, sequence, event, fields)
            os.fsync(descriptor)
            return sequence
        except OSError as error:
            raise AuditError(f"cannot write the audit log {self.path}: {error.strerror or error}") from None
        finally:
            os.close(descriptor)

    def records(self) -> Iterator[dict[str, Any]]:
        """Every whole record, oldest first. Raises AuditError where a line is no record."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        except OSError as error:
            raise AuditError(f"cannot read the audit log {self.path}: {error.strerror}") from None
        with file:
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):
                    return  # a writer is at work, or died: the next writer repairs it
                try:
                    record = json.loads(line)
                except ValueError:
                    raise AuditError(f"line {number + 1} of {self.path} is no record") from None
                yield record

    def _repair(self, descriptor: int) -> int:
        """Cuts a torn last line off and says so in the log; returns the next sequence number."""
        size = os.fstat(descriptor).st_size
        tail = os.pread(descriptor, 2 * MAX_RECORD, max(0, size - 2 * MAX_RECORD))
        whole = tail[: tail.rfind(b"\n") + 1]
        last = whole[:-1].rpartition(b"\n")[2]
        try:
            sequence = json.loads(last)["seq"] + 1 if last else 0
        except (ValueError, TypeError, KeyError):
            raise AuditError("its last record is damaged; keep the file, and start a new one") from None
        torn = len(tail) - len(whole)
        if torn:
            os.ftruncate(descriptor, size - torn)
            self._write(descriptor, sequence, "log-repaired", {"torn_bytes": torn})
            sequence += 1
        return int(sequence)

    def _write(self, descriptor: int, sequence: int, event: str, fields: dict[str, Any]) -> None:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        record = {
            "schema": SCHEMA,
            "seq": sequence,
            "time": now,
            "event": event,
            "actor": {"uid": os.getuid(), "user": _user()},
            **fields,
        }
        line = rfc8785.dumps(record) + b"\n"
        if len(line) > MAX_RECORD:
            raise AuditError(f"an audit record of {len(line)} bytes is over the limit of {MAX_RECORD}")
        # One write call: O_APPEND makes it land whole, unless the disk fills, which the next writer repairs.
        if os.write(descriptor, line) != len(line):
            raise OSError(28, "no space left for the audit log")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
