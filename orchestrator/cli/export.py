"""`labsandbox export SPRINT --to TOOL`, or SWEEP: a run's results in Weights & Biases, MLflow, TensorBoard or CSV."""

from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli import options
from orchestrator.cli.status import INFRASTRUCTURE
from orchestrator.cli.terminal import console, note, one_line
from orchestrator.errors import UsageProblem
from orchestrator.search.spec import not_ended, recorded_sweep, swept
from results.export.destinations import DestinationName, destination
from results.export.replay import export as export_run
from results.export.sweeps import export_sweep
from results.export.tracker import ExportError
from results.store import SUMMARY, RunFolder, Store, StoreError


def export(
    sprint: Annotated[str, typer.Argument(help="A sprint's id, or that of a sweep or a single execution.")],
    to: Annotated[DestinationName, typer.Option("--to", help="Where to.", show_default=False)],
    out: options.TrackerOut = None,
    online: options.Online = False,
    artifacts: Annotated[
        bool, typer.Option("--artifacts", help="Also the experiment's files; hostile, as ever.")
    ] = False,
    results: options.Results = Path("results"),
) -> None:
    """Write a run's results for another tool. Nothing leaves this machine unless --online says so."""
    store = Store(results)
    folder = store.existing(sprint)
    swept_up = _sweep(folder, artifacts) if folder.id.startswith("sweep_") else None
    summary = store.summary(folder.id) if swept_up is None and (folder.path / SUMMARY).exists() else {}
    try:
        place = destination(to, out or results / "tracking" / to, online)
        if swept_up is not None:
            done = export_sweep(folder, *swept_up, place)
        else:
            done = export_run(folder, summary, place, artifacts)
    except (ExportError, StoreError):
        raise
    except Exception as error:  # the tool's own, of any kind
        note(f"labsandbox: {to} failed: {one_line(str(error)) or type(error).__name__}")
        raise typer.Exit(INFRASTRUCTURE) from None
    if done.unreadable:
        note(f"{done.unreadable} line(s) hold no record that this version knows, and were left out")
    if done.left_out:
        note(f"{done.left_out} record(s) of further trainings were left out")
    console().print(f"{folder.id}: {done.records} records, {done.entries} run(s), in {done.where}", soft_wrap=True)


def _sweep(folder: RunFolder, artifacts: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a sweep was asked to be, and what came of it. Raises UsageProblem, StoreError."""
    if artifacts:
        raise UsageProblem(
            "--artifacts is for sprints and single executions: each trial of a sweep has a folder of its own"
        )
    summary = swept(folder.path)
    if summary is None:
        raise StoreError(f"{folder.id} has not ended; {not_ended(folder)}")
    return recorded_sweep(folder).model_dump(mode="json"), summary
