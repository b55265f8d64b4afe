"""`labsandbox audit`: what was decided, what ran, how it ended, and whether anybody touched the record of it."""

import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from orchestrator.cli import options
from orchestrator.cli.terminal import console, harmless, note, one_line, print_json
from orchestrator.errors import UsageProblem
from policies.audit import AuditError, AuditLog, remedy
from policies.audit_check import Verification, check_proof, entries, prove, verify
from policies.audit_query import Format, Wanted, executions_of, export, marked, parse_since, what
from policies.checkpoint import CheckpointError, Verifier, load_verifier
from policies.state import audit_path

app = typer.Typer(no_args_is_help=True, help="The audit log of every policy decision, start, limit and end.")

Since = Annotated[str | None, typer.Option("--since", help='From then on: "2026-11-23", "2h", "7d".')]
Execution = Annotated[
    str | None, typer.Option("--execution", help="Only this execution's; the beginning of its id will do.")
]
Sprint = Annotated[str | None, typer.Option("--sprint", help="Only this sprint's: sprint_ID or ID.")]
User = Annotated[str | None, typer.Option("--user", help="Only this user's (name or uid).")]
Outcome = Annotated[str | None, typer.Option("--outcome", help="Only with this outcome, such as oom.")]
Rule = Annotated[str | None, typer.Option("--rule", help="Only where this rule spoke, such as network.host.")]
Key = Annotated[
    str | None, typer.Option("--key", help="A verifier key, or a file with one; default: this machine's log's.")
]


@app.command("log")
def log(
    last: Annotated[int, typer.Option("--last", help="How many records; 0 for all.", min=0)] = 50,
    since: Since = None,
    execution: Execution = None,
    sprint: Sprint = None,
    user: User = None,
    outcome: Outcome = None,
    rule: Rule = None,
    as_json: options.Json = False,
) -> None:
    """The records, oldest first. One that no checkpoint covers is marked: not signed.

    In --json such a record has "signed": false.
    """
    records = list(_chosen(since, execution, sprint, user, outcome, rule))
    records = records[-last:] if last else records
    if as_json:
        print_json(records)
        return
    for record in records:
        actor = record.get("actor")
        name = actor.get("user", "") if isinstance(actor, dict) else ""
        # Lines, not a table: they stay readable in a narrow terminal, and can be searched.
        cells = (
            record.get("seq"),
            _moment(record),
            name,
            record.get("execution") or "–",
            record.get("event"),
            what(record),
        )
        console().print("  ".join(one_line(str(cell)) for cell in cells), soft_wrap=True)


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(metavar="ID", help="An execution's or sprint's id, or the beginning of one.")],
    as_json: options.Json = False,
) -> None:
    """Everything about one execution or sprint, in order, with the sweeps that removed what it left."""
    records = list(_records())
    ids = {str(record["sprint"]) for record in records if record.get("sprint")}
    wanted = _begun("execution or sprint", name, ids | {one for record in records for one in executions_of(record)})
    if wanted is None:
        raise UsageProblem(f"no execution or sprint in the audit log begins with {name!r}")
    own = {str(record["execution"]) for record in records if record.get("execution") and record.get("sprint") == wanted}
    records = [
        record
        for record in records
        if record.get("sprint") == wanted or not (own | {wanted}).isdisjoint(executions_of(record))
    ]
    if as_json:
        print_json(records)
        return
    for record in records:
        event = one_line(str(record.get("event")))
        if event == "sweep":
            event += ": removed afterwards: the process that ran it had died, or its time was over"
        mark = "  (not signed)" if record.get("signed") is False else ""
        console().print(
            f"{one_line(str(record.get('seq')))}  {_moment(record)}  {event}{mark}", style="bold", soft_wrap=True
        )
        rest = {key: value for key, value in record.items() if key not in _SHOWN}
        text = yaml.safe_dump(rest, sort_keys=True, allow_unicode=False, width=110)
        console().print("\n".join(f"    {line}" for line in harmless(text).splitlines()), soft_wrap=True)


