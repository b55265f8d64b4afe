"""`labsandbox rerun` and `labsandbox replay`: what was run before, once more."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from executor.experiment import Sink
from orchestrator.cli import options
from orchestrator.cli.show import show_execution
from orchestrator.cli.status import exit_status
from orchestrator.cli.terminal import console, note, one_line, print_json
from orchestrator.cli.watching import LogPrinter
from orchestrator.lab_setup import Lab, open_lab
from orchestrator.replay import read_recorded
from orchestrator.replay import replay as replay_summary
from orchestrator.rerun import RERUN, recorded
from orchestrator.rerun import rerun as rerun_recorded
from results.store import RunFolder, Store


def rerun(
    sprint: Annotated[str, typer.Argument(help="A sprint's id, as `sprints list` shows it.")],
    seed: Annotated[
        int | None, typer.Option("--seed", help="Another base seed.", min=0, max=2**32 - 1, show_default=False)
    ] = None,
    results: options.Results = Path("results"),
    as_json: options.Json = False,
) -> None:
    """Repeat a sprint's experiment: same code, image and packages; and say what came out differently."""
    before = recorded(Store(results), sprint)
    done = rerun_recorded(before, before.seed if seed is None else seed, results, note, _watched)
    report = {
        "of": before.sprint,
        "folder": str(done.folder),
        "outcome": done.execution.outcome.value,
        "trainings": done.trainings,
        "equal": done.equal,
        "differences": [asdict(difference) for difference in done.differences],
    }
    RunFolder(done.folder).write_json(RERUN, report)
    if as_json:
        print_json(report)
    else:
        show_execution(done.execution, done.folder)
        table = Table("what", "recorded", "now")
        for difference in done.differences:
            table.add_row(*(one_line(text, 160) for text in asdict(difference).values()))
        if done.differences:
            console().print(table)
        else:
            console().print("Nothing came out differently.")
        if done.trainings:
            console().print(f"{done.equal} of {done.trainings} trainings have the very same result.")
    raise typer.Exit(exit_status(done.execution.outcome))


@options.with_lab
def replay(
    *,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A recorded sprint's folder, or its summary.")],
    asked: options.Asked,
    results: options.Results = Path("results"),
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Run a recorded sprint's code in the sandbox, and say whose fault it is if it fails."""
    chosen = asked.of_lab()

    def opened() -> Lab:
        lab = open_lab(chosen, note)
        note(lab.why)
        return lab

    done = replay_summary(read_recorded(folder), opened, results, _watched, seed)
    execution = done.execution
    if as_json:
        said = {"recorded": done.recorded, "fault": done.fault, "why": done.why}
        print_json({**said, "execution": execution.as_json() if execution else None})
    else:
        if execution is not None:
            show_execution(execution, done.folder)
        console().print(f"Recorded: {one_line(done.recorded)}", soft_wrap=True)
        ended = {"none": "completed", "unknown": "unknown"}.get(done.fault, f"the {done.fault}'s fault")
        console().print(f"Here:     {ended}: {one_line(done.why)}", soft_wrap=True)
        if done.fault == "none" and done.recorded.startswith("failed"):
            console().print("So the recorded failure was its environment's, not the code's.", soft_wrap=True)
    raise typer.Exit(exit_status(execution.outcome) if execution else 1)


def _watched(sink: Sink) -> Sink:
    return LogPrinter(sink, sys.stderr, sys.stderr)
