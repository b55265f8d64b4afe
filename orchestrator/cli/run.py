"""`labsandbox run GOAL…` and `labsandbox resume SPRINT`: sprints, watched."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.table import Column, Table

from executor.experiment import Outcome, Sink
from orchestrator.advice import advised_goal
from orchestrator.batch import Line, run_batch
from orchestrator.cli import options
from orchestrator.cli.status import INFRASTRUCTURE, INTERRUPTED, exit_status
from orchestrator.cli.terminal import console, harmless, note, notes, one_line, print_json
from orchestrator.cli.watching import LogPrinter
from orchestrator.command import resuming
from orchestrator.errors import UsageProblem
from orchestrator.goal import check_goal
from orchestrator.research_team import AIResearchTeam
from orchestrator.serving import serving
from results.export.live import Tracking
from results.store import Store, StoreError
from results.summary import ended_of, outcome_of, part, verdict_of

MAX_GOALS = 1000
_HINTS = 5
"""Sprints of which it is said how to carry on with them."""


class _Watched(AIResearchTeam):
    """A team whose experiments' output is shown as it comes."""

    def watch(self, sink: Sink) -> Sink:
        return LogPrinter(sink, sys.stderr, sys.stderr)


class _Shown:
    """Progress on standard error."""

    def phase(self, name: str, seconds: float) -> None:
        notes().print(f"\n── {name} (at most {seconds:g} s)", soft_wrap=True)

    def said(self, agent: str, text: str) -> None:
        notes().print(f"{agent}: {harmless(text.strip()[:2000])}", soft_wrap=True)

    def note(self, text: str) -> None:
        note(text)


@options.with_lab
def run(
    *,
    goal: Annotated[
        list[str] | None,
        typer.Argument(metavar="GOAL", help="What to find out, in a sentence.", show_default=False),
    ] = None,
    goals: Annotated[
        Path | None, typer.Option("--goals", help="A file with further goals, one a line.", show_default=False)
    ] = None,
    parallel: Annotated[int, typer.Option("--parallel", help="How many goals at a time.", min=1, max=64)] = 1,
    follows: Annotated[
        str | None,
        typer.Option("--next", metavar="SPRINT", help="Take up what a sprint recommends.", show_default=False),
    ] = None,
    agents: options.Agents = "auto",
    require_signed: options.RequireSigned = False,
    asked: options.Asked,
    results: options.Results = Path("results"),
    seed: options.Seed = 0,
    recall: options.Recall = True,
    tracker: options.TrackTo = None,
    out: options.TrackerOut = None,
    online: options.Online = False,
    as_json: options.Json = False,
) -> None:
    """Let the team plan, write, run, repair and judge an experiment for each goal."""
    wanted: list[tuple[str, str | None]] = [(check_goal(one), None) for one in [*(goal or []), *_read_goals(goals)]]
    if follows is not None:
        sprint, advised = advised_goal(Store(results), follows)
        note(f"{sprint} recommends: {advised}")
        wanted.append((advised, sprint))
    if len(wanted) > MAX_GOALS:
        raise UsageProblem(f"{len(wanted)} goals were given; at most {MAX_GOALS} are accepted")
    if not wanted:
        raise UsageProblem('state a goal, such as "Compare AdamW vs. Lion on a small transformer"')
    chosen = asked.of_lab()
    tracking = options.tracking(tracker, out, online, results)
    team = _Watched(
        agents=agents,
        require_signed=require_signed,
        options=chosen,
        results_dir=results,
        seed=seed,
        recall=recall,
        progress=_Shown(),
        tracking=tracking,
    )
    if len(wanted) > 1:
        raise typer.Exit(_run_several(team, wanted, parallel, results, as_json, tracking))
    [(one, sprint_before)] = wanted
    raise typer.Exit(_show(team.run_sprint(one, sprint_before), results, as_json))


def resume(
    sprint: Annotated[str, typer.Argument(help="A sprint's id, as `sprints list` shows it.")],
    results: options.Results = Path("results"),
    tracker: options.TrackTo = None,
    out: options.TrackerOut = None,
    online: options.Online = False,
    as_json: options.Json = False,
) -> None:
    """Carry on with a sprint that broke off, at the first step that did not end."""
    tracking = options.tracking(tracker, out, online, results)
    team = _Watched(results_dir=results, progress=_Shown(), tracking=tracking)
    raise typer.Exit(_show(team.resume_sprint(sprint), results, as_json))


