"""A sprint's report: what was asked, what came out, how far it can be trusted, and how to run it again.

`write_report` makes report.html (one file that opens without a network), report.md and the figures' PNG files in the sprint's
folder. Everything in it comes from the summary, the records and the audit log; the verdict is the computed one. All of it is
data: jinja2 escapes what it puts in, and the page's policy lets nothing run or load.
"""

import base64
import hashlib
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from executor.experiment import Execution, PlanRecord, RunRecord
from policies.audit import AuditError, AuditLog
from policies.audit_check import prove
from policies.audit_query import what
from policies.checkpoint import CheckpointError
from policies.units import format_bytes, format_seconds
from results.analysis import analyse
from results.findings import Analysis
from results.report.figures import Picture, figures
from results.series import read_folder
from results.store import RunFolder
from results.summary import Summary, final_implementation, part, verdict_of

HTML, MARKDOWN, FIGURES = "report.html", "report.md", "figures"
_MAX_TEXT = 20_000
"""Characters of an agent's words, or of a program, that a report repeats."""
_MAX_ROWS = 500
_BYTES = ("memory", "workspace", "tmp", "shm", "output", "metrics", "artifacts", "gpu_memory")


@dataclass(frozen=True)
class Audit:
    """What the audit log has of a sprint's executions."""

    lines: list[tuple[int, str, str]] = field(default_factory=list)
    """Number, time and point of each record."""
    proof: str = ""
    """That the first is in the log, to be checked without it: `labsandbox audit check`."""
    problem: str = ""


@dataclass(frozen=True)
class Report:
    """All that a report shows."""

    id: str
    summary: Summary
    analysis: Analysis
    plan: PlanRecord | None
    runs: list[RunRecord]
    executions: list[Execution]
    code: str
    requirements: str
    """The versions of all that it imported."""
    hashes: dict[str, str]
    """sha256 of what a result stands on, by file."""
    pictures: list[Picture]
    audit: Audit
    host: str
    logged: str
    """curves.png in base64, where it exists: all that there is to see of what is no comparison."""


def write_report(folder: RunFolder, summary: Summary, audit_log: Path | None) -> Path:
    """Writes the report of a sprint that has a summary, and returns the page's path. Raises OSError."""
    report = gather(folder, summary, audit_log)
    figure_folder = folder.path / FIGURES
    figure_folder.mkdir(exist_ok=True)
    pictures = RunFolder(figure_folder)
    for picture in report.pictures:
        pictures.write_bytes(f"{picture.name}.png", picture.png)
    folder.write_text(MARKDOWN, render(report, "report.md.j2"))
    folder.write_text(HTML, render(report, "report.html.j2"))
    return folder.path / HTML


def gather(folder: RunFolder, summary: Summary, audit_log: Path | None) -> Report:
    """Reads everything that a report shows."""
    found = read_folder(folder.path)
    records = found.records
    implementation = final_implementation(summary)
    executions = list(_executions(implementation))
    analysis = analyse(records, executions, found.series)
    return Report(
        id=folder.id,
        summary=summary,
        analysis=analysis,
        plan=next((record for record in records if isinstance(record, PlanRecord)), None),
        runs=[record for record in records if isinstance(record, RunRecord)][:_MAX_ROWS],
        executions=executions,
        code=str(implementation.get("code") or "")[:_MAX_TEXT],
        requirements=_beginning(folder.path / "requirements.txt"),
        hashes=dict(_hashes(folder.path)),
        pictures=figures(records, found.series, analysis),
        audit=_audit(executions, audit_log),
        host=f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        logged=_encoded(folder.path / "curves.png"),
    )


def _beginning(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_TEXT).decode(errors="replace")
    except OSError:
        return ""


def _hashes(folder: Path) -> Iterable[tuple[str, str]]:
    for name in ("experiment.py", "metrics.jsonl"):
        try:
            with (folder / name).open("rb") as file:
                yield name, hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            continue


def _processor() -> str:
    """The model as Linux tells it."""
    names = re.findall(r"^model name\s*:\s*(.+)$", _beginning(Path("/proc/cpuinfo")), re.MULTILINE)
    return names[0] if names else platform.machine()


def _encoded(path: Path) -> str:
    try:
        return base64.b64encode(path.read_bytes()).decode()
    except OSError:
        return ""


