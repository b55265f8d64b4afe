"""Promises of the audit log: canonical lines, numbered and signed, whole after a crash and with many writers.

And that tampering is found and named: a changed, dropped, inserted, moved or truncated record.
"""

import ast
import csv
import io
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import rfc8785
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from orchestrator.cli.audit import app
from orchestrator.errors import UsageProblem
from policies.audit import AuditError, AuditLog
from policies.audit_check import check_proof, entries, prove, verify
from policies.audit_query import TEXTS, Wanted, export, ocsf, parse_since, what
from policies.checkpoint import CheckpointError, load_verifier

SLOW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def log_of(folder: Path, count: int, batch: int = 1) -> AuditLog:
    log = AuditLog(folder / "audit.jsonl")
    for start in range(0, count, batch):
        log.append_all([("event", {"number": number}) for number in range(start, min(start + batch, count))])
    return log


def files(log: AuditLog) -> list[Path]:
    return [log.path, log.hashes, log.checkpoints]


def test_every_record_is_one_canonical_line_with_time_and_actor(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    assert [log.append("decision", allow=True), log.append("end", outcome="completed")] == [0, 1]
    lines = (tmp_path / "audit.jsonl").read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines):
        record = json.loads(line)
        assert line == rfc8785.dumps(record) + b"\n"
        assert record["seq"] == number
        assert record["time"].endswith("Z")
        assert record["actor"]["uid"] == os.getuid()


def test_only_its_owner_can_read_the_log_and_its_key(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "deep" / "audit.jsonl")
    log.append("x")
    for path in (log.path, log.checkpoints, log.key):
        assert path.stat().st_mode & 0o777 == 0o600
    assert log.path.parent.stat().st_mode & 0o777 == 0o700


def test_a_batch_is_one_commit_with_one_checkpoint(tmp_path: Path) -> None:
    log = log_of(tmp_path, 250, batch=100)
    assert log.checkpoints.read_text().count("\u2014") == 1 + 3
    assert [record["number"] for record in log.records()] == list(range(250))
    assert verify(log.path).ok


# ---- crashes ----


@SLOW
@given(before=st.integers(0, 9), batch=st.integers(1, 3), data=st.data())
def test_a_writer_killed_at_any_byte_leaves_a_log_that_verifies_and_the_next_one_mends(
    tmp_path_factory: pytest.TempPathFactory, before: int, batch: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("log")
    log = log_of(folder, before)
    log.append("last before")
    old = [path.read_bytes() for path in files(log)]
    log.append_all([("killed", {"n": n}) for n in range(batch)])
    new = [path.read_bytes() for path in files(log)]
    # The order of a commit: records, then hashes, then the checkpoint. It is cut after so many bytes.
    grown = [after[len(prior) :] for prior, after in zip(old, new, strict=True)]
    cut = data.draw(st.integers(0, sum(map(len, grown))))
    for path, prior, more in zip(files(log), old, grown, strict=True):
        path.write_bytes(prior + more[:cut])
        cut = max(0, cut - len(more))
    found = verify(log.path)
    assert found.ok, found.problems
    there, torn = list(log.lines()), not log.path.read_bytes().endswith(b"\n")
    signed = found.checkpoint.size if found.checkpoint else 0
    assert signed in (before + 1, before + 1 + batch)
    AuditLog(log.path).append("after")
    again = verify(log.path)
    assert again.ok and again.notes == []
    records = list(log.records())
    assert [record["seq"] for record in records] == list(range(len(records)))
    # What was signed stays; what was not is taken out, and that is on record.
    assert list(log.lines())[:signed] == there[:signed]
    mended = [record for record in records if record["event"] == "log-repaired"]
    assert len(mended) == (torn or len(there) > signed)
    assert [record.get("dropped_records", 0) for record in mended] == [len(there) - signed] * len(mended)
    assert [record["event"] for record in records[signed:]] == ["log-repaired"] * len(mended) + ["after"]


WRITER = (
    "import sys; from pathlib import Path; from policies.audit import AuditLog\n"
    "log = AuditLog(Path(sys.argv[1]))\n"
    "n = 0\n"
    "while int(sys.argv[3]) == 0 or n < int(sys.argv[3]):\n"
    "    log.append('event', writer=sys.argv[2], n=n, pad='x' * 3000); n += 1\n"
)


def test_many_processes_write_at_once_without_gaps_or_mixed_lines(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(w), "50"]) for w in range(4)]
    assert [writer.wait() for writer in writers] == [0, 0, 0, 0]
    records = list(AuditLog(path).records())
    assert [record["seq"] for record in records] == list(range(200))
    for writer in range(4):
        assert [record["n"] for record in records if record["writer"] == str(writer)] == list(range(50))
    assert verify(path).ok