_SHOWN = {"seq", "time", "event", "schema", "signed"}


@app.command("verify")
def verify_log(
    against: Annotated[
        Path | None, typer.Option("--against", help="A checkpoint that was kept elsewhere.", show_default=False)
    ] = None,
    key: Key = None,
    as_json: options.Json = False,
) -> None:
    """Say whether the log is as it was signed; name what was changed, dropped, inserted or moved.

    Exit status: 0 every record is as it was signed; 1 something was done to the log, or a part of it is gone; 5 what was
    signed is as it was, but more stands after it that nobody signed, left by a crash or added by somebody. In --json,
    "records" are the signed ones, "unsigned" counts the others, and "ok" is true with status 0 alone.
    """
    kept = _read(against) if against is not None else None
    try:
        found = verify(audit_path(), kept, _verifier(key) if key is not None else None)
    except CheckpointError as error:
        raise UsageProblem(f"{against}: {error}") from None
    if as_json:
        size = found.checkpoint.size if found.checkpoint else None
        root = found.checkpoint.root_text if found.checkpoint else None
        said = {"ok": found.ok and not found.unsigned, "records": found.records, "unsigned": found.unsigned}
        print_json({**said, "checkpoint_size": size, "root": root, "problems": found.problems, "notes": found.notes})
    else:
        _show_verification(found, against)
    raise typer.Exit(1 if not found.ok else _UNSIGNED if found.unsigned else 0)


_UNSIGNED = 5
"""The exit status where what was signed is whole, and something that nobody signed stands after it."""


def _show_verification(found: Verification, against: Path | None) -> None:
    for line in found.problems:
        console().print(f"✗ {one_line(line)}", soft_wrap=True)
    if not found.ok:
        note(f"such a log takes no more records: {remedy(audit_path())}")
    if found.ok and found.checkpoint is not None and found.verifier is not None:
        records = "1 record" if found.records == 1 else f"{found.records} records"
        console().print(
            f"✓ {records}, as signed by {one_line(found.verifier.name)} (root {found.checkpoint.root_text})",
            soft_wrap=True,
        )
    for line in found.notes:
        console().print(f"! {one_line(line)}" if found.unsigned else one_line(line), soft_wrap=True)
    if found.ok and found.checkpoint is not None:
        if against is not None:
            console().print("✓ the checkpoint kept elsewhere is of this log")
        else:
            note("whoever holds the log's key could have written it anew: --against a checkpoint kept elsewhere tells")


@app.command("checkpoint")
def checkpoint(
    show_key: Annotated[bool, typer.Option("--key", help="Print the verifier key instead.")] = False,
) -> None:
    """Print the newest signed checkpoint, to be kept elsewhere."""
    if show_key:
        console().print(str(_verifier(None)), soft_wrap=True)
        return
    found = verify(audit_path())
    if found.checkpoint is None or not found.ok:
        raise AuditError((found.problems or ["there is no audit log yet"])[0])
    sys.stdout.write(found.checkpoint.text)


@app.command("prove")
def prove_record(
    sequence: Annotated[int, typer.Argument(metavar="SEQ", help="The record's number.", min=0)],
    out: Annotated[Path | None, typer.Option("--out", help="A file; default: standard output.")] = None,
) -> None:
    """Make a proof file that a record is in the log, to be checked without the log."""
    try:
        _write(out, [prove(audit_path(), sequence)])
    except (AuditError, CheckpointError) as error:
        raise UsageProblem(str(error)) from None


@app.command("check")
def check(proof: Annotated[Path, typer.Argument(help="A proof file.")], key: Key = None) -> None:
    """Check a proof file, without the log."""
    if key is None:
        note("the key is that of this machine's log; give the one that you trust with --key")
    try:
        record, signed = check_proof(_read(proof), _verifier(key))
    except CheckpointError as error:
        console().print(f"✗ {one_line(str(error))}", soft_wrap=True)
        raise typer.Exit(1) from None
    console().print(
        f"✓ record {record.get('seq')} of {signed.size} in the log {one_line(signed.origin)}:", soft_wrap=True
    )
    console().print(
        harmless(yaml.safe_dump(record, sort_keys=True, allow_unicode=False, width=110)).rstrip(), soft_wrap=True
    )


