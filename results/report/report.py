"""A sprint's report: what was asked, what came out, how far it can be trusted, and how to run it again.

`write_report` makes report.html (one file that opens without a network), report.md and the figures' PNG files in the sprint's
folder. Everything in it comes from the summary, the records and the audit log; the verdict is the computed one. All of it is
data: jinja2 escapes what it puts in, and the page's policy lets nothing run or load.
"""

import base64
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from executor.experiment import Execution, PlanRecord, RunRecord
from policies.audit import AuditError, AuditLog
from policies.audit_check import prove
from policies.audit_query import what
from policies.checkpoint import CheckpointError
from results.analysis import analyse
from results.comment import comment_of, disagreement
from results.findings import Analysis, Verdict
from results.host import host_told
from results.report.figures import Picture, figures
from results.report.words import FILTERS, MAX_TEXT
from results.series import read_folder
from results.store import CODE, CURVES, METRICS, REQUIREMENTS, RunFolder
from results.summary import CONCLUSIONS, UNDECIDED, Summary, all_completed, final_implementation, part, verdict_of

HTML, MARKDOWN, FIGURES = "report.html", "report.md", "figures"
_MAX_ROWS = 500


@dataclass(frozen=True)
class Audit:
    """What the audit log has of a sprint's executions."""

    lines: list[tuple[int, str, str]] = field(default_factory=list)
    """Number, time and point of each record."""
    proofs: list[tuple[int, str]] = field(default_factory=list)
    """Of the first record and of the last: that it is in the log, to be checked without it (`labsandbox audit check`)."""
    problem: str = ""


@dataclass(frozen=True)
class Report:
    """All that a report shows."""

    id: str
    summary: Summary
    analysis: Analysis
    plan: PlanRecord | None
    runs: list[RunRecord]
    runs_left_out: int
    executions: list[Execution]
    code: str
    requirements: str
    """The versions of all that it imported."""
    hashes: dict[str, str]
    """sha256 of what a result stands on, by file."""
    pictures: list[Picture]
    audit: Audit
    host: str
    """Where the sprint ran, as it was recorded then."""
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
    runs = [record for record in records if isinstance(record, RunRecord)]
    implementation = final_implementation(summary)
    executions = list(_executions(implementation))
    analysis = analyse(records, executions, found.series)
    return Report(
        id=folder.id,
        summary=summary,
        analysis=analysis,
        plan=next((record for record in records if isinstance(record, PlanRecord)), None),
        runs=runs[:_MAX_ROWS],
        runs_left_out=max(0, len(runs) - _MAX_ROWS),
        executions=executions,
        code=str(implementation.get("code") or ""),
        requirements=_beginning(folder.path / REQUIREMENTS),
        hashes=dict(_hashes(folder.path)),
        pictures=figures(records, found.series, analysis),
        audit=_audit(executions, audit_log),
        host=host_told(summary.get("host")),
        logged=_encoded(folder.path / CURVES),
    )


def _beginning(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(4 * MAX_TEXT).decode(errors="replace")
    except OSError:
        return ""


def _hashes(folder: Path) -> Iterable[tuple[str, str]]:
    for name in (CODE, METRICS):
        try:
            with (folder / name).open("rb") as file:
                yield name, hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            continue


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
        proved = dict.fromkeys(number for number, _, _ in (*lines[:1], *lines[-1:]))
        proofs = [(number, prove(path, number)) for number in proved]
        return Audit(lines, proofs, "" if lines else "the audit log has none of it")
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
    environment.filters |= FILTERS
    head, comment = headline(report), comment_of(report.summary)[0]
    return environment.get_template(template).render(
        report=report,
        told=lambda key: str(report.summary.get(key, "not on record")),
        responses=_responses(report.summary),
        repairs=list(_repairs(report.summary)),
        analysis=report.analysis,
        several=len(report.analysis.arms) > 2,
        verdict=head,
        sentence=_sentence(report),
        comment=comment,
        disagrees=_disagrees(report, comment, head),
        terms=_terms(report.executions),
        limits=_limits(report.executions),
        scope=_scope(report),
        figure=lambda name: _figure(report, name),
        part=lambda *path: part(report.summary, *path),
        trials=[run for run in report.runs if run.phase == "tune"],
    )


def _disagrees(report: Report, comment: str, head: Verdict) -> str:
    """Whether the comment goes against what heads the report; the sentence that the sprint has of it does not."""
    analysis, recorded = report.analysis, part(report.summary, "validation", "numbers").get("verdict")
    word = recorded.get("word") if isinstance(recorded, dict) else None
    said = verdict_of(report.summary) if word == head.word else None
    told = head.model_copy(update={"text": said or head.text})
    arms, contrasts = [arm.name for arm in analysis.arms], [*analysis.contrasts, *analysis.rivals]
    return disagreement(comment, told, arms, contrasts, analysis.lower_is_better is not False)


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


def headline(report: Report) -> Verdict:
    """The verdict that heads a report: nothing is concluded from a run that did not come to its own end, whatever it
    recorded until then, and whatever an older version made of that."""
    verdict = report.analysis.verdict
    if verdict.word not in CONCLUSIONS or all_completed(report.summary):
        return verdict
    return verdict.model_copy(update={"word": UNDECIDED, "arm": None})


def _sentence(report: Report) -> str:
    """The verdict as the sprint has it, which says so where the run did not complete. Where its record has another word than
    what is computed of it now, both are told."""
    head, computed, said = headline(report), report.analysis.verdict, verdict_of(report.summary)
    numbers = part(report.summary, "validation", "numbers").get("verdict")
    recorded = numbers.get("word") if isinstance(numbers, dict) else None
    if said and (recorded == head.word or (recorded is None and head == computed)):
        return said
    begin = "" if head == computed else "Not every run came to its own end. From what was recorded until then: "
    later = f" When the sprint ended, its record said: {said}" if said else ""
    return f"{begin}{computed.text}{later}"


def _terms(executions: Sequence[Execution]) -> list[tuple[str, Execution]]:
    """Under what the containers ran, said once for those that had the same: which (where they
    differ), and one of them."""
    return _alike(
        executions,
        lambda one: (one.policy, one.isolation, one.backend, one.runtime, one.image, one.packages, one.gpus),
    )


def _limits(executions: Sequence[Execution]) -> list[tuple[str, Execution]]:
    """The same of their limits."""
    return _alike(executions, lambda one: one.limits)


def _alike(executions: Sequence[Execution], of: Callable[[Execution], object]) -> list[tuple[str, Execution]]:
    groups: list[list[Execution]] = []
    for one in executions:
        group = next((group for group in groups if of(group[0]) == of(one)), None)
        if group is None:
            groups.append([one])
        else:
            group.append(one)
    many = len(groups) > 1
    return [
        (f"Container {', '.join(one.execution_id for one in group)}: " if many else "", group[0]) for group in groups
    ]


def _scope(report: Report) -> str:
    """To what the result is limited."""
    if not report.analysis.contrasts or not all_completed(report.summary):
        return "Nothing is claimed."
    seeds = max(contrast.pairs for contrast in report.analysis.contrasts)
    seconds = max(arm.seconds for arm in report.analysis.arms)
    # A grid of one arm's own is planned as `lr[Lion]`.
    tuned = ", ".join(dict.fromkeys(name.partition("[")[0] for name in report.plan.tune)) if report.plan else ""
    return (
        f"This holds for this model, these data, trainings of about {seconds:.0f} s and {seeds} seeds on this hardware, with "
        f"{f'{tuned} tuned for each arm and all else fixed' if tuned else 'nothing tuned'}. At another scale, or with longer "
        "training, the order may differ."
    )