def test_writers_that_are_killed_again_and_again_lose_nothing_that_was_there(tmp_path: Path) -> None:
    path, chance = tmp_path / "audit.jsonl", random.Random(7)
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(w), "0"]) for w in range(2)]
    while not path.with_suffix(".vkey").exists():
        time.sleep(0.05)
    for kill in range(16):
        time.sleep(0.4 + chance.random() * 0.2)
        writers[kill % 2].kill()
        writers[kill % 2].wait()
        found = verify(path)
        assert found.ok and found.checkpoint is not None, found.problems
        seen = list(AuditLog(path).lines())[: found.checkpoint.size]
        writers[kill % 2] = subprocess.Popen([sys.executable, "-c", WRITER, str(path), f"k{kill}", "0"])
        assert list(AuditLog(path).lines())[: len(seen)] == seen
    for writer in writers:
        writer.kill()
        writer.wait()
    AuditLog(path).append("after")
    found = verify(path)
    assert found.ok, found.problems
    records = list(AuditLog(path).records())
    assert [record["seq"] for record in records] == list(range(len(records)))


def test_lost_hashes_are_made_again(tmp_path: Path) -> None:
    log = log_of(tmp_path, 20)
    for damage in (b"", b"\0" * 100, log.hashes.read_bytes()[:-5], os.urandom(len(log.hashes.read_bytes()))):
        log.hashes.write_bytes(damage)
        AuditLog(log.path).append("more")
        assert verify(log.path).ok
    log.hashes.unlink()
    AuditLog(log.path).append("more")
    assert verify(log.path).ok


def test_a_log_from_before_there_were_checkpoints_is_adopted_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    old = [{"schema": "labsandbox.audit/1", "seq": n, "event": "old"} for n in range(3)]
    path.write_bytes(b"".join(rfc8785.dumps(record) + b"\n" for record in old))
    before = verify(path)
    assert (before.ok, before.records, before.unsigned) == (True, 0, 3) and "adopts" in before.notes[0]
    assert AuditLog(path).append("new") == 4
    records = list(AuditLog(path).records())
    assert (records[3]["event"], records[3]["records"]) == ("log-adopted", 3)
    assert verify(path).ok


def test_a_record_that_is_too_long_is_refused_and_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.append("fine")
    with pytest.raises(AuditError):
        log.append("long", text="x" * 70_000)
    assert log.append("fine again") == 1
    assert [record["event"] for record in log.records()] == ["fine", "fine again"]
    assert verify(log.path).ok


