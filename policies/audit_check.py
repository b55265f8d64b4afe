"""Verifies the audit log, and names what was done to it; proofs that a record is in it, which can be checked elsewhere.

A log that is as it was signed needs only its lines hashed. Where the root differs, the stored hashes and the history of
checkpoints tell which records were changed, dropped, inserted or moved. Proof files: C2SP tlog-proof@v1, with the
record itself as extra data.
"""

import base64
import difflib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from policies.audit import AuditError, AuditLog, Sizes, is_unsigned, last_note
from policies.checkpoint import Checkpoint, CheckpointError, Verifier, load_verifier
from policies.merkle import (
    HASH_BYTES,
    Frontier,
    inclusion_proof,
    leaf_hash,
    root_from_proof,
    stored_count,
    stored_number,
)

_PROOF = "c2sp.org/tlog-proof@v1"
_UNSIGNED = "left by a writer that died, or added by somebody; the next run takes it out, and records what it was"
_MAX_NAMED = 20
_MAX_COMPARED = 5000  # records between the first and the last difference that are compared one by one


@dataclass
class Verification:
    """What verifying found."""

    records: int = 0
    """How many records it vouches for: those that the checkpoint signs, where they are there."""
    unsigned: int = 0
    """How many lines stand after these: what a writer that died left, or somebody added. An unfinished one counts."""
    checkpoint: Checkpoint | None = None
    verifier: Verifier | None = None
    problems: list[str] = field(default_factory=list)
    """What was done to the log, one line each; empty when it is as it was signed."""
    notes: list[str] = field(default_factory=list)
    """What is as it may be after a crash."""

    @property
    def ok(self) -> bool:
        """Whether what was signed is as it was signed; `unsigned` says whether there is more."""
        return not self.problems


def verify(path: Path, against: str | None = None, verifier: Verifier | None = None) -> Verification:
    """Verifies the log at `path` with `verifier`, or the key beside it; and `against` a checkpoint kept elsewhere.

    Raises AuditError when the log cannot be read at all, and CheckpointError for a checkpoint that is none.
    """
    log, found = AuditLog(path), Verification()
    if against is None and not any(one.exists() for one in (path, log.checkpoints, log.hashes, log.key)):
        found.notes.append("nothing to verify: there is no audit log yet")
        return found
    if against is None and not log.key.exists() and not log.checkpoints.exists() and is_unsigned(log):
        found.unsigned = sum(1 for _ in log.lines())
        found.notes.append("the records are from before there were checkpoints: the next one adopts and signs them")
        return found
    try:
        found.verifier = verifier or load_verifier(log.key)
    except CheckpointError as error:
        found.problems.append(str(error))
        return found
    anchor = Checkpoint.read(against) if against is not None else None
    if anchor is not None:
        anchor.verify(found.verifier)
    sizes = log.sizes()
    found.checkpoint = _newest(log, found, sizes)
    _compare(log, found, anchor, sizes)
    if verifier is None and not log.key.exists():
        intact = "" if found.problems else "; what it signed is as it was signed"
        found.problems.append(f"the audit log's key is gone: no record can be added, and nothing runs{intact}")
    return found


def entries(path: Path) -> tuple[int | None, Iterator[dict[str, Any] | None]]:
    """What the log's lines hold, None for one that is no record, and how many of the first ones are signed.

    Signed: a checkpoint whose signature holds covers them; None where that cannot be told. Whether they are as they were
    signed, `verify` says. Raises AuditError.
    """
    log, found = AuditLog(path), Verification()
    sizes = log.sizes()
    lines = log.entries(sizes.records)
    if not log.checkpoints.exists():
        return 0 if is_unsigned(log) else None, lines
    try:
        found.verifier = load_verifier(log.key)
        note = _newest(log, found, sizes)
    except (CheckpointError, OSError):
        return None, lines
    return note.size if note is not None else None, lines


def _newest(log: AuditLog, found: Verification, sizes: Sizes) -> Checkpoint | None:
    """The last checkpoint, if its signature holds."""
    assert found.verifier is not None
    data = log.checkpoints.read_bytes()[: sizes.checkpoints] if log.checkpoints.exists() else b""
    note, rest = last_note(data)
    if note is None:
        found.problems.append("the audit log's checkpoints are gone: nothing says what was signed")
        return None
    if rest:
        found.notes.append("the last checkpoint is torn: a writer died, and the next one repairs it")
    try:
        note.verify(found.verifier)
        return note
    except CheckpointError as error:
        found.problems.append(str(error))
        return None


