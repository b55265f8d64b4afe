"""`labsandbox sweep`: a search over an experiment's own parameters."""

import secrets
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from executor.errors import InfrastructureError, RequestDenied
from executor.experiment import Experiment, Outcome
from executor.imports import SourceReport, check_source, needed_imports
from orchestrator.agents.choice import AgentsChoice
from orchestrator.agents.connect import connect
from orchestrator.agents.team import setup_team
from orchestrator.cli import options
from orchestrator.cli.execute import read_code, read_requirements
from orchestrator.cli.terminal import console, note, one_line, print_json
from orchestrator.command import resuming
from orchestrator.context import CALLS
from orchestrator.errors import UsageProblem
from orchestrator.goal import check_goal
from orchestrator.lab_setup import Lab, LabOptions, open_lab
from orchestrator.mending import experiment_of, mend
from orchestrator.search.spec import MAX_TRIALS, Sampler, SweepSpec, Unfit, new_sweep, recorded_sweep, refuse, swept
from orchestrator.serving import serving
from orchestrator.settings import Settings
from policies.decision import Decision
from policies.state import state_dir
from results.store import RunFolder, Store
from sandbox_images.lock import Flavour

_ASKING = 120.0
"""Seconds for the agents to write the experiment."""


@options.with_lab
def sweep(
    *,
    context: typer.Context,
    goal: Annotated[
        list[str] | None, typer.Argument(metavar="GOAL", help="What to tune, in a sentence.", show_default=False)
    ] = None,
    file: Annotated[
        str | None,
        typer.Option("--file", metavar="FILE", help="An experiment that reads lab.params.", show_default=False),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="SWEEP", help="Carry on with one that broke off.", show_default=False),
    ] = None,
    trials: Annotated[int, typer.Option("--trials", help="How many.", min=1, max=MAX_TRIALS)] = 20,
    parallel: Annotated[int, typer.Option("--parallel", help="How many at a time.", min=1, max=64)] = 1,
    sampler: Annotated[Sampler, typer.Option("--sampler", help="Who suggests values.")] = "tpe",
    prune: Annotated[bool, typer.Option("--prune", help="End trials early that are worse than most were.")] = False,
    metric: Annotated[
        str | None, typer.Option("--metric", help="By what: its last value (default: val_loss, or another loss).")
    ] = None,
    maximize: Annotated[bool, typer.Option("--maximize", help="More of the metric is better.")] = False,
    confirm: Annotated[
        int, typer.Option("--confirm", help="Fresh seeds for the best against the defaults.", min=0, max=256)
    ] = 6,
    requirements: Annotated[
        Path | None, typer.Option("--requirements", help="Packages that it needs.", show_default=False)
    ] = None,
    agents: options.Agents = "auto",
    require_signed: options.RequireSigned = False,
    asked: options.Asked,
    results: options.Results = Path("results"),
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Search for an experiment's best parameters, each trial in its own container."""
    if (given := sum(bool(one) for one in (goal, file, resume))) != 1:
        raise UsageProblem(f"give {'only one of ' if given else ''}a goal, or --file FILE, or --resume SWEEP")
    if file is not None and (agents != "auto" or require_signed):
        raise UsageProblem("--agents and --require-signed are for who writes an experiment: leave them out with --file")
    if resume is not None:
        _nothing_else(context)
        raise typer.Exit(_resumed(resume, Store(results), as_json))
    spec = SweepSpec(
        command=shlex.join(["labsandbox", *sys.argv[1:]]),
        goal=check_goal(" ".join(goal)) if goal else None,
        trials=trials, parallel=parallel, sampler=sampler, prune=prune, metric=metric, maximize=maximize,
        confirm=confirm, seed=seed, options=asked.of_lab().portable(),
    )  # fmt: skip
    if file is not None:
        begun = _from_file(spec, file, requirements, Store(results))
    else:
        begun = _from_goal(spec, agents, require_signed, requirements, Store(results))
    raise typer.Exit(_carried_out(begun, as_json))


@dataclass(frozen=True)
class _Begun:
    """A sweep with a folder, and the lab that it runs in."""

    spec: SweepSpec
    folder: RunFolder
    lab: Lab
    decision: Decision


def _resumed(name: str, store: Store, as_json: bool) -> int:
    """Carries on with one that broke off. Returns the exit status; raises UsageProblem, StoreError."""
    folder = store.existing(name, "sweep")
    if not folder.id.startswith("sweep_"):
        raise UsageProblem(f"{folder.id} is no sweep: {resuming(folder.id, store.root)} carries on with a sprint")
    spec = recorded_sweep(folder)
    if (summary := swept(folder.path)) is not None:
        note(f"{folder.id} has ended already; there is nothing left to do")
        return _show(summary, folder, as_json)
    return _carried_out(_Begun(spec, folder, *_open(spec.options)), as_json)


def _from_file(spec: SweepSpec, file: str, requirements: Path | None, store: Store) -> _Begun:
    """A new one, of the person's own experiment as it is."""
    code = read_code(file)
    imports = needed_imports(_checked(code, file))
    lab, decision = _open(spec.options)
    spec = spec.model_copy(update={"requirements": read_requirements(requirements), "imports": imports})
    return _Begun(spec, _new(spec, code, store), lab, decision)