def test_a_log_that_is_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("")
    (tmp_path / "audit.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AuditError):
        AuditLog(tmp_path / "audit.jsonl").append("x")


# ---- tampering ----


def tampered(lines: list[bytes], kind: str, at: int, other: int) -> tuple[list[bytes], str]:
    """The lines after somebody was at work, and what must be said of it."""
    lines = list(lines)
    if kind == "changed":
        record = json.loads(lines[at])
        record["number"] = "forged"
        lines[at] = rfc8785.dumps(record)
        return lines, f"record {at} was changed"
    if kind == "dropped":
        del lines[at]
        return lines, f"record {at} was dropped" if at < len(lines) else f"truncated: record {at} is missing"
    if kind == "inserted":
        record = {**json.loads(lines[at]), "number": "forged"}
        lines.insert(at, rfc8785.dumps(record))
        return lines, f"inserted before record {at}"
    if kind == "moved":
        lines[at], lines[other] = lines[other], lines[at]
        return lines, "was moved"
    del lines[at:]
    return lines, "the log was truncated: record"


KINDS = st.sampled_from(["changed", "dropped", "inserted", "moved", "truncated"])


@SLOW
@given(kind=KINDS, at=st.integers(0, 29), other=st.integers(0, 29), batch=st.sampled_from([1, 7]))
def test_a_changed_dropped_inserted_moved_or_truncated_record_is_found_and_named(
    tmp_path_factory: pytest.TempPathFactory, kind: str, at: int, other: int, batch: int
) -> None:
    if kind == "moved" and at == other:
        return
    log = log_of(tmp_path_factory.mktemp("log"), 30, batch)
    lines, said = tampered(list(log.lines()), kind, at, other)
    log.path.write_bytes(b"".join(line + b"\n" for line in lines))
    found = verify(log.path)
    assert not found.ok
    assert any(said in problem for problem in found.problems), (said, found.problems)
    if kind == "truncated":
        with pytest.raises(AuditError, match="not what was signed"):
            AuditLog(log.path).append("on top")


def test_tampering_with_the_stored_hashes_as_well_is_still_found(tmp_path: Path) -> None:
    log = log_of(tmp_path, 30)
    lines, _ = tampered(list(log.lines()), "changed", 11, 0)
    log.path.write_bytes(b"".join(line + b"\n" for line in lines))
    log.hashes.unlink()
    found = verify(log.path)
    assert found.problems == ["something was done to the records 11 or before"]


def test_records_that_nobody_signed_are_never_signed_afterwards(tmp_path: Path) -> None:
    # Whoever may write the files, but has no key, cuts back the checkpoints and writes the end anew.
    log = log_of(tmp_path, 8)
    notes = log.checkpoints.read_text().split("\n")
    log.checkpoints.write_text("\n".join(notes[: 5 * 6]) + "\n")  # of sizes 0 to 5
    lines = list(log.lines())
    forged = [rfc8785.dumps({**json.loads(line), "number": "forged"}) for line in lines[5:]]
    log.path.write_bytes(b"".join(line + b"\n" for line in [*lines[:5], *forged]))
    assert "3 more records after them are not signed" in verify(log.path).notes[0]
    AuditLog(log.path).append("after")
    records = list(log.records())
    assert [record["event"] for record in records[5:]] == ["log-repaired", "after"]
    assert records[5]["dropped_records"] == 3 and len(records[5]["dropped_sha256"]) == 64
    assert what(records[5]).startswith("dropped 3 unsigned records (")
    assert verify(log.path).ok


@pytest.mark.parametrize("copied", [slice(0, 1), slice(3, 4), slice(2, 4), slice(0, 4)])
def test_lines_on_top_with_numbers_of_old_are_taken_out_too(tmp_path: Path, copied: slice) -> None:
    log = log_of(tmp_path, 4)
    lines = list(log.lines())
    with log.path.open("ab") as file:
        file.writelines(line + b"\n" for line in lines[copied])
    AuditLog(log.path).append("after")
    assert verify(log.path).ok and [record["seq"] for record in log.records()] == list(range(6))


def test_a_log_that_was_cut_back_without_its_hashes_is_found(tmp_path: Path) -> None:
    log = log_of(tmp_path, 5)
    early = [path.read_bytes() for path in (log.path, log.checkpoints)]
    log.append("later")
    for path, data in zip((log.path, log.checkpoints), early, strict=True):
        path.write_bytes(data)
    assert verify(log.path).problems == ["the log was cut off after 5 records: the hashes of more are there"]


@pytest.mark.parametrize(
    "left", [["key"], ["key", "hashes"], ["hashes"], ["checkpoints"], ["key", "path"], ["path", "hashes"]]
)
def test_a_log_of_which_a_part_is_gone_is_never_begun_anew_in_its_place(tmp_path: Path, left: list[str]) -> None:
    log = log_of(tmp_path, 5)
    for name in {"key", "hashes", "checkpoints", "path"} - set(left):
        getattr(log, name).unlink()
    assert not verify(log.path).ok
    with pytest.raises(AuditError, match="start a new log"):
        AuditLog(log.path).append("on top")


def test_a_signed_log_cannot_be_passed_off_as_one_from_before_there_were_checkpoints(tmp_path: Path) -> None:
    log = log_of(tmp_path, 5)
    first_note = "\n".join(log.checkpoints.read_text().split("\n")[:5]) + "\n"
    old = rfc8785.dumps({"schema": "labsandbox.audit/1", "seq": 0, "event": "forged"}) + b"\n"
    for notes in ("", first_note):
        log.path.write_bytes(old)
        log.checkpoints.write_text(notes)
        try:
            AuditLog(log.path).append("on top")
        except AuditError:
            continue
        assert "forged" not in log.path.read_text()


@pytest.mark.parametrize("hashes", ["adopted", "begun"])
def test_a_first_writer_killed_before_it_kept_its_key_blocks_nobody(tmp_path: Path, hashes: str) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    if hashes == "adopted":
        old = [{"schema": "labsandbox.audit/1", "seq": n, "event": "old"} for n in range(3)]
        log.path.write_bytes(b"".join(rfc8785.dumps(record) + b"\n" for record in old))
    before = log.path.read_bytes() if log.path.exists() else b""
    log.append("lost")
    log.key.unlink()
    log.key.with_suffix(".vkey").unlink()
    log.path.write_bytes(before)
    if hashes == "begun":
        log.hashes.unlink()
    log.checkpoints.write_text("\n".join(log.checkpoints.read_text().split("\n")[:5]) + "\n")
    AuditLog(log.path).append("first")
    assert verify(log.path).ok


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-3] + "\n", lambda text: text.replace("labsandbox.audit", "a\x85b")]
)
def test_a_damaged_signature_is_a_problem_with_a_name(tmp_path: Path, damage: Callable[[str], str]) -> None:
    log = log_of(tmp_path, 3)
    whole = log.checkpoints.read_text()
    log.checkpoints.write_text(damage(whole))
    assert not verify(log.path).ok
    log.checkpoints.write_text(whole)
    note = verify(log.path).checkpoint
    assert note is not None
    with pytest.raises(CheckpointError):
        verify(log.path, damage(note.text))