@app.command("export")
def export_log(
    form: Annotated[Format, typer.Option("--format", help="ocsf: events for a SIEM.")] = "jsonl",
    out: Annotated[Path | None, typer.Option("--out", help="A file; default: standard output.")] = None,
    since: Since = None,
    execution: Execution = None,
    sprint: Sprint = None,
    user: User = None,
    outcome: Outcome = None,
    rule: Rule = None,
) -> None:
    """The records for other programs. One that no checkpoint covers is marked: "signed": false, or not signed."""
    _write(out, export(_chosen(since, execution, sprint, user, outcome, rule), form))


def _records() -> Iterator[dict[str, Any]]:
    """Every record; those that no checkpoint covers are marked. Lines that are no record are told on standard error."""
    path, number = audit_path(), -1
    signed, lines = entries(path)
    for number, record in enumerate(lines):
        if number == 0 and signed is None:
            note("which records are signed cannot be told (labsandbox audit verify says why)")
        if record is None:
            note(f"line {number + 1} of the audit log is no record (labsandbox audit verify)")
        else:
            yield marked(record) if signed is not None and number >= signed else record
    if number < 0:
        log = AuditLog(path)
        gone = any(one.exists() for one in (log.hashes, log.key)) and signed != 0
        note("the audit log's records are gone (labsandbox audit verify)" if gone else "there is no audit log yet")


def _chosen(since: str | None, *others: str | None) -> Iterator[dict[str, Any]]:
    """The records that the options ask for; says on standard error where there are none. Raises UsageProblem."""
    from executor.experiment import Outcome as Known

    execution, sprint, user, outcome, rule = others
    if outcome is not None and outcome not in set(Known):
        raise UsageProblem(f"--outcome: {outcome!r} is none; there are {', '.join(Known)}")
    try:
        moment = parse_since(since) if since is not None else None
    except (ValueError, OverflowError) as error:
        raise UsageProblem(f"--since: {error}") from None
    if execution is not None:
        ids = {one for record in AuditLog(audit_path()).entries() if record for one in executions_of(record)}
        execution = _begun("execution", execution, ids) or execution
    return _matching(Wanted(moment, execution, sprint, user, outcome, rule))


def _matching(wanted: Wanted) -> Iterator[dict[str, Any]]:
    there = matched = False
    for record in _records():
        there = True
        if wanted.has(record):
            matched = True
            yield record
    if there and not matched:
        note("no record of the audit log matches")


def _begun(kind: str, name: str, ids: set[str]) -> str | None:
    """The id that is `name`, or the only one that begins so; None where there is none. Raises UsageProblem."""
    found = sorted(one for one in ids if name and one.startswith(name))
    if name not in found and len(found) > 1:
        raise UsageProblem(f"{len(found)} {kind.replace(' or', 's or')}s in the audit log begin with {name!r}")
    return name if name in found else next(iter(found), None)


def _moment(record: dict[str, Any]) -> str:
    return one_line(str(record.get("time"))[:19].replace("T", " "))


def _verifier(key: str | None) -> Verifier:
    try:
        if key is None:
            return load_verifier(AuditLog(audit_path()).key)
        return Verifier.read(_read(Path(key)) if "+" not in key else key)
    except CheckpointError as error:
        raise UsageProblem(str(error)) from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageProblem(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None


def _write(out: Path | None, parts: Iterable[str]) -> None:
    """To a file that appears whole, or to standard output."""
    if out is None:
        for part in parts:
            sys.stdout.write(part)
        return
    try:
        descriptor, name = tempfile.mkstemp(prefix=".audit-", dir=out.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
                file.writelines(parts)
            Path(name).replace(out)
        except BaseException:
            Path(name).unlink()
            raise
    except AuditError:
        raise
    except OSError as error:
        raise UsageProblem(f"cannot write {out}: {error.strerror}") from None