def _from_goal(
    spec: SweepSpec, agents: AgentsChoice, require_signed: bool, requirements: Path | None, store: Store
) -> _Begun:
    """A new one, of an experiment that agents write; what they were asked and answered is put on record."""
    lab, decision = _open(spec.options)  # before anybody is asked
    calls: list[dict[str, Any]] = []
    experiment = _written(spec.goal or "", agents, require_signed, lab.flavour, calls)
    needed = (*experiment.requirements, *read_requirements(requirements))
    spec = spec.model_copy(update={"requirements": needed, "imports": experiment.imports})
    folder = _new(spec, experiment.code, store)
    for call in calls:
        folder.append_json(CALLS, call)
    return _Begun(spec, folder, lab, decision)


def _new(spec: SweepSpec, code: str, store: Store) -> RunFolder:
    folder = store.new("sweep")
    new_sweep(folder, spec, code)
    return folder


def _carried_out(begun: _Begun, as_json: bool) -> int:
    """Runs it to its end, and shows that. Returns the exit status; raises ExecutorError, KeyboardInterrupt."""
    from orchestrator.search.sweep import Stopped, Sweep, fitting

    spec, folder, lab = begun.spec, begun.folder, begun.lab
    note(f"results in {folder.path}")
    on_gpus = lab.executor.side_by_side(begun.decision, lab.request)
    at_a_time, said = fitting(begun.decision.limits, spec.parallel, on_gpus)
    if said:
        note(said)
    try:
        with serving():
            summary = Sweep(lab, spec, folder.path, at_a_time, lambda text: note(one_line(text, 300))).run()
    except Unfit as problem:  # it would be refused again
        refuse(folder, str(problem))
        raise
    except Stopped as stopped:
        if stopped.execution.outcome is Outcome.DENIED:
            refuse(folder, stopped.execution.message)
            raise RequestDenied(stopped.execution.message) from None
        _hint(folder)
        if stopped.execution.outcome is Outcome.CANCELLED:
            raise KeyboardInterrupt from None
        raise InfrastructureError(stopped.execution.message) from None
    except KeyboardInterrupt:
        _hint(folder)
        raise
    return _show(summary, folder, as_json)


def _nothing_else(context: typer.Context) -> None:
    """A sweep goes on as it began: an option that says otherwise would be ignored. Raises UsageProblem."""
    given = [name for name in context.params if str(context.get_parameter_source(name)).endswith("COMMANDLINE")]
    others = [name for name in given if name not in ("resume", "results", "as_json")]
    if others:
        raise UsageProblem(f"--resume carries on as the sweep began: leave out --{others[0].replace('_', '-')}")


def _open(chosen: LabOptions) -> tuple[Lab, Decision]:
    lab = open_lab(chosen, note)
    note(lab.why)
    return lab, lab.executor.preflight(lab.policy, lab.request)


def _hint(folder: RunFolder) -> None:
    note(f"not finished: {resuming(folder.id, folder.path.parent)} carries on from here")


def _written(
    goal: str, agents: AgentsChoice, require_signed: bool, flavour: Flavour, calls: list[dict[str, Any]]
) -> Experiment:
    """An experiment for a goal, by the agents; what was asked and answered goes into `calls`."""
    with connect(Settings.read(warn=note), agents, state_dir(), require_signed) as connected:
        note(connected.why)
        setup_team(connected.client)
        client = connected.client.for_sprint(secrets.token_hex(8), calls.append)
        prompt = (
            f"Goal: {goal}\nTask: sweep\n\nWrite one training as a single Python file. It reads its hyperparameters with "
            'p = lab.params(lr=("log", 1e-4, 1e-1), width=("int", 16, 128), …), uses lab.seed(), and logs lab.log(step=…, '
            "val_loss=…) as it goes; the last val_loss is its result. It ends within a few seconds."
        )
        answer = client.code(prompt, time.monotonic() + _ASKING)
    mended = mend(answer.code)
    report = _checked(mended.code, "the agents' code")
    return experiment_of(mended, report, answer.dependencies, flavour, 0)


def _checked(code: str, whose: str) -> SourceReport:
    report = check_source(code)
    if report.error is not None:
        raise UsageProblem(f"{whose}{f', line {report.line}' if report.line else ''}: {report.error}")
    return report


def _show(summary: dict[str, Any], folder: RunFolder, as_json: bool) -> int:
    if as_json:
        print_json(summary)
    else:
        show_sweep(summary, folder)
    return 0 if summary["best"] is not None else 1


def show_sweep(summary: dict[str, Any], folder: RunFolder) -> None:
    """What a sweep found, for people."""
    best = summary["best"]
    states = [trial["state"] for trial in summary["trials"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    console().print(f"Trials:    {counts}", soft_wrap=True)
    if best is not None:
        told = one_line(", ".join(f"{name} {value}" for name, value in best["params"].items()), 300)
        which = f"trial {best['number']}, {one_line(summary['metric'], 60)} {best['value']:.6g}"
        console().print(f"Best:      {which}, with {told}", soft_wrap=True)
        for name in summary["at_edge"]:
            console().print(
                f"           note: {one_line(name, 60)} is at an end of its range; a better one may lie beyond"
            )
    console().print(f"Verdict:   {one_line(summary['verdict'], 600)}", soft_wrap=True)
    console().print(f"Results:   {folder.path}", soft_wrap=True)