@pytest.mark.parametrize("line", [b"[" * 100_000, b'{"seq": 1e400}', b'{"seq": null}', b"7", b"\xff"])
def test_a_line_that_is_no_record_is_told_and_nothing_crashes(tmp_path: Path, line: bytes) -> None:
    log = log_of(tmp_path, 2)
    with log.path.open("ab") as file:
        file.write(line + b"\n")
    found = verify(log.path)
    assert (found.ok, found.records, found.unsigned) == (True, 2, 1)
    signed, there = entries(log.path)
    assert signed == 2 and [record and record["seq"] for record in there][:2] == [0, 1]
    AuditLog(log.path).append("after")
    assert verify(log.path).ok and verify(log.path).unsigned == 0
    records = list(log.records())
    assert [record["event"] for record in records[2:]] == ["log-repaired", "after"]
    assert records[2]["dropped_sha256"] == sha256(line + b"\n").hexdigest()


@pytest.mark.parametrize("line", [b"no record", b'{"seq": 7}'])
def test_a_signed_record_that_was_overwritten_is_never_cut_off_as_if_it_were_unsigned(
    tmp_path: Path, line: bytes
) -> None:
    log = log_of(tmp_path, 3)
    log.path.write_bytes(b"".join(one + b"\n" for one in [*list(log.lines())[:2], line]))
    with pytest.raises(AuditError, match=r"the audit log.* start a new log, move .*/audit\.\* elsewhere"):
        AuditLog(log.path).append("after")
    assert log.path.read_bytes().endswith(line + b"\n") and not verify(log.path).ok


