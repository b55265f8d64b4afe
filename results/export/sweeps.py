"""A sweep's folder, told to a tracker: one entry for the sweep, and in its group one for each trial and each confirming run.

A trial has its parameters as config, its value as result, and what it logged; one that was pruned counts as killed.
"""

import json
import math
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from executor.experiment import AnyRecord, MetricRecord, RunRecord
from results.export.replay import Exported, execution_facts, files_of, read_execution, records_of
from results.export.tracker import Destination, ExportError, RunInfo, Summary, Tracked
from results.store import RunFolder, read_object

_FILES = ("history.png", "importance.png")
_STATUS = {"complete": "ok", "pruned": "skipped"}
_MOST_FACT = 2000


def export_sweep(folder: RunFolder, spec: Mapping[str, Any], summary: Mapping[str, Any], to: Destination) -> Exported:
    """Tells a sweep that has ended. Whole or not at all. Raises ExportError where it is there already."""
    if to.taken(folder.id):
        raise ExportError(f"{folder.id} is in {to.where} already: remove it there, or name another place with --out")
    tracked, records, unreadable = Tracked(to), 0, 0
    began = min(
        (at for at in map(_began, _folders(folder.path)) if at is not None), default=folder.path.stat().st_mtime
    )
    try:
        tracked.begin(RunInfo(folder.id, began, _facts(spec, summary)))
        for record in _records(folder.path, spec, summary, began):
            if record is None:
                unreadable += 1
            else:
                tracked.record(record)
                records += 1
        first = execution_facts(read_execution(folder.path / "trials/0"))
        told = {name: first[name] for name in first if name not in ("outcome", "message", "execution")}
        tracked.end(Summary("finished", {**told, **_found(summary)}, files_of(folder.path, False, _FILES)))
    except BaseException:
        tracked.abandon()
        raise
    return Exported(to.where, tracked.entries, records, tracked.left_out, unreadable)


def _folders(sweep: Path) -> list[Path]:
    return [path for kind in ("trials", "confirm") for path in (sweep / kind).glob("*") if path.is_dir()]


def _began(folder: Path) -> float | None:
    try:
        return datetime.fromisoformat(str(read_execution(folder).get("started_at"))).timestamp()
    except ValueError:
        return None


def _records(
    sweep: Path, spec: Mapping[str, Any], summary: Mapping[str, Any], began: float
) -> Iterator[AnyRecord | None]:
    """The trials in their order, then what confirmed the best; None for what is no record."""
    metric = str(summary.get("metric") or "value")
    trials = summary.get("trials")
    for trial in trials if isinstance(trials, list) else ():
        number = trial.get("number") if isinstance(trial, dict) else None
        if isinstance(number, int) and trial.get("state") != "lost":
            value = trial.get("value")
            ended = {
                "arm": f"Trial {number}", "seed": spec.get("seed"), "phase": "tune", "config": trial.get("params"),
                "status": _STATUS.get(str(trial.get("state")), "failed"), "error": str(trial.get("why") or "")[:_MOST_FACT] or None,
                "values": {metric: value} if isinstance(value, int | float) and math.isfinite(value) else {},
            }  # fmt: skip
            yield from _run(sweep / "trials" / str(number), ended, began)
    for folder in sorted((sweep / "confirm").glob("*")):
        try:
            ended = read_object(folder / "run.json")
        except (OSError, ValueError, RecursionError):
            continue
        yield from _run(folder, ended, began)


def _run(folder: Path, ended: dict[str, Any], began: float) -> Iterator[AnyRecord | None]:
    """What one run of the experiment logged, as that of one training, and its end. Its times count from the sweep's beginning."""
    execution, started = read_execution(folder), _began(folder)
    shift, last = (started or began) - began, 0.0
    who = {name: ended.get(name) for name in ("arm", "seed", "phase")}
    who["seed"] = who["seed"] if isinstance(who["seed"], int) else 0
    for record in records_of(folder):
        if record is None:
            yield None
        elif isinstance(record, MetricRecord):
            last = max(last, record.t)
            yield record.model_copy(update={**who, "t": record.t + shift})
    timings = execution.get("timings")
    seconds = timings.get("run_s") if isinstance(timings, dict) else None
    data = {
        **ended,
        **who,
        "type": "run",
        "t": last + shift,
        "seconds": seconds if isinstance(seconds, int | float) else 0.0,
    }
    try:
        yield RunRecord.model_validate(data)
    except ValidationError:
        yield None


def _facts(spec: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, str]:
    """What is known of it from the beginning."""
    found = {name: spec.get(name) for name in ("goal", "sampler", "trials", "seed", "command")}
    found["metric"] = summary.get("metric")
    found["better"] = "higher" if summary.get("maximize") else "lower"
    return {name: str(value) for name, value in found.items() if value is not None}


def _found(summary: Mapping[str, Any]) -> dict[str, str]:
    """What came of it."""
    found = {"verdict": summary.get("verdict"), "best": json.dumps(summary.get("best"))[:_MOST_FACT]}
    return {name: str(value) for name, value in found.items() if value}
