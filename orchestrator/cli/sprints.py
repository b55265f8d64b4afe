"""`labsandbox sprints`: what was found before; `labsandbox next`: what might be found next."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from orchestrator.advice import advice
from orchestrator.cli import options
from orchestrator.cli.show import limits_table
from orchestrator.cli.terminal import console, harmless, note, one_line, print_json
from orchestrator.command import resuming
from orchestrator.journal import EVENTS, peek
from orchestrator.search.spec import not_ended, recorded_sweep, swept
from policies.state import audit_path
from results.comment import comment_of
from results.dashboard.steps import PHASES
from results.store import RunFolder, Store, StoreError
from results.summary import (
    CONCLUSIONS,
    Summary,
    ended_of,
    execution_of,
    object_of,
    outcome_of,
    part,
    verdict_of,
    word_of,
)

app = typer.Typer(no_args_is_help=True, help="Sprints: goals, verdicts and where their results are.")


@app.command("list")
def list_sprints(results: options.Results = Path("results"), as_json: options.Json = False) -> None:
    """Every sprint and every sweep in the results folder, oldest first."""
    store = _there(results)
    rows = [
        _sweep_row(store, run) if run.startswith("sweep_") else _row(store, run)
        for run in store.runs(("sprint", "sweep"))
    ]
    if as_json:
        print_json(rows)
        return
    table = Table(
        Column("sprint", no_wrap=True, min_width=max((len(row["id"]) for row in rows), default=0)),
        Column("goal", no_wrap=True, overflow="ellipsis"),
        Column("outcome", no_wrap=True, min_width=max((len(str(row["outcome"] or "–")) for row in rows), default=0)),
        Column("verdict", no_wrap=True, overflow="ellipsis"),
    )
    for row in rows:
        cells = [row["id"], row["goal"], row["outcome"], _short(store, row["id"]) or row["verdict"]]
        table.add_row(*(one_line(str(cell or "–"), 160) for cell in cells))
    console().print(table)


@app.command("show")
def show_sprint(
    sprint: Annotated[str, typer.Argument(help="A sprint's id, as `sprints list` shows it.")],
    results: options.Results = Path("results"),
    as_json: options.Json = False,
) -> None:
    """One sprint: goal, plan, execution, repairs, verdict. Or one sweep: its best, and whether that was confirmed."""
    store = Store(results)
    folder = store.existing(sprint)
    if folder.id.startswith("sweep_"):
        _show_sweep(folder, as_json)
        return
    summary = store.summary(folder.id)
    if as_json:
        print_json(summary)
        return
    console().print(f"Goal: {one_line(str(summary.get('goal', 'not recorded')))}", soft_wrap=True)
    for title, text in _paragraphs(summary):
        console().print(f"\n{title}")
        console().print(harmless(text), soft_wrap=True)
    limits = execution_of(summary).get("limits")
    if isinstance(limits, dict) and limits:
        console().print()
        console().print(limits_table({name: limit for name, limit in limits.items() if isinstance(limit, dict)}))


def report(
    sprint: Annotated[str, typer.Argument(help="A sprint's id, as `sprints list` shows it.")],
    results: options.Results = Path("results"),
) -> None:
    """Write a sprint's report anew: report.html, report.md and figures, from its records."""
    from results.report.report import write_report

    store = Store(results)
    console().print(write_report(store.existing(sprint), store.summary(sprint), audit_path()), soft_wrap=True)


def next_goals(
    every: Annotated[bool, typer.Option("--all", help="Also those that were taken up.")] = False,
    results: options.Results = Path("results"),
    as_json: options.Json = False,
) -> None:
    """What the sprints' validators would try next; `labsandbox run --next SPRINT` takes one up."""
    found = [one for one in advice(_there(results)) if every or one.taken is None]
    if as_json:
        print_json([asdict(one) for one in found])
        return
    if not found:
        note("no sprint here recommends a goal that has not been taken up")
        return
    table = Table(
        Column("sprint", no_wrap=True),
        "next goal",
        Column("why", no_wrap=True, overflow="ellipsis"),
        *(["taken up by"] if every else []),
    )
    for one in found:
        cells = [one.sprint, one.goal, one.why, *([one.taken or "–"] if every else [])]
        table.add_row(*(one_line(cell, 200) for cell in cells))
    console().print(table)


