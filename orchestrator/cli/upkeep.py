"""`labsandbox ps`, `kill` and `gc`: what runs on this machine, ending it, and clearing up."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from orchestrator import upkeep
from orchestrator.cli import options
from orchestrator.cli.terminal import console, print_json


def ps(as_json: options.Json = False) -> None:
    """List labsandbox's containers on this machine."""
    found = upkeep.running()
    waiting = upkeep.waiting() if found else frozenset()
    rows = [
        {
            "execution": one.found.execution_id,
            "backend": one.backend.name,
            "running": one.found.running,
            "waiting": one.found.execution_id in waiting,
            "uid": one.found.owner.uid,
            "pid": one.found.owner.pid,
            "abandoned": one.found.owner.abandoned(),
            "seconds_left": round(one.found.owner.deadline - time.time()),
        }
        for one in found
    ]
    if as_json:
        print_json(rows)
        return
    if held := upkeep.queue():
        console().print(held)
    if not rows:
        console().print("nothing is running")
        return
    table = Table("execution", "backend", "state", "owner", "at most")
    for row in rows:
        alive = "waiting" if row["waiting"] else "running"
        state = "abandoned" if row["abandoned"] else alive if row["running"] else "made"
        owner = f"uid {row['uid']}, pid {row['pid']}"
        table.add_row(str(row["execution"]), str(row["backend"]), state, owner, f"{row['seconds_left']} s more")
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
