"""Records of comparisons with a known truth, and of the containers that they may have come from."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime

from executor.experiment import (
    AnyRecord,
    AuditRef,
    Execution,
    Outcome,
    PlanRecord,
    PolicyRef,
    RunRecord,
    Timings,
    Usage,
)


def study(
    values: dict[str, Sequence[float | None]],
    lower: bool = True,
    tried: Sequence[float] = (),
    skipped: Sequence[float] = (),
    **plan: object,
) -> list[AnyRecord]:
    """Records of a comparison; None is a run that diverged. Every arm was tuned over `tried`, and 0.1 was best."""
    seeds = list(range(max(len(column) for column in values.values())))
    records: list[AnyRecord] = [
        PlanRecord.model_validate(
            {
                "t": 0, "factor": "thing", "arms": list(values), "seeds": seeds, "primary": "loss",
                "lower_is_better": lower, **plan,
            }
        )
    ]  # fmt: skip
    records += [
        RunRecord(t=1, arm=arm, seed=99, phase="tune", status=status, values={"loss": 1.0}, config={"lr": lr})
        for arm in values
        for status, rates in (("ok", tried), ("skipped", skipped))
        for lr in rates
    ]
    for seed in seeds:
        for arm, column in values.items():
            value = column[seed] if seed < len(column) else None
            ok = value is not None
            records.append(
                RunRecord(
                    t=1, arm=arm, seed=seed, phase="confirm", status="ok" if ok else "diverged",
                    values={"loss": value if value is not None else math.nan}, config={"lr": 0.1},
                )
            )  # fmt: skip
    return records


def ended(outcome: str = "completed", rejected: int = 0) -> Execution:
    """A container that ended so, with that many records that were none."""
    return Execution(
        execution_id="e", outcome=Outcome(outcome), success=outcome == "completed", returncode=None, signal=None,
        message="", stdout="", stderr="", stdout_dropped_bytes=0, stderr_dropped_bytes=0, started_at=None,
        ended_at=datetime.now(UTC), timings=Timings(), limits={}, usage=Usage(), metrics=[], metrics_total=0,
        metrics_rejected=rejected, artifacts=[], artifacts_skipped=[], policy=PolicyRef(name="default", sha256=""),
        image=None, backend="oci", runtime="runc", audit=AuditRef(first=0, last=0),
    )  # fmt: skip