@pytest.mark.parametrize("tool", ["delete", "forge", "cut"])
def test_checkpoints_that_are_gone_or_forged_are_a_problem_and_stop_the_writers(tmp_path: Path, tool: str) -> None:
    log = log_of(tmp_path, 5)
    text = log.checkpoints.read_text()
    if tool == "delete":
        log.checkpoints.unlink()
    elif tool == "forge":
        log.checkpoints.write_text(text.replace("\n5\n", "\n4\n"))
    else:
        log.checkpoints.write_text("")
    assert not verify(log.path).ok
    with pytest.raises(AuditError, match="start a new log"):
        AuditLog(log.path).append("on top")


def test_a_log_that_was_cut_back_with_its_checkpoints_is_found_by_a_checkpoint_kept_elsewhere(tmp_path: Path) -> None:
    log = log_of(tmp_path, 10)
    early = [path.read_bytes() for path in files(log)]
    log.append_all([("later", {"n": n}) for n in range(5)])
    kept = verify(log.path).checkpoint
    assert kept is not None
    for path, data in zip(files(log), early, strict=True):
        path.write_bytes(data)
    assert verify(log.path).ok
    assert verify(log.path, kept.text).problems == ["the log was truncated: records 10 to 14 are missing"]
    AuditLog(log.path).append_all([("rewritten", {"n": n}) for n in range(9)])
    assert verify(log.path).ok
    assert "not those that the checkpoint kept elsewhere signed" in verify(log.path, kept.text).problems[0]


def test_a_checkpoint_kept_elsewhere_holds_while_the_log_grows_and_another_logs_does_not(tmp_path: Path) -> None:
    log = log_of(tmp_path, 10)
    kept = verify(log.path).checkpoint
    assert kept is not None
    log.append("more")
    assert verify(log.path, kept.text).ok
    (tmp_path / "other").mkdir()
    other = log_of(tmp_path / "other", 10)
    with pytest.raises(CheckpointError):
        verify(other.path, kept.text)


def test_verifying_names_a_log_that_is_not_there_and_one_without_its_key(tmp_path: Path) -> None:
    assert verify(tmp_path / "audit.jsonl").notes == ["nothing to verify: there is no audit log yet"]
    log = log_of(tmp_path, 3)
    log.key.with_suffix(".vkey").unlink()
    assert not verify(log.path).ok


# ---- proofs ----


@SLOW
@given(size=st.integers(1, 40), data=st.data())
def test_a_proof_holds_without_the_log_and_no_other_record_fits_it(
    tmp_path_factory: pytest.TempPathFactory, size: int, data: st.DataObject
) -> None:
    log = log_of(tmp_path_factory.mktemp("log"), size, batch=9)
    sequence = data.draw(st.integers(0, size - 1))
    proof = prove(log.path, sequence)
    verifier = load_verifier(log.key)
    record, note = check_proof(proof, verifier)
    assert (record["number"], note.size) == (sequence, size)
    raw = bytearray(proof.encode())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        again, _ = check_proof(bytes(raw).decode("utf-8", "replace"), verifier)
        assert again == record  # such as another spelling of the same base64
    except CheckpointError:
        pass


def test_a_proof_is_made_where_the_stored_hashes_are_lost_and_none_of_a_cut_log(tmp_path: Path) -> None:
    log = log_of(tmp_path, 9)
    for damage in (b"", b"x", b"\0" * 10_000):
        log.hashes.write_bytes(damage)
        assert check_proof(prove(log.path, 7), load_verifier(log.key))[0]["number"] == 7
    log.hashes.unlink()
    assert check_proof(prove(log.path, 8), load_verifier(log.key))[0]["number"] == 8
    log.path.write_bytes(b"".join(line + b"\n" for line in list(log.lines())[:4]))
    for sequence in (2, 6):
        with pytest.raises(AuditError, match="not what was signed"):
            prove(log.path, sequence)


def test_there_is_no_proof_of_a_record_that_is_not_there(tmp_path: Path) -> None:
    log = log_of(tmp_path, 3)
    with pytest.raises(AuditError, match="no record 3"):
        prove(log.path, 3)


# ---- what others get ----


