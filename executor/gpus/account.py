"""How much device time a user had, by the audit log: what the box's ceilings are counted with."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

DAY = timedelta(hours=24)
_MARKS = (b'"event":"lease"', b'"event":"end"')


def gpu_seconds(lines: Iterable[bytes], uid: int, before: int | None = None, now: datetime | None = None) -> float:
    """Device time of a user's leases of the last 24 hours, in seconds.

    lines: of the audit log. before: a record's number; leases from there on do not count. A lease that has not ended
    counts with all the time that its run may take, so that runs side by side cannot have more than is left.
    """
    now = now or datetime.now(UTC)
    used: dict[str, float] = {}
    for line in lines:
        if not any(mark in line for mark in _MARKS):  # most records are others
            continue
        record = json.loads(line)
        if record["event"] not in ("lease", "end") or record["actor"]["uid"] != uid:
            continue
        execution, began = str(record.get("execution")), datetime.fromisoformat(str(record["time"]))
        if record["event"] == "end":
            if execution in used:
                used[execution] = record.get("gpu_seconds") or 0.0
        elif now - began <= DAY and (before is None or record["seq"] < before):
            used[execution] = record["at_most_s"] * len(record["gpus"])
    return sum(used.values())
