"""The same experiment once more: same code, same image, same packages, same sizes; and what came out differently."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from executor.backends.base import Progress
from executor.errors import SandboxUnavailable
from executor.experiment import AnyRecord, Execution, Experiment, KeptRecord, Left, PlanRecord, RunRecord
from executor.imports import check_source, needed_imports
from orchestrator.errors import UsageProblem
from orchestrator.journal import EVENTS, peek
from orchestrator.lab_setup import Lab, LabOptions, open_lab
from orchestrator.single import Watch, run_single
from orchestrator.spec import SprintSpec
from results.analysis import analyse
from results.curves import draw_run
from results.further import left_of
from results.series import read_folder
from results.store import RunFolder, Store
from results.summary import execution_of, final_implementation, verdict_of

RERUN = "rerun.json"


@dataclass(frozen=True)
class RecordedSprint:
    """What a sprint ran, so that it can be run again."""

    sprint: str
    code: str
    seed: int
    execution: Execution
    further: int
    """Containers in which the study went on."""
    records: Sequence[AnyRecord]
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
    """The last container's."""
    folder: Path
    differences: list[Difference]
    equal: int
    """Trainings with the very same result."""
    trainings: int
    """Trainings that both have."""


def recorded(store: Store, sprint: str) -> RecordedSprint:
    """Reads what a sprint ran last. Raises StoreError; UsageProblem where its record is not enough to repeat it."""
    folder = store.existing(sprint)
    summary = store.summary(folder.id)
    implementation = final_implementation(summary)
    code, further = implementation.get("code"), implementation.get("further_containers")
    if not isinstance(code, str) or not code.strip():
        raise UsageProblem(f"{folder.id} has no code on record")
    try:
        execution = Execution.from_json(execution_of(summary))
    except ValidationError:
        raise UsageProblem(
            f"{folder.id} has no complete execution on record (labsandbox replay takes its code)"
        ) from None
    if execution.image is None:
        raise UsageProblem(f"{folder.id}: the experiment was never started, so there is nothing to repeat")
    seed = summary.get("seed")
    return RecordedSprint(
        sprint=folder.id,
        code=code,
        seed=seed if isinstance(seed, int) else 0,
        execution=execution,
        further=len(further) if isinstance(further, list) else 0,
        records=read_folder(folder.path).records,
        verdict=verdict_of(summary),
        options=_options(folder.path, execution),
    )


def _options(folder: Path, execution: Execution) -> LabOptions:
    """As the journal has them, on the backend and runtime, and with the image, that it came to."""
    steps = peek(folder / EVENTS)
    try:
        options = SprintSpec.model_validate(steps[0]["result"]).options
    except (IndexError, KeyError, TypeError, ValidationError):
        options = LabOptions(policy=execution.policy.name)
    if execution.backend == "docker" and execution.image is not None:
        return replace(options, backend="docker", runtime=execution.runtime, image=execution.image.digest)
    return replace(options, backend="oci", runtime=execution.runtime)


def rerun(before: RecordedSprint, seed: int, results: Path, note: Progress, watch: Watch) -> Rerun:
    """Runs it again, in as many containers as the study had, with the sizes that it kept: measured anew, the same seeds
    would train for another number of steps. Raises SandboxUnavailable when the image or environment is not there any more.
    """
    lab = open_lab(before.options, note)
    _same_image(lab, before.execution, note)
    report = check_source(before.code)
    kept = {record.name: record.value for record in before.records if isinstance(record, KeptRecord)}
    wall = before.execution.limits.get("wall")
    experiment = Experiment(
        code=before.code,
        seed=seed,
        requirements=_pins(before.execution),
        imports=needed_imports(report),
        left=Left(kept=kept),
        more=before.further * wall.effective if wall else 0.0,
    )
    execution, folder = run_single(lab, experiment, report.imports, results, watch)
    further = list(_further(lab, experiment, RunFolder(folder), before.further, watch))
    last = further[-1] if further else execution
    found = read_folder(folder)
    equal, both, differing = _trainings(before.records, found.records)
    verdict = analyse(found.records, [execution, *further], found.series).verdict.text
    differences = [*_terms(before, execution, seed), *differing]
    if len(further) != before.further:
        differences.append(Difference("containers", str(1 + before.further), str(1 + len(further))))
    if before.verdict is not None and last.success and verdict != before.verdict:
        differences.append(Difference("verdict", before.verdict, verdict))
    return Rerun(last, folder, differences, equal, both)


def _further(lab: Lab, experiment: Experiment, folder: RunFolder, most: int, watch: Watch) -> Iterator[Execution]:
    """The containers in which the study goes on where the first was too short."""
    assert experiment.left is not None
    for _ in range(most):
        left = left_of(read_folder(folder.path).records)
        if left is None:
            return
        left = left.model_copy(update={"kept": {**experiment.left.kept, **left.kept}})
        folder.open(go_on=True)
        try:
            execution = lab.executor.run(
                experiment.model_copy(update={"left": left}), lab.policy, lab.request, watch(folder)
            )
        finally:
            folder.close()
        draw_run(folder.path)
        yield execution
        if not execution.success:
            return


def _same_image(lab: Lab, before: Execution, note: Progress) -> None:
    assert before.image is not None
    image = lab.executor.backend.prepare(note)
    if image.digest != before.image.digest:
        raise SandboxUnavailable(
            f"what the sprint ran in is no longer here: {before.image.digest}; this is {image.digest}"
        )


def _pins(execution: Execution) -> tuple[str, ...]:
    """The packages that were fetched then, in those versions."""
    return tuple(package.split(" ")[0] for package in execution.packages)


def _terms(before: RecordedSprint, after: Execution, seed: int) -> Iterator[Difference]:
    was = before.execution
    pairs = {
        "seed": (before.seed, seed),
        "outcome": (f"{was.outcome}: {was.message}", f"{after.outcome}: {after.message}"),
        "policy": (f"{was.policy.name} {was.policy.sha256[:16]}", f"{after.policy.name} {after.policy.sha256[:16]}"),
        "isolation": (was.isolation, after.isolation),
        "GPUs": (_gpus(was), _gpus(after)),
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


def _gpus(execution: Execution) -> str:
    return ", ".join(gpu.name for gpu in execution.usage.gpus) or "none"


def _artifacts(execution: Execution) -> str:
    return ", ".join(f"{one.name} {one.sha256[:12]}" for one in execution.artifacts) or "none"


def _trainings(was: Iterable[AnyRecord], now: Iterable[AnyRecord]) -> tuple[int, int, list[Difference]]:
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


def _by_training(records: Iterable[AnyRecord]) -> dict[tuple[str, ...], str]:
    """What decides of each training, by phase, arm, seed and configuration; how long its steps took is never the same."""
    found, decides = {}, set[str]()
    for record in records:
        if isinstance(record, PlanRecord):
            decides = {record.primary, record.select or record.primary}
        elif isinstance(record, RunRecord) and record.status != "skipped":
            config = " ".join(f"{name}={value}" for name, value in sorted(record.config.items()))
            values = ", ".join(f"{name} {value!r}" for name, value in sorted(record.values.items()) if name in decides)
            key = (record.phase, record.arm, f"seed {record.seed}", *([config] if record.phase == "tune" else []))
            found[key] = f"{record.status}: {values}" if values else record.status
    return found
