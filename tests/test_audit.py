"""Promises of the audit log: canonical lines, numbered without gaps, whole after a crash and with many writers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.audit import AuditError, AuditLog


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


def test_only_its_owner_can_read_the_log(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "deep" / "audit.jsonl")
    log.append("x")
    assert log.path.stat().st_mode & 0o777 == 0o600
    assert log.path.parent.stat().st_mode & 0o777 == 0o700


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_torn_last_line_is_cut_off_and_recorded_and_nothing_else_is_lost(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    log = AuditLog(tmp_path_factory.mktemp("log") / "audit.jsonl")
    for number in range(3):
        log.append("event", number=number)
    whole = log.path.read_bytes()
    last = len(whole.rstrip(b"\n").rpartition(b"\n")[0]) + 1
    cut = data.draw(st.integers(last + 1, len(whole) - 1))
    log.path.write_bytes(whole[:cut])
    log.append("after")
    events = [record["event"] for record in log.records()]
    assert events == ["event", "event", "log-repaired", "after"]
    assert [record["seq"] for record in log.records()] == [0, 1, 2, 3]


def test_many_processes_write_at_once_without_gaps_or_mixed_lines(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    program = (
        "import sys; from pathlib import Path; from policies.audit import AuditLog\n"
        "log = AuditLog(Path(sys.argv[1]))\n"
        "for n in range(50): log.append('event', writer=sys.argv[2], n=n, pad='x' * 3000)\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(path), str(w)]) for w in range(4)]
    assert [writer.wait() for writer in writers] == [0, 0, 0, 0]
    records = list(AuditLog(path).records())
    assert [record["seq"] for record in records] == list(range(200))
    for writer in range(4):
        assert [record["n"] for record in records if record["writer"] == str(writer)] == list(range(50))


def test_a_record_that_is_too_long_is_refused_and_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.append("fine")
    with pytest.raises(AuditError):
        log.append("long", text="x" * 70_000)
    assert [record["event"] for record in log.records()] == ["fine"]


def test_a_log_that_is_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("")
    (tmp_path / "audit.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AuditError):
        AuditLog(tmp_path / "audit.jsonl").append("x")


def test_a_damaged_last_record_stops_the_writers_instead_of_being_papered_over(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.path.write_text("this is no record\n")
    with pytest.raises(AuditError):
        log.append("x")
    assert log.path.read_text() == "this is no record\n"