def appended() -> set[str]:
    """Every event that the source writes into the log: the first word in calls that append, or hand on to one that does."""
    found: set[str] = set()
    for path in (*Path("executor").rglob("*.py"), *Path("policies").rglob("*.py"), Path("orchestrator/upkeep.py")):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            if re.search(
                r"audit(log\(.*\))?\.append$|self\._(note|write|commit)$", ast.unparse(call.func), re.IGNORECASE
            ):
                parts = [one for part in call.args if not isinstance(part, ast.Call) for one in ast.walk(part)]
                words = [one.value for one in parts if isinstance(one, ast.Constant)]
                found |= {word for word in words[:1] if isinstance(word, str)}
    return found


def test_every_event_that_is_written_has_a_text_of_its_own() -> None:
    assert appended() == TEXTS.keys()
    said = [what({"event": event}) for event in TEXTS]
    assert all(said) and len(set(said)) == len(said)
    assert what({"event": "of a later version"}) == ""


def test_what_was_repaired_is_told_with_all_that_was_taken_out() -> None:
    torn, dropped = {"torn_bytes": 12}, {"dropped_records": 2, "dropped_bytes": 310, "dropped_sha256": "0f"}
    assert what({"event": "log-repaired", **torn}) == "cut 12 bytes of a torn line"
    assert what({"event": "log-repaired", **dropped}) == "dropped 2 unsigned records (310 bytes)"
    one = {"dropped_records": 1, "dropped_bytes": 212}
    assert what({"event": "log-repaired", **one}) == "dropped 1 unsigned record (212 bytes)"
    both = "cut 12 bytes of a torn line, dropped 2 unsigned records (310 bytes)"
    assert what({"event": "log-repaired", **torn, **dropped}) == both