def _there(results: Path) -> Store:
    """The store, if the folder that somebody named is there; before the first run there is none of the usual name."""
    if results != Path("results") and not results.exists():
        raise StoreError(f"there is no results folder {results}")
    return Store(results)


def _short(store: Store, run: str) -> str:
    """A sprint's verdict in a word, and the arm; empty where there is none."""
    try:
        summary = {} if run.startswith("sweep_") else store.summary(run)
    except StoreError:
        return ""
    word = word_of(summary)
    arm = object_of(object_of(part(summary, "validation").get("numbers")).get("verdict")).get("arm")
    return f"{word}: {arm}" if word == CONCLUSIONS[0] and arm else word


def _row(store: Store, run: str) -> dict[str, Any]:
    steps = peek(store.root / run / EVENTS)
    unfinished = None
    if steps and steps[-1].get("step") != "end":
        unfinished = f"not finished: {resuming(run, store.root)} carries on"
    try:
        summary = store.summary(run)
    except StoreError as error:
        asked = steps[0].get("result") if steps else None
        goal = asked.get("goal") if isinstance(asked, dict) else None
        return {"id": run, "goal": goal, "outcome": None, "verdict": unfinished or str(error)}
    # Where there was no code there is no verdict, and the reason says more than nothing.
    verdict = verdict_of(summary) or part(summary, "implementation").get("error") or unfinished
    return {"id": run, "goal": summary.get("goal"), "outcome": outcome_of(summary), "verdict": verdict}


def _sweep_row(store: Store, run: str) -> dict[str, Any]:
    row: dict[str, Any] = {"id": run, "goal": None, "outcome": None}
    try:
        spec = recorded_sweep(RunFolder(store.root / run))
    except StoreError as error:
        return {**row, "verdict": str(error)}
    row["goal"] = spec.goal or spec.command
    summary = swept(store.root / run)
    if summary is None:
        return {**row, "verdict": not_ended(RunFolder(store.root / run))}
    return {**row, "outcome": "completed", "verdict": summary.get("verdict")}


def _show_sweep(folder: RunFolder, as_json: bool) -> None:
    from orchestrator.cli.sweep import show_sweep

    summary = swept(folder.path)
    if summary is None:
        raise StoreError(f"{folder.id} has not ended; {not_ended(folder)}")
    if as_json:
        print_json(summary)
    else:
        show_sweep(summary, folder)


def _paragraphs(summary: Summary) -> list[tuple[str, str]]:
    """Title and text of what the summary has."""
    comment, disagrees = comment_of(summary)
    found = [
        ("Plan", part(summary, "discussion").get("action_plan")),
        ("Execution", ended_of(summary)),
        ("Repairs", _repairs(part(summary, "self_healing").get("attempts"))),
        ("Verdict", verdict_of(summary)),
        ("Metrics", part(summary, "validation").get("extracted")),
        (f"Validator's comment{f' (it {disagrees})' if disagrees else ', beside the computed verdict'}", comment),
    ]
    found += [("Error", part(summary, phase).get("error")) for phase in PHASES]
    return [(title, text if isinstance(text, str) else str(text)) for title, text in found if text]


def _repairs(attempts: object) -> str:
    """One line for each attempt that failed."""
    lines = []
    for attempt in attempts if isinstance(attempts, list) else []:
        if not isinstance(attempt, dict):
            continue
        failure = one_line(str(attempt.get("failure", "")), 160)
        votes = attempt.get("votes")
        said = (
            [str(vote.get("vote")) for vote in votes.values() if isinstance(vote, dict)]
            if isinstance(votes, dict)
            else []
        )
        voted = f" (votes: {', '.join(said)})" if said else ""
        lines.append(f"{attempt.get('attempt')}: {failure} → {attempt.get('decision')}{voted}")
    return "\n".join(lines)
