"""`labsandbox memory`: what earlier sprints and sweeps found, found again."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import options
from orchestrator.cli.terminal import console, note, one_line, print_json
from orchestrator.errors import UsageProblem
from policies.state import memory_path
from results.lessons import Finding
from results.memory import Memory

app = typer.Typer(
    no_args_is_help=True, help="What earlier sprints and sweeps found: goals, findings with effect sizes, dead ends."
)


@app.command("search")
def search(
    words: Annotated[list[str], typer.Argument(help="What it is about.")],
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="How many at most.")] = 10,
    results: options.Results = Path("results"),
    as_json: options.Json = False,
) -> None:
    """The sprints and sweeps that have most to do with some words, best first."""
    found = _memory(results).search(" ".join(words), limit)
    if as_json:
        print_json([one.model_dump(mode="json") for one in found])
        return
    for one in found:
        console().print(f"{one.sprint}  {one_line(one.goal, 160)}", soft_wrap=True)
        console().print(f"  {_said(one)}", soft_wrap=True)
    if not found:
        note("nothing on record has to do with these words")


@app.command("show")
def show(
    sprint: Annotated[str, typer.Argument(help="A sprint's id, or a sweep's.")],
    results: options.Results = Path("results"),
    as_json: options.Json = False,
) -> None:
    """What is remembered of one sprint or sweep."""
    found = _memory(results).show(sprint)
    if found is None:
        raise UsageProblem(f"nothing is remembered of {ascii(sprint)[1:-1][:100]}")
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    console().print(f"Goal:    {one_line(found.goal, 500)}", soft_wrap=True)
    console().print(f"Found:   {_said(found)}", soft_wrap=True)
    for repair in found.repairs:
        console().print(f"Repair:  {one_line(repair, 300)}", soft_wrap=True)
    for effect in found.effects:
        told = f"{effect.mean:+.4g} ({effect.low:+.4g} to {effect.high:+.4g}, {effect.pairs} pairs)"
        names = f"{one_line(effect.arm, 60)} − {one_line(effect.baseline, 60)}"
        console().print(f"Effect:  {names}, {one_line(found.primary, 60)} {told}", soft_wrap=True)
    for setting in found.settings:
        told = ", ".join(f"{name} {value}" for name, value in setting.config.items())
        console().print(f"Tuned:   {one_line(setting.arm, 60)}: {one_line(told, 200)}", soft_wrap=True)


@app.command("rebuild")
def rebuild(results: options.Results = Path("results")) -> None:
    """Make the index anew from the results folder."""
    note(f"{_memory(results).rebuild()} sprint(s) and sweep(s) in the index")


def _memory(results: Path) -> Memory:
    return Memory(memory_path(), results)


def _said(finding: Finding) -> str:
    said = one_line(finding.verdict or finding.failure or "nothing", 400)
    if finding.failure and finding.verdict:
        said += f" [{one_line(finding.failure, 160)}]"
    return f"{said} (superseded by {finding.superseded_by})" if finding.superseded_by else said