def test_filters_find_by_time_run_user_outcome_and_rule(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.append("decision", execution="a", sprint="s", rules=[{"id": "request.wall"}])
    log.append("end", execution="a", sprint="s", outcome="oom")
    log.append("network", execution="b", rule="network.host")
    records = list(log.records())

    def found(**wanted: str) -> list[int]:
        return [record["seq"] for record in records if Wanted(**wanted).has(record)]  # type: ignore[arg-type]

    assert found() == [0, 1, 2]
    assert found(execution="a") == found(sprint="s") == [0, 1]
    assert found(outcome="oom") == [1]
    assert found(rule="request") == found(rule="request.wall") == [0]
    assert found(rule="req") == []
    assert found(rule="network.host") == [2]
    assert found(user=str(os.getuid())) == [0, 1, 2]
    assert found(user="nobody else") == []
    assert Wanted(since=parse_since("1h")).has(records[0])
    assert not Wanted(since=parse_since("2999-01-01")).has(records[0])
    for wrong in ("yesterday", "", "5", "-3h"):
        with pytest.raises(ValueError, match="not a moment"):
            parse_since(wrong)


def test_exports_are_lines_of_json_rows_without_formulas_and_ocsf_events(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.append("end", execution="=cmd|' /C calc'!A0", sprint=" =1+1", outcome="failed", message='x,\n"y"')
    log.append("network", host="example.org", port=443, method="CONNECT", allow=False, rule="network.host", reason="r")
    records = list(log.records())
    assert [json.loads(line) for line in export(records, "jsonl")] == records
    rows = list(csv.DictReader(io.StringIO("".join(export(records, "csv")))))
    assert rows[0]["execution"].startswith("'=") and rows[0]["outcome"] == "failed"
    assert rows[0]["sprint"] == "' =1+1", "a spreadsheet looks behind spaces"
    for record in records:
        event = ocsf(record)
        assert event["type_uid"] == event["class_uid"] * 100 + event["activity_id"]
        assert event["category_uid"] == event["class_uid"] // 1000
        assert event["metadata"]["product"]["name"] == "labsandbox" and event["metadata"]["version"] == "1.3.0"
        assert {"time", "severity_id", "actor"} <= event.keys() and event["unmapped"] == record
        assert event["status_id"] == 2


def test_what_is_told_says_nothing_twice() -> None:
    assert what({"event": "end", "outcome": "completed", "message": "completed"}) == "completed"
    assert what({"event": "end", "outcome": "failed", "message": "exit 1"}) == "failed: exit 1"
    rules = [{"id": "request.gpu_memory"}, {"id": "request.gpu_memory"}]
    told = what({"event": "decision", "allow": False, "policy": {"name": "p"}, "rules": rules})
    assert told == "denied under p: request.gpu_memory"


@pytest.mark.parametrize("event", sorted(TEXTS))
def test_a_record_of_somebody_elses_making_is_told_without_a_crash(event: str) -> None:
    for junk in (7, "x", [1], None):
        record = dict.fromkeys(("actor", "policy", "rules", "image", "removed", "wheels", "gpus", "time"), junk)
        forged = {**record, "event": event, "signed": False}
        assert what(forged).startswith("not signed")
        assert not Wanted(execution="a", sprint="s", user="u", rule="r").has(forged)
        assert all(list(export([forged], form)) for form in ("jsonl", "csv", "ocsf"))


# ---- an auditor at the command line ----


@pytest.fixture
def auditor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("LABSANDBOX_STATE_DIR", str(tmp_path))
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def mallorys(log: AuditLog) -> bytes:
    """A line on top as anybody could write it who may write the file."""
    last = list(log.records())[-1]
    forged = {**last, "seq": last["seq"] + 1, "actor": {"uid": 7, "user": "mallory"}}
    return rfc8785.dumps(forged) + b"\n"


@pytest.mark.parametrize("kind", ["record", "garbage", "torn"])
def test_verify_vouches_for_the_signed_records_alone_and_ends_with_5_where_there_are_more(
    tmp_path: Path, auditor: Callable[..., Result], kind: str
) -> None:
    log = log_of(tmp_path, 5)
    assert auditor("verify").exit_code == 0
    with log.path.open("ab") as file:
        file.write({"record": mallorys(log), "garbage": b"no record\n", "torn": b'{"seq":'}[kind])
    done = auditor("verify")
    assert done.exit_code == 5 and done.stdout.startswith("✓ 5 records, as signed by "), done.output
    said = "an unfinished line after them is not signed" if kind == "torn" else "1 more record after them is not signed"
    assert f"! {said}: left by a writer that died, or added by somebody" in done.stdout
    told = json.loads(auditor("verify", "--json").stdout)
    assert (told["ok"], told["records"], told["unsigned"], told["checkpoint_size"]) == (False, 5, 1, 5)
    root = log.checkpoints.read_text().splitlines()[-3]
    assert told["root"] == root and f"(root {root})" in done.stdout
    log.append("after")
    assert auditor("verify").exit_code == 0
    log.path.write_bytes(log.path.read_bytes().replace(b'"number":2', b'"number":7'))
    assert auditor("verify").exit_code == 1


def test_an_unsigned_record_is_marked_wherever_it_is_shown(tmp_path: Path, auditor: Callable[..., Result]) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.append("end", execution="e1", outcome="failed", message="m")
    with log.path.open("ab") as file:
        file.write(mallorys(log))
    shown = auditor("log").stdout.splitlines()
    assert "mallory" in shown[1] and "not signed: failed: m" in shown[1] and "not signed" not in shown[0]
    assert [record.get("signed") for record in json.loads(auditor("log", "--json").stdout)] == [None, False]
    assert "end  (not signed)" in auditor("show", "e1").stdout
    assert "not signed: failed: m" in auditor("export", "--format", "csv").stdout
    assert '"signed":false' in auditor("export").stdout


def test_one_line_that_is_no_record_hides_none_of_the_others(tmp_path: Path, auditor: Callable[..., Result]) -> None:
    log = log_of(tmp_path, 4)
    with log.path.open("ab") as file:
        file.write(b"no record\n")
    done = auditor("log")
    assert done.exit_code == 0 and len(done.stdout.splitlines()) == 4
    assert done.stderr.splitlines() == ["line 5 of the audit log is no record (labsandbox audit verify)"]


def test_a_dropped_record_leaves_its_number_bytes_and_digest(tmp_path: Path, auditor: Callable[..., Result]) -> None:
    log = log_of(tmp_path, 2)
    forged = mallorys(log)
    with log.path.open("ab") as file:
        file.write(forged + b"torn")
    AuditLog(log.path).append("after")
    repaired = list(log.records())[2]
    assert (repaired["dropped_records"], repaired["dropped_bytes"]) == (1, len(forged))
    assert repaired["dropped_sha256"] == sha256(forged).hexdigest()
    assert (repaired["torn_bytes"], repaired["torn_sha256"]) == (4, sha256(b"torn").hexdigest())
    assert f"dropped 1 unsigned record ({len(forged)} bytes)" in auditor("log").stdout


def test_a_log_without_its_key_is_not_whole_and_every_refusal_says_how_to_start_a_new_one(
    tmp_path: Path, auditor: Callable[..., Result]
) -> None:
    log = log_of(tmp_path, 2)
    verifier = str(load_verifier(log.key))
    log.key.unlink()
    done = auditor("verify")
    assert done.exit_code == 1 and "✗ the audit log's key is gone" in done.stdout
    assert f"to start a new log, move {tmp_path}/audit.* elsewhere, and keep them" in done.stderr
    assert auditor("verify", "--key", verifier).exit_code == 0, "a copy that somebody verifies has no key"
    with pytest.raises(AuditError, match=r"the audit log's key is gone.*start a new log, move .*/audit\.\*"):
        AuditLog(log.path).append("after")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for path in tmp_path.glob("audit.*"):
        path.rename(elsewhere / path.name)
    AuditLog(log.path).append("first")
    assert verify(log.path).ok


def test_no_log_is_told_as_one(tmp_path: Path, auditor: Callable[..., Result]) -> None:
    done = auditor("log")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "there is no audit log yet\n")
    done = auditor("verify")
    assert (done.exit_code, done.stdout) == (0, "nothing to verify: there is no audit log yet\n")
    log = log_of(tmp_path, 2)
    log.path.unlink()
    assert "records are gone" in auditor("log").stderr
    assert "the log was truncated: records 0 to 1 are missing" in auditor("verify").stdout


def test_filters_take_ids_as_show_does_and_say_what_is_no_filter(
    tmp_path: Path, auditor: Callable[..., Result]
) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.append("start", execution="abc1", sprint="sprint_2026")
    log.append("end", execution="abd1", sprint="2027", outcome="oom", message="m")

    def found(*options: str) -> list[int]:
        return [record["seq"] for record in json.loads(auditor("log", "--json", *options).stdout)]

    assert found("--sprint", "2026") == found("--sprint", "sprint_2026") == found("--execution", "abc") == [0]
    assert found("--sprint", "2027") == found("--sprint", "sprint_2027") == found("--outcome", "oom") == [1]
    with pytest.raises(UsageProblem, match="2 executions in the audit log begin with 'ab'"):
        raise auditor("log", "--execution", "ab").exception or AssertionError
    with pytest.raises(UsageProblem, match=r"--outcome: 'foo' is none; there are completed, failed, .*oom"):
        raise auditor("log", "--outcome", "foo").exception or AssertionError
    for option in ("--rule", "--user", "--execution"):
        done = auditor("log", option, "nonesuch")
        assert (done.exit_code, done.stdout, done.stderr) == (0, "", "no record of the audit log matches\n")


def test_a_sweep_belongs_to_every_execution_that_it_removed(tmp_path: Path, auditor: Callable[..., Result]) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.append("start", execution="abc", sprint="sprint_1")
    log.append("start", execution="other")
    log.append("sweep", backend="oci", removed=["abc", "gone"])
    for name in ("abc", "sprint_1"):
        shown = auditor("show", name).stdout
        assert "sweep: removed afterwards: the process that ran it had died" in shown and "other" not in shown
    assert [record["seq"] for record in json.loads(auditor("log", "--execution", "abc", "--json").stdout)] == [0, 2]
