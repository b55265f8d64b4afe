"""`labsandbox sprints`: what was found before."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from orchestrator.cli import options
from orchestrator.cli.show import limits_table
from orchestrator.cli.terminal import console, harmless, one_line, print_json
from results.store import Store, StoreError

app = typer.Typer(no_args_is_help=True, help="Sprints: goals, verdicts and where their results are.")


@app.command("list")
def list_sprints(results: options.Results = Path("results"), as_json: options.Json = False) -> None:
    """Every sprint in the results folder, oldest first."""
    store = Store(results)
    rows = [_row(store, run) for run in store.runs()]
    if as_json:
        print_json(rows)
        return
    table = Table(Column("sprint", no_wrap=True), "goal", "outcome", "verdict")
    for row in rows:
        table.add_row(*(one_line(str(row[key] or "–"), 160) for key in ("id", "goal", "outcome", "verdict")))
    console.print(table)


@app.command("show")
def show_sprint(
    sprint: Annotated[str, typer.Argument(help="A sprint's id, as `sprints list` shows it.")],
    results: options.Results = Path("results"),
    as_json: options.Json = False,
) -> None:
    """One sprint: goal, plan, execution, verdict."""
    store = Store(results)
    summary = store.summary(sprint)
    if as_json:
        print_json(summary)
        return
    console.print(f"Goal: {one_line(str(summary.get('goal', 'not recorded')))}", soft_wrap=True)
    for title, text in _paragraphs(summary):
        console.print(f"\n{title}")
        console.print(harmless(text), soft_wrap=True)
    execution = _part(summary, "implementation", "execution")
    if isinstance(execution.get("limits"), dict):
        console.print()
        console.print(limits_table(execution["limits"]))


def _row(store: Store, run: str) -> dict[str, Any]:
    try:
        summary = store.summary(run)
    except StoreError as error:
        return {"id": run, "goal": None, "outcome": None, "verdict": str(error)}
    execution = _part(summary, "implementation", "execution")
    outcome = execution.get("outcome")
    if outcome is None and "success" in execution:
        outcome = "completed" if execution["success"] else "failed"
    # Where there was no code there is no verdict, and the reason says more than nothing.
    verdict = _verdict(summary) or _part(summary, "implementation").get("error")
    return {"id": run, "goal": summary.get("goal"), "outcome": outcome, "verdict": verdict}


def _paragraphs(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Title and text of what the summary has; parts may be missing in summaries of older versions."""
    plan = _part(summary, "discussion").get("action_plan")
    execution = _part(summary, "implementation", "execution")
    analysis = _part(summary, "validation").get("analysis")
    errors = [_part(summary, phase).get("error") for phase in ("discussion", "implementation", "validation")]
    ended = str(execution.get("message") or execution.get("error") or execution.get("outcome") or "")
    if not ended and "returncode" in execution:
        ended = f"returncode {execution['returncode']}"
    found = [("Plan", plan), ("Execution", ended), ("Verdict", _verdict(summary)), ("Validation", analysis)]
    found += [("Error", error) for error in errors]
    return [(title, text if isinstance(text, str) else str(text)) for title, text in found if text]


def _verdict(summary: dict[str, Any]) -> str | None:
    verdict = _part(summary, "validation").get("verdict") or summary.get("verdict")
    text = verdict.get("text") if isinstance(verdict, dict) else verdict
    return str(text) if text else None


def _part(summary: dict[str, Any], *path: str) -> dict[str, Any]:
    """A nested part of a summary; empty when it is missing or of another shape."""
    part: Any = summary.get("phases")
    for key in path:
        part = part.get(key) if isinstance(part, dict) else None
    return part if isinstance(part, dict) else {}