def _compare(log: AuditLog, found: Verification, anchor: Checkpoint | None, sizes: Sizes) -> None:
    """Hashes every record, and compares the tree at the sizes that were signed."""
    wanted = {note.size: b"" for note in (found.checkpoint, anchor) if note is not None}
    tree = Frontier()
    if 0 in wanted:
        wanted[0] = tree.root()
    for line in log.lines(sizes.records):
        tree.append(leaf_hash(line))
        if tree.size in wanted:
            wanted[tree.size] = tree.root()
    note = found.checkpoint
    found.records = min(note.size, tree.size) if note is not None else 0
    found.unsigned = tree.size - found.records
    if note is not None and wanted[note.size] != note.root:
        found.problems += list(_named(log, note, tree.size))
    elif found.unsigned:
        more = "1 more record after them is" if found.unsigned == 1 else f"{found.unsigned} more records after them are"
        found.notes.append(f"{more} not signed: {_UNSIGNED}")
    if not _ends_with_newline(log.path, sizes.records):
        found.unsigned += 1
        found.notes.append(f"an unfinished line after them is not signed: {_UNSIGNED}")
    if not found.problems and sizes.hashes > stored_count(tree.size) * HASH_BYTES:
        found.problems.append(f"the log was cut off after {tree.size} records: the hashes of more are there")
    if anchor is not None and wanted[anchor.size] != anchor.root:
        if tree.size < anchor.size:
            found.problems.append(f"the log was truncated: {_missing(tree.size, anchor.size)}")
        else:
            found.problems.append(
                f"the first {anchor.size} records are not those that the checkpoint kept elsewhere signed"
            )


def _named(log: AuditLog, note: Checkpoint, size: int) -> Iterator[str]:
    """What was done to a log whose root is not the signed one."""
    signed = _signed_leaves(log, note)
    if signed is not None:
        there = [leaf_hash(line) for line in log.lines()]
        yield from _differences(signed, there)
        return
    low = 0
    for earlier in _history(log):
        if earlier.size > size or _root_at(log, earlier.size) != earlier.root:
            yield f"something was done to the records {_span(low, max(earlier.size, low + 1))} or before"
            return
        low = earlier.size
    yield f"the audit log is not what was signed up to record {note.size - 1}"


def _signed_leaves(log: AuditLog, note: Checkpoint) -> list[bytes] | None:
    """The hashes of the records as they were signed, from the stored hashes, if these are still the signed ones."""
    data = _stored_hashes(log)
    if len(data) < stored_count(note.size) * HASH_BYTES:
        return None
    places = [stored_number(0, index) * HASH_BYTES for index in range(note.size)]
    leaves = [data[at : at + HASH_BYTES] for at in places]
    tree = Frontier()
    for leaf in leaves:
        tree.append(leaf)
    return leaves if tree.root() == note.root else None


def _differences(signed: list[bytes], there: list[bytes]) -> Iterator[str]:
    """Names changed, dropped, inserted and moved records, by the numbers that they were signed under."""
    start = 0
    while start < min(len(signed), len(there)) and signed[start] == there[start]:
        start += 1
    if start == len(there):
        yield f"the log was truncated: {_missing(start, len(signed))}"
        return
    end = 0
    while end < min(len(signed), len(there)) - start and signed[-1 - end] == there[-1 - end]:
        end += 1
    before, after = signed[start : len(signed) - end], there[start : len(there) - end]
    if max(len(before), len(after)) > _MAX_COMPARED:
        yield f"records {_span(start, start + len(before))} were changed, or others put in their place"
        return
    was, lines = {leaf: start + n for n, leaf in enumerate(before)}, []
    matcher = difflib.SequenceMatcher(a=before, b=after, autojunk=False)
    for kind, a1, a2, b1, b2 in matcher.get_opcodes():
        if kind == "equal":
            continue
        gone = [start + n for n in range(a1, a2) if before[n] not in after]
        moved = [was[leaf] for leaf in after[b1:b2] if leaf in was]
        new = sum(leaf not in was for leaf in after[b1:b2])
        lines += [f"record {number} was moved" for number in moved]
        changed = min(len(gone), new)
        lines += [f"record {number} was changed" for number in gone[:changed]]
        lines += [f"record {number} was dropped" for number in gone[changed:]]
        if new > changed:
            more = new - changed
            lines.append(f"{more} {'record was' if more == 1 else 'records were'} inserted before record {start + a2}")
    yield from lines[:_MAX_NAMED]
    if len(lines) > _MAX_NAMED:
        yield f"and {len(lines) - _MAX_NAMED} more such records"


