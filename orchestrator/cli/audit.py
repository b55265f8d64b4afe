"""`labsandbox audit`: what was decided, what ran, how it ended."""

from typing import Annotated, Any

import typer
from rich.table import Column, Table

from orchestrator.cli import options
from orchestrator.cli.terminal import console, one_line, print_json
from policies.audit import AuditLog
from policies.state import audit_path

app = typer.Typer(no_args_is_help=True, help="The audit log of every policy decision, start, limit and end.")


@app.command("log")
def log(
    last: Annotated[int, typer.Option("--last", help="How many records; 0 for all.", min=0)] = 50,
    execution: Annotated[str | None, typer.Option("--execution", help="Only this execution's.")] = None,
    sprint: Annotated[str | None, typer.Option("--sprint", help="Only this sprint's.")] = None,
    as_json: options.Json = False,
) -> None:
    """The records, oldest first."""
    records = [record for record in AuditLog(audit_path()).records() if _wanted(record, execution, sprint)]
    records = records[-last:] if last else records
    if as_json:
        print_json(records)
        return
    table = Table("seq", Column("time (UTC)", no_wrap=True), "user", "event", Column("execution", no_wrap=True), "what")
    for record in records:
        user = str(record.get("actor", {}).get("user", ""))
        time = str(record.get("time"))[:19].replace("T", " ")
        cells = (record.get("seq"), time, user, record.get("event"), record.get("execution") or "–")
        table.add_row(*(one_line(str(cell)) for cell in cells), one_line(_what(record)))
    console.print(table)


def _wanted(record: dict[str, Any], execution: str | None, sprint: str | None) -> bool:
    return (execution is None or record.get("execution") == execution) and (
        sprint is None or record.get("sprint") == sprint
    )


def _what(record: dict[str, Any]) -> str:
    match record.get("event"):
        case "decision":
            verb = "allowed" if record.get("allow") else "denied"
            rules = ", ".join(str(rule.get("id")) for rule in record.get("rules", []))
            return f"{verb} under {record.get('policy', {}).get('name')}: {rules}"
        case "start":
            image = record.get("image") or {}
            return f"container {str(record.get('container'))[:16]} from {image.get('reference')}"
        case "limit":
            return f"{record.get('limit')} reached"
        case "end":
            return f"{record.get('outcome')}: {record.get('message')}"
        case "sweep":
            return f"removed {len(record.get('removed', []))} abandoned container(s)"
        case _:
            return ""
