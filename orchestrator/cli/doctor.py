"""`labsandbox doctor`: what this machine can enforce, and what to do about the rest."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from orchestrator.choices import BackendChoice
from orchestrator.cli import options
from orchestrator.cli.status import INFRASTRUCTURE
from orchestrator.cli.terminal import console, note, one_line, print_json
from orchestrator.doctor import can_run, examine
from orchestrator.probe import Probed, attack


def doctor(
    probe: Annotated[bool, typer.Option("--probe", help="Attack the sandbox, and see what holds.")] = False,
    backend: options.Backend = "auto",
    runtime: options.Runtime = None,
    as_json: options.Json = False,
) -> None:
    """Say what this machine can enforce, and what to do about the rest."""
    if probe:
        _probe(backend, runtime, as_json)
    findings = examine()
    ready = can_run(findings)
    if as_json:
        print_json({"ready": ready, "findings": [asdict(finding) for finding in findings]})
    else:
        table = Table("", "what", "found", "what to do")
        for finding in findings:
            mark = {"ok": "✓", "missing": "–", "broken": "✗"}[finding.status]
            table.add_row(mark, finding.name, one_line(finding.detail), finding.remedy)
        console().print(table)
        console().print("Experiments can run here." if ready else "No experiment can run here yet.")
    raise typer.Exit(0 if ready else INFRASTRUCTURE)


def _probe(backend: BackendChoice, runtime: str | None, as_json: bool) -> None:
    """Every attack on every backend and runtime that this machine has, or on the one that was named."""
    broken = 0
    rows = []
    for probed in attack(backend, runtime, note):
        rows.append(probed)
        broken += not probed.finding.held
        if not as_json:
            _show(probed)
    if as_json:
        print_json([{"backend": row.backend, "runtime": row.runtime, **asdict(row.finding)} for row in rows])
    else:
        console().print(f"{len(rows) - broken} of {len(rows)} attacks were held.")
    raise typer.Exit(INFRASTRUCTURE if broken or not rows else 0)


def _show(probed: Probed) -> None:
    finding = probed.finding
    mark = "✓" if finding.held else "✗"
    console().print(f"{mark} {probed.backend}+{probed.runtime} {finding.name}: {finding.promise}", soft_wrap=True)
    if not finding.held:
        console().print(f"    {one_line(finding.detail)}", soft_wrap=True)