def _history(log: AuditLog) -> Iterator[Checkpoint]:
    """Every whole checkpoint, oldest first."""
    text = log.checkpoints.read_text(errors="replace")
    lines = text.split("\n")
    for at in range(0, len(lines) - 5, 5):
        try:
            yield Checkpoint.read("\n".join(lines[at : at + 5]) + "\n")
        except CheckpointError:
            return


def _root_at(log: AuditLog, size: int) -> bytes:
    tree = Frontier()
    for line in log.lines():
        if tree.size == size:
            break
        tree.append(leaf_hash(line))
    return tree.root()


def _ends_with_newline(path: Path, size: int) -> bool:
    if size == 0:
        return True
    with path.open("rb") as file:
        return os.pread(file.fileno(), 1, size - 1) == b"\n"


def _missing(start: int, end: int) -> str:
    return f"record {start} is missing" if end - start == 1 else f"records {_span(start, end)} are missing"


def _span(start: int, end: int) -> str:
    return str(start) if end - start == 1 else f"{start} to {end - 1}"


# ---- proofs ----


def prove(path: Path, sequence: int) -> str:
    """A proof file for one record. Raises AuditError, CheckpointError."""
    log, found = AuditLog(path), Verification()
    found.verifier = load_verifier(log.key)
    note = _newest(log, found, log.sizes())
    if note is None:
        raise AuditError(found.problems[0])
    if not 0 <= sequence < note.size:
        raise AuditError(f"there is no record {sequence} under the newest checkpoint, which has {note.size} records")
    line = next((line for number, line in enumerate(log.lines()) if number == sequence), b"")
    for stored in (_stored_hashes, _made_hashes):
        data = stored(log)
        if len(data) < stored_count(note.size) * HASH_BYTES:
            continue
        hashes = [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]
        steps = inclusion_proof(sequence, note.size, hashes.__getitem__)
        if root_from_proof(leaf_hash(line), sequence, note.size, steps) == note.root:
            break
    else:
        raise AuditError("the audit log is not what was signed: `labsandbox audit verify` says what was done to it")
    body = [_PROOF, f"extra {_base64(line)}", f"index {sequence}", *map(_base64, steps), ""]
    return "\n".join(body) + "\n" + note.text


def _stored_hashes(log: AuditLog) -> bytes:
    try:
        return log.hashes.read_bytes()
    except OSError:
        return b""


def _made_hashes(log: AuditLog) -> bytes:
    """The same from the records, where the stored ones are lost."""
    tree = Frontier()
    return b"".join(one for line in log.lines() for one in tree.append(leaf_hash(line)))


def check_proof(text: str, verifier: Verifier) -> tuple[dict[str, Any], Checkpoint]:
    """The record that a proof file proves, and the checkpoint that it is under. Raises CheckpointError."""
    head, _, note_text = text.partition("\n\n")
    lines = head.split("\n")
    note = Checkpoint.read(note_text)
    note.verify(verifier)
    try:
        if lines[0] != _PROOF or not lines[1].startswith("extra ") or not lines[2].startswith("index "):
            raise ValueError("not a proof of a record")
        entry = base64.b64decode(lines[1].removeprefix("extra "), validate=True)
        index = int(lines[2].removeprefix("index "))
        steps = [base64.b64decode(line, validate=True) for line in lines[3:]]
        root = root_from_proof(leaf_hash(entry), index, note.size, steps)
        record = json.loads(entry)
    except (ValueError, IndexError, RecursionError) as error:
        raise CheckpointError(f"the proof makes no sense: {error}") from None
    if root != note.root or not isinstance(record, dict):
        raise CheckpointError("the record is not in the log that the checkpoint signs")
    return record, note


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
