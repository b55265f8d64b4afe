"""Which of the recorded trainings count, and as what."""

import math
from collections.abc import Sequence

from executor.experiment import PlanRecord, RunRecord
from results.statistics import usable


def planned(plan: PlanRecord, runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The confirming runs that the plan names, the first of each: others prove nothing, and could be without end. One
    that was skipped may have been made in a further container."""
    found: dict[tuple[str, int], RunRecord] = {}
    arms, seeds = set(plan.arms), set(plan.seeds)
    for run in runs:
        if run.phase == "confirm" and run.arm in arms and run.seed in seeds:
            known = found.get((run.arm, run.seed))
            if known is None or known.status == "skipped":
                found[run.arm, run.seed] = run
    return list(found.values())


def status_of(run: RunRecord, metric: str) -> str:
    """The run's status; `ok` is taken at its word only when the metric is a number to calculate with."""
    if run.status != "ok":
        return run.status
    return "ok" if usable(run.values.get(metric, math.nan)) else "diverged"


def outcomes_of(plan: PlanRecord, runs: Sequence[RunRecord]) -> dict[str, dict[int, float]]:
    """The primary metric of every complete run, by arm and seed."""
    return {
        arm: {
            run.seed: run.values[plan.primary]
            for run in runs
            if run.arm == arm and status_of(run, plan.primary) == "ok"
        }
        for arm in plan.arms
    }
