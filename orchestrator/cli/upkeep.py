"""`labsandbox ps`, `kill` and `gc`: what runs on this machine, ending it, and clearing up."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from executor.gpus.survey import user_name
from orchestrator import upkeep
from orchestrator.cli import options
from orchestrator.cli.terminal import console, print_json
from results.readable import moment, seconds


def ps(as_json: options.Json = False) -> None:
    """List labsandbox's containers on this machine."""
    found = upkeep.running()
    noted = upkeep.noted() if found else {}
    rows = []
    for one in found:
        note = noted.get(one.found.execution_id, upkeep.Noted())
        row = {
            "execution": one.found.execution_id,
            "backend": one.backend.name,
            "running": one.found.running,
            "waiting": note.waiting,
            "uid": one.found.owner.uid,
            "user": user_name(one.found.owner.uid),
            "pid": one.found.owner.pid,
            "sprint": note.sprint,
            "since": note.since,
            "abandoned": one.found.owner.abandoned(),
            "seconds_left": round(one.found.owner.deadline - time.time()),
        }
        rows.append(row)
    if as_json:
        print_json(rows)
        return
    if held := upkeep.queue():
        console().print(held)
    if not rows:
        console().print("nothing is running")
        return
    table = Table(Column("execution", no_wrap=True), "backend", "state", "owner", "sprint", "for", "at most")
    for row in rows:
        alive = "made ahead" if row["waiting"] else "running"
        state = "abandoned" if row["abandoned"] else alive if row["running"] else "not started"
        owner = f"{row['user']}, pid {row['pid']}"
        began = moment(row["since"])
        age = seconds(time.time() - began.timestamp()) if began else "–"
        left = f"{seconds(row['seconds_left'])} more"
        table.add_row(str(row["execution"]), str(row["backend"]), state, owner, str(row["sprint"] or "–"), age, left)
    console().print(table)


def kill(
    execution: Annotated[str, typer.Argument(metavar="ID", help="An execution's id, or the beginning of one.")],
) -> None:
    """End a container now; its run is recorded as ended from outside."""
    ended = upkeep.kill(execution)
    console().print(f"ended {ended.found.execution_id}")


def gc(results: options.Results = Path("results"), as_json: options.Json = False) -> None:
    """Remove what crashed runs left: containers, unfinished files and downloads, packages unused for a month."""
    cleared = upkeep.clear(results)
    if as_json:
        print_json({"containers": cleared.containers, "paths": [str(path) for path in cleared.paths]})
        return
    for name in cleared.containers:
        console().print(f"removed container {name}")
    for path in cleared.paths:
        console().print(f"removed {path}", soft_wrap=True)
    if not cleared.containers and not cleared.paths:
        console().print("nothing to remove")
