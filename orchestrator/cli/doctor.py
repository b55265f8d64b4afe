"""`labsandbox doctor`: what this machine can enforce, and what to do about the rest."""

from dataclasses import asdict

import typer
from rich.table import Table

from orchestrator.cli import options
from orchestrator.cli.status import INFRASTRUCTURE
from orchestrator.cli.terminal import console, one_line, print_json
from orchestrator.doctor import can_run, examine


def doctor(as_json: options.Json = False) -> None:
    """Say what this machine can enforce, and what to do about the rest."""
    findings = examine()
    ready = can_run(findings)
    if as_json:
        print_json({"ready": ready, "findings": [asdict(finding) for finding in findings]})
    else:
        table = Table("", "what", "found", "what to do")
        for finding in findings:
            mark = {"ok": "✓", "missing": "–", "broken": "✗"}[finding.status]
            table.add_row(mark, finding.name, one_line(finding.detail), finding.remedy)
        console.print(table)
        console.print("Experiments can run here." if ready else "No experiment can run here yet.")
    raise typer.Exit(0 if ready else INFRASTRUCTURE)
