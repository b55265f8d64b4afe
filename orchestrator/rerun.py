"""The same experiment once more: same code, same image, same packages; and what came out differently."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from executor.errors import SandboxUnavailable
from executor.experiment import Execution, Experiment, RunRecord
from executor.imports import check_source, needed_imports
from orchestrator.errors import UsageProblem
from orchestrator.journal import EVENTS, peek
from orchestrator.lab_setup import Lab, LabOptions, open_lab
from orchestrator.single import Watch, run_single
from orchestrator.spec import SprintSpec
from results.analysis import analyse
from results.metrics import read_records
from results.store import Store
from results.summary import execution_of, final_implementation, verdict_of

RERUN = "rerun.json"


@dataclass(frozen=True)
class Recorded:
    """What a sprint ran, so that it can be run again."""

    sprint: str
    code: str
    seed: int
    execution: Execution
    verdict: str | None
    options: LabOptions


@dataclass(frozen=True)
class Difference:
    """One thing that was, and is, different."""

    what: str
    recorded: str
    now: str


@dataclass(frozen=True)
class Rerun:
    """A repetition and its comparison."""

    execution: Execution
    folder: Path
    differences: list[Difference]
    equal: int
    """Trainings with the very same result."""
    trainings: int
    """Trainings that both have."""


def recorded(store: Store, sprint: str) -> Recorded:
    """Reads what a sprint ran last. Raises StoreError; UsageProblem where its record is not enough to repeat it."""
    folder = store.existing(sprint)
    summary = store.summary(folder.id)
    code = final_implementation(summary).get("code")
    if not isinstance(code, str) or not code.strip():
        raise UsageProblem(f"{folder.id} has no code on record")
    try:
        execution = Execution.from_json(execution_of(summary))
    except ValidationError:
        raise UsageProblem(f"{folder.id} has no whole execution on record (labsandbox replay takes its code)") from None
    if execution.image is None:
        raise UsageProblem(f"{folder.id}: the experiment was never started, so there is nothing to repeat")
    seed = summary.get("seed")
    options = _options(folder.path, execution)
    return Recorded(folder.id, code, seed if isinstance(seed, int) else 0, execution, verdict_of(summary), options)


def _options(folder: Path, execution: Execution) -> LabOptions:
    """As the journal has them, on the backend and runtime, and with the image, that it came to."""
    steps = peek(folder / EVENTS)
    try:
        options = SprintSpec.model_validate(steps[0]["result"]).options
    except (IndexError, KeyError, TypeError, ValidationError):
        options = LabOptions(policy=execution.policy.name)
    if execution.backend == "docker" and execution.image is not None:
        return replace(options, backend="docker", runtime=execution.runtime, image=execution.image.digest)
    return replace(options, backend="oci", runtime=execution.runtime, image=None)


def rerun(before: Recorded, seed: int, results: Path, note: Any, watch: Watch) -> Rerun:
    """Runs it again. Raises SandboxUnavailable when the image or environment is not there any more."""
    lab = open_lab(before.options, note)
    _same_image(lab, before.execution, note)
    report = check_source(before.code)
    experiment = Experiment(
        code=before.code, seed=seed, requirements=_pins(before.execution), imports=needed_imports(report)
    )
    execution, folder = run_single(lab, experiment, report.imports, results, watch)
    equal, both, differing = _trainings(before.execution, execution)
    verdict = analyse(read_records(folder / "metrics.jsonl")).verdict.text
    differences = [*_terms(before, execution, seed), *differing]
    if before.verdict is not None and execution.success and verdict != before.verdict:
        differences.append(Difference("verdict", before.verdict, verdict))
    return Rerun(execution, folder, differences, equal, both)


def _same_image(lab: Lab, before: Execution, note: Any) -> None:
    assert before.image is not None
    image = lab.executor.backend.prepare(note)
    if image.digest != before.image.digest:
        raise SandboxUnavailable(
            f"what the sprint ran in is not here any more: {before.image.digest}; this is {image.digest}"
        )


def _pins(execution: Execution) -> tuple[str, ...]:
    """The packages that were fetched then, in those versions."""
    return tuple(package.split(" ")[0] for package in execution.packages)


def _terms(before: Recorded, after: Execution, seed: int) -> Iterator[Difference]:
    was = before.execution
    pairs = {
        "seed": (before.seed, seed),
        "outcome": (f"{was.outcome}: {was.message}", f"{after.outcome}: {after.message}"),
        "policy": (f"{was.policy.name} {was.policy.sha256[:16]}", f"{after.policy.name} {after.policy.sha256[:16]}"),
        "isolation": (was.isolation, after.isolation),
        "packages": (", ".join(was.packages) or "none", ", ".join(after.packages) or "none"),
        "metrics": (was.metrics_total, after.metrics_total),
        "artifacts": (_artifacts(was), _artifacts(after)),
    }
    for name in sorted(was.limits.keys() | after.limits.keys()):
        pairs[f"limit {name}"] = (_effective(was, name), _effective(after, name))
    for what, (then, now) in pairs.items():
        if then != now:
            yield Difference(what, str(then), str(now))


def _effective(execution: Execution, name: str) -> str:
    return f"{execution.limits[name].effective:g}" if name in execution.limits else "none"


def _artifacts(execution: Execution) -> str:
    return ", ".join(f"{one.name} {one.sha256[:12]}" for one in execution.artifacts) or "none"


def _trainings(was: Execution, now: Execution) -> tuple[int, int, list[Difference]]:
    """How many trainings came out the same, how many both have, and those that did not."""
    then, again = _by_training(was), _by_training(now)
    both = [key for key in then if key in again]
    differing = [Difference(" ".join(key), then[key], again[key]) for key in both if then[key] != again[key]]
    if then.keys() != again.keys():
        gone, new = len(then) - len(both), len(again) - len(both)
        differing.append(
            Difference("trainings", f"{len(then)}, {gone} of them not now", f"{len(again)}, {new} of them new")
        )
    return sum(then[key] == again[key] for key in both), len(both), differing


def _by_training(execution: Execution) -> dict[tuple[str, ...], str]:
    """What each training returned, by phase, arm, seed and configuration."""
    found = {}
    for record in execution.metrics:
        if isinstance(record, RunRecord):
            config = " ".join(f"{name}={value}" for name, value in sorted(record.config.items()))
            values = ", ".join(f"{name} {value!r}" for name, value in sorted(record.values.items()))
            key = (record.phase, record.arm, f"seed {record.seed}", *([config] if record.phase == "tune" else []))
            found[key] = f"{record.status}: {values}" if values else record.status
    return found