def _show(summary: dict[str, Any], results: Path, as_json: bool) -> int:
    """Prints a sprint's end, and returns the exit status."""
    if as_json:
        print_json(summary)
    else:
        notes().print()
        console().print(f"Goal:      {one_line(summary['goal'])}", soft_wrap=True)
        console().print(f"Execution: {one_line(ended_of(summary) or 'not run')}", soft_wrap=True)
        console().print(f"Verdict:   {harmless(str(verdict_of(summary)))}", soft_wrap=True)
        validation = part(summary, "validation")
        if extracted := validation.get("extracted"):
            console().print(f"Metrics:   {one_line(extracted, 1000)}", soft_wrap=True)
        for warning in validation["numbers"]["warnings"]:
            console().print(f"           note: {harmless(warning)}", soft_wrap=True)
        if repaired := part(summary, "self_healing").get("attempts"):
            console().print(f"Attempts:  {len(repaired)} failed; all are in attempts/", soft_wrap=True)
        if advised := validation.get("recommendation"):
            console().print(f"Next:      {one_line(advised['goal'])}", soft_wrap=True)
        console().print(f"Results:   {results / ('sprint_' + summary['sprint_id'])}", soft_wrap=True)
    return exit_status(Outcome(outcome_of(summary) or Outcome.FAILED))


# ---- several goals ----


def _run_several(
    team: AIResearchTeam,
    wanted: list[tuple[str, str | None]],
    parallel: int,
    results: Path,
    as_json: bool,
    tracking: Tracking | None,
) -> int:
    """Runs all, shows a live table and one summary at the end; the worst exit status."""
    team.preflight()
    store = Store(results)
    made = [(goal, team.prepare_sprint(goal, follows)) for goal, follows in wanted]
    heed = f"{tracking.to} " if tracking else ""
    lines = [Line(goal, sprint, store.existing(sprint).path, heed=heed) for goal, sprint in made]
    try:
        with serving(), Live(console=notes(), auto_refresh=False) as live:
            watch = lambda: live.update(_live_table(lines), refresh=True)  # noqa: E731
            try:
                run_batch(lines, parallel, results, watch if notes().is_terminal else _Lines(lines), _tracked(tracking))
            finally:
                live.update(_live_table(lines))  # how all ended, also for a file
    finally:
        for line in lines:
            for said in line.heeded:
                note(f"{line.sprint}: {said}")
        ends = [_end(store, line) for line in lines]
        unended = [line.sprint for line in lines if line.status in (None, INTERRUPTED)]
        for sprint in unended[:_HINTS]:
            note(f"not finished: {resuming(sprint, results)} carries on from there")
        if len(unended) > _HINTS:
            note(f"and {len(unended) - _HINTS} more: labsandbox sprints list")
        if as_json:
            print_json(ends)
        else:
            console().print(_end_table(ends))
    return max((end["status"] for end in ends if end["status"] is not None), key=_badness, default=INFRASTRUCTURE)


class _Lines:
    """Where nothing can be drawn anew: a line when a goal begins, and one when it ends."""

    def __init__(self, lines: list[Line]) -> None:
        self._lines = lines
        self._begun: set[str] = set()
        self._ended: set[str] = set()

    def __call__(self) -> None:
        for line in self._lines:
            if line.began is not None and line.sprint not in self._begun:
                self._begun.add(line.sprint)
                note(f"{line.sprint} begins: {one_line(line.goal, 120)}")
            if line.ended is not None and line.sprint not in self._ended:
                self._ended.add(line.sprint)
                note(f"{line.sprint} {line.doing()} after {line.seconds:.0f} s")


def _tracked(tracking: Tracking | None) -> list[str]:
    """The options that make another process do the same."""
    if tracking is None:
        return []
    return ["--tracker", tracking.to, "--out", str(tracking.out), *(["--online"] if tracking.online else [])]


def _badness(status: int) -> int:
    """Interrupted is worse than broken, broken than denied, denied than failed."""
    return {0: 0, 1: 1, 2: 3, 3: 2}.get(status, status)


def _status(line: Line) -> int | None:
    """A sprint's exit status; one that was killed counts as infrastructure's failure."""
    return INFRASTRUCTURE if line.status is not None and line.status < 0 else line.status


def _live_table(lines: list[Line]) -> Table:
    table = Table(Column("sprint", no_wrap=True), "goal", "at", Column("seconds", justify="right"))
    for line in lines:
        table.add_row(line.sprint, one_line(line.goal, 80), line.doing(), f"{line.seconds:.0f}")
    return table


def _end(store: Store, line: Line) -> dict[str, Any]:
    end = {"sprint": line.sprint, "goal": line.goal, "status": _status(line), "outcome": None, "verdict": None}
    try:
        summary = store.summary(line.sprint)
    except StoreError:
        return {**end, "verdict": line.last_words or "not begun"}
    return {**end, "outcome": outcome_of(summary), "verdict": verdict_of(summary) or line.last_words}


def _end_table(ends: list[dict[str, Any]]) -> Table:
    table = Table(Column("sprint", no_wrap=True), "goal", "outcome", "verdict")
    for end in ends:
        table.add_row(*(one_line(str(end[key] or "–"), 160) for key in ("sprint", "goal", "outcome", "verdict")))
    return table


def _read_goals(path: Path | None) -> list[str]:
    """One goal a line; blank lines and those that begin with # are left out. Raises UsageProblem."""
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageProblem(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None
    found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not found:
        raise UsageProblem(f"{path} holds no goal")
    return found
