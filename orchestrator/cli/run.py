"""`labsandbox run GOAL`: one sprint, watched."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from executor.experiment import Outcome, Sink
from orchestrator.agents.connect import AgentsChoice
from orchestrator.cli import options
from orchestrator.cli.status import exit_status
from orchestrator.cli.terminal import LogPrinter, console, harmless, note, notes, one_line, print_json
from orchestrator.research_team import AIResearchTeam

Agents = Annotated[AgentsChoice, typer.Option("--agents", help="Who answers: Lumenbridge, or a local team.")]


class _Watched(AIResearchTeam):
    """A team whose experiments' output is shown as it comes."""

    def watch(self, sink: Sink) -> Sink:
        return LogPrinter(sink, sys.stderr, sys.stderr)


class _Shown:
    """Progress on standard error."""

    def phase(self, name: str, seconds: float) -> None:
        notes.print(f"\n── {name} (at most {seconds:g} s)", soft_wrap=True)

    def said(self, agent: str, text: str) -> None:
        notes.print(f"{agent}: {harmless(text.strip()[:2000])}", soft_wrap=True)

    def note(self, text: str) -> None:
        note(text)


def run(
    goal: Annotated[str, typer.Argument(metavar="GOAL", help="What to find out, in a sentence.")],
    agents: Agents = "auto",
    policy: options.PolicyName = "default",
    backend: options.Backend = "auto",
    runtime: options.Runtime = None,
    image: options.Image = None,
    gpus: options.Gpus = None,
    wall: options.Wall = None,
    cpus: options.Cpus = None,
    memory: options.Memory = None,
    pids: options.Pids = None,
    workspace: options.Workspace = None,
    results: options.Results = Path("results"),
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Let the team plan, write, run and judge an experiment."""
    chosen = options.lab_options(
        policy, backend, runtime, image,
        gpus=gpus, wall=wall, cpus=cpus, memory=memory, pids=pids, workspace=workspace,
    )  # fmt: skip
    team = _Watched(agents=agents, options=chosen, results_dir=results, seed=seed, progress=_Shown())
    summary = team.run_sprint(goal)
    if as_json:
        print_json(summary)
    else:
        _show(summary, results)
    raise typer.Exit(exit_status(_outcome(summary)))


def _show(summary: dict[str, Any], results: Path) -> None:
    notes.print()
    execution = summary["phases"]["implementation"].get("execution", {})
    ended = execution.get("message") or execution.get("error") or "not run"
    console.print(f"Goal:      {one_line(summary['goal'])}", soft_wrap=True)
    console.print(f"Execution: {one_line(str(ended))}", soft_wrap=True)
    console.print(f"Verdict:   {harmless(str(summary['verdict']))}", soft_wrap=True)
    for warning in summary["phases"]["validation"]["numbers"]["warnings"]:
        console.print(f"           note: {harmless(warning)}", soft_wrap=True)
    console.print(f"Results:   {results / ('sprint_' + summary['sprint_id'])}", soft_wrap=True)


def _outcome(summary: dict[str, Any]) -> Outcome:
    execution = summary["phases"]["implementation"].get("execution", {})
    return Outcome(execution.get("outcome", Outcome.FAILED))
