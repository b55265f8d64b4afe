"""Reads metrics.jsonl back."""

from pathlib import Path

from executor.experiment import RECORD, MetricRecord, PlanRecord, RunRecord

AnyRecord = MetricRecord | PlanRecord | RunRecord


def read_records(path: Path) -> list[AnyRecord]:
    """Every record of the file, in order; [] when there is none.

    A torn last line, which a run that was killed may leave, is left out. Raises pydantic.ValidationError for a line
    that is no record.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return []
    with file:
        return [RECORD.validate_json(line) for line in file if line.endswith(b"\n")]