def _executions(implementation: Mapping[str, Any]) -> Iterable[Execution]:
    further = implementation.get("further_containers")
    for data in (implementation.get("execution"), *(further if isinstance(further, list) else ())):
        try:
            yield Execution.from_json(data)
        except ValidationError:
            continue  # an older record, or none: the report says less


def _audit(executions: Sequence[Execution], path: Path | None) -> Audit:
    ids = {execution.execution_id for execution in executions}
    if path is None or not ids:
        return Audit(problem="no execution is on record")
    try:
        records = [record for record in AuditLog(path).records() if record.get("execution") in ids]
        lines = [(int(record["seq"]), str(record["time"]), what(record)) for record in records]
        return Audit(lines, prove(path, lines[0][0]) if lines else "", "" if lines else "the audit log has none of it")
    except (AuditError, CheckpointError, KeyError, ValueError) as error:
        return Audit(problem=str(error))


def render(report: Report, template: str) -> str:
    """One of the two texts."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("results.report"),
        undefined=StrictUndefined,
        autoescape=template.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "g": lambda value: "–" if value is None else f"{value:.4g}",
        "signed": lambda value: "–" if value is None else f"{value:+.4g}",
        "bytes": lambda value: "–" if value is None else format_bytes(int(value)),
        "seconds": lambda value: "–" if value is None else f"{value:.1f} s",
        "limit": _limit,
        "moment": _moment,
        "oneline": lambda text: " ".join(str(text).split()),
        "line": lambda text: _line(text).replace("|", "\\|"),
        "setting": lambda config: ", ".join(f"{name} {_short(value)}" for name, value in config.items()) or "–",
        "cut": lambda text: str(text)[:_MAX_TEXT],
    }
    return environment.get_template(template).render(
        report=report,
        told=lambda key: str(report.summary.get(key, "not on record")),
        responses=_responses(report.summary),
        repairs=list(_repairs(report.summary)),
        analysis=report.analysis,
        verdict=report.analysis.verdict,
        sentence=_sentence(report),
        scope=_scope(report),
        figure=lambda name: _figure(report, name),
        part=lambda *path: part(report.summary, *path),
        trials=[run for run in report.runs if run.phase == "tune"],
    )


def _responses(summary: Summary) -> Mapping[str, Any]:
    found = part(summary, "discussion").get("individual_responses")
    return found if isinstance(found, dict) else {}


def _repairs(summary: Summary) -> Iterable[tuple[Any, Any]]:
    found = part(summary, "self_healing").get("attempts")
    for one in found if isinstance(found, list) else ():
        if isinstance(one, dict):
            yield one.get("failure"), one.get("decision")


def _figure(report: Report, name: str) -> str:
    """A figure as an element of the page; nothing where there is none. Its SVG is matplotlib's, which escapes texts."""
    from markupsafe import Markup

    picture = next((one for one in report.pictures if one.name == name), None)
    if picture is None:
        return ""
    frame = Markup('<figure role="img" aria-label="{}">{}<figcaption>{}</figcaption></figure>')
    return frame.format(picture.alt, Markup(picture.svg), picture.title)


def _sentence(report: Report) -> str:
    """The verdict as the sprint has it: it says so where the run did not complete."""
    return verdict_of(report.summary) or report.analysis.verdict.text


def _scope(report: Report) -> str:
    """To what the result is limited."""
    if not report.analysis.contrasts:
        return "Nothing is claimed."
    seeds = max(contrast.pairs for contrast in report.analysis.contrasts)
    seconds = max(arm.seconds for arm in report.analysis.arms)
    tuned = ", ".join(report.plan.tune) if report.plan else ""
    return (
        f"This holds for this model, these data, trainings of about {seconds:.0f} s and {seeds} seeds on this hardware, with "
        f"{f'{tuned} tuned for each arm and all else fixed' if tuned else 'nothing tuned'}. At another scale, or with longer "
        "training, the order may differ."
    )


def _limit(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name in _BYTES:
        return format_bytes(int(value))
    return format_seconds(value) if name == "wall" else f"{value:g}"


def _moment(text: object) -> str:
    try:
        return datetime.fromisoformat(str(text).replace("Z", "+00:00")).strftime("%Y-%m-%d %H:%M:%S UTC")
    except ValueError:
        return "–"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:40]


def _line(text: object) -> str:
    """On one line of Markdown, where nothing is markup."""
    plain = " ".join(str(text).split())
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#!$~" else c for c in plain if c.isprintable())
