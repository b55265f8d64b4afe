"""A run's folder, told to a tracker as if it went on now."""

import hashlib
import json
import math
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from executor.experiment import RECORD, AnyRecord, MetricRecord, PlanRecord, RunRecord
from results.export.tracker import Destination, ExportError, ExtractedRecord, RunInfo, State, Summary, Tracked
from results.series import MAX_ORIGIN
from results.store import CODE, CURVES, EXECUTION, EXTRACTED, METRICS, RunFolder, StoreError, read_object
from results.summary import execution_of, verdict_of

_FILES = (CURVES, "report.html")
_MAX_FILE = 256 << 20
_KNOWN: dict[str, type[MetricRecord] | type[PlanRecord] | type[RunRecord]] = {
    "metric": MetricRecord,
    "plan": PlanRecord,
    "run": RunRecord,
}


@dataclass(frozen=True)
class Exported:
    """What was written."""

    where: str
    entries: int
    records: int
    left_out: int
    unreadable: int
    """Lines that hold no record this version knows."""


def export(folder: RunFolder, summary: Mapping[str, Any], to: Destination, artifacts: bool = False) -> Exported:
    """Tells the run's records to `to`. `summary` is the sprint's, or empty.

    Whole or not at all: after a failure, what is there already is removed. Raises ExportError where the run is there.
    """
    if to.taken(folder.id):
        raise ExportError(f"{folder.id} is in {to.where} already: remove it there, or name another place with --out")
    return retell(folder, folder.id, summary, to, artifacts)


def retell(folder: RunFolder, name: str, summary: Mapping[str, Any], to: Destination, artifacts: bool) -> Exported:
    """The same under a `name` that is free."""
    execution = execution_of(dict(summary)) or read_execution(folder.path)
    tracked = Tracked(to)
    records = unreadable = 0
    try:
        tracked.begin(RunInfo(name, _began(execution, folder.path), _facts(folder.path, summary)))
        for record in records_of(folder.path):
            if record is None:
                unreadable += 1
            else:
                tracked.record(record)
                records += 1
        state = state_of(execution.get("outcome"), bool(execution.get("success")))
        told = {**execution_facts(execution), **({"verdict": text} if (text := verdict_of(dict(summary))) else {})}
        tracked.end(Summary(state, told, files_of(folder.path, artifacts)))
    except BaseException:
        tracked.abandon()
        raise
    return Exported(to.where, tracked.entries, records, tracked.left_out, unreadable)


def free_name(run: str, to: Destination) -> str:
    """The run's id; a second attempt, or one after a resume, gets a number behind it."""
    number, name = 1, run
    while to.taken(name):
        number += 1
        name = f"{run}.{number}"
    return name


def state_of(outcome: object, success: bool) -> State:
    """What other tools call an outcome: a run that was cancelled, or has no end on record, was killed."""
    if outcome == "completed" or (outcome is None and success):
        return "finished"
    return "killed" if outcome in (None, "cancelled") else "failed"


def execution_facts(execution: Mapping[str, Any]) -> dict[str, str]:
    """Outcome, policy, image and backend, of a record that may lack any part."""
    policy, image = execution.get("policy"), execution.get("image")
    found = {
        "outcome": execution.get("outcome"),
        "message": execution.get("message"),
        "execution": execution.get("execution_id"),
        "policy": policy.get("name") if isinstance(policy, dict) else None,
        "policy_sha256": policy.get("sha256") if isinstance(policy, dict) else None,
        "image": image.get("reference") if isinstance(image, dict) else None,
        "image_digest": image.get("digest") if isinstance(image, dict) else None,
        "backend": execution.get("backend"),
        "runtime": execution.get("runtime"),
    }
    return {name: value for name, value in found.items() if isinstance(value, str) and value}


def files_of(folder: Path, artifacts: bool, own: tuple[str, ...] = _FILES) -> dict[str, Path]:
    """The lab's own pictures and report; with `artifacts` also what the experiment left. Regular files only."""
    found = {name: folder / name for name in own}
    if artifacts:
        found |= {str(path.relative_to(folder)): path for path in sorted((folder / "artifacts").rglob("*"))}
    return {name: path for name, path in found.items() if _regular(path)}


def _regular(path: Path) -> bool:
    try:
        state = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(state.st_mode) and state.st_size <= _MAX_FILE and not path.name.startswith(".part-")


def records_of(folder: Path) -> Iterator[AnyRecord | None]:
    """What was sent, then what was read out of logs and files; None for a line that is no record."""
    for name in (METRICS, EXTRACTED):
        try:
            file = (folder / name).open("rb")
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StoreError(f"cannot read {folder / name}: {error.strerror}") from None
        with file:
            read = _extracted if name == EXTRACTED else _record
            yield from (read(line) for line in file if line.endswith(b"\n"))


def _record(line: bytes) -> AnyRecord | None:
    try:
        return RECORD.validate_json(line)
    except ValidationError:
        pass
    try:  # it may be of a version that knows more
        data = json.loads(line)
        known = _KNOWN[data["type"]]
        return RECORD.validate_python({name: data[name] for name in known.model_fields if name in data})
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _extracted(line: bytes) -> AnyRecord | None:
    """What was read out of logs and files: it says from where, and most sources have no times."""
    try:
        data = json.loads(line)
        if data["type"] != "metric":
            return None
        timed = isinstance(data.get("t"), int | float) and math.isfinite(data["t"])
        told = {name: data[name] for name in MetricRecord.model_fields if name in data}
        told |= {"t": data["t"] if timed else 0.0, "origin": str(data.get("origin") or "unknown")[:MAX_ORIGIN]}
        return ExtractedRecord.model_validate_json(json.dumps(told | {"timed": timed}))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def read_execution(folder: Path) -> dict[str, Any]:
    """The record of a single execution, or {}."""
    try:
        return read_object(folder / EXECUTION)
    except (OSError, ValueError, RecursionError):
        return {}


def _began(execution: Mapping[str, Any], folder: Path) -> float:
    try:
        return datetime.fromisoformat(str(execution.get("started_at"))).timestamp()
    except ValueError:
        return folder.stat().st_mtime


def _facts(folder: Path, summary: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    if isinstance(goal := summary.get("goal"), str):
        found["goal"] = goal
    if isinstance(seed := summary.get("seed"), int):
        found["base_seed"] = str(seed)
    try:
        found["code_sha256"] = hashlib.sha256((folder / CODE).read_bytes()).hexdigest()
    except OSError:
        pass
    return found
