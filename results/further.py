"""What a study's records leave for a further container, where its time was too short."""

from collections.abc import Iterable

from executor.experiment import AnyRecord, KeptRecord, Left, PlanRecord, RunRecord


def left_of(records: Iterable[AnyRecord]) -> Left | None:
    """What the next container must know; None where there is nothing to go on with.

    Only whole pairs count as made: every arm of a seed.
    """
    found = list(records)
    plan = next((record for record in found if isinstance(record, PlanRecord)), None)
    if plan is None:
        return None
    runs = [record for record in found if isinstance(record, RunRecord)]
    made = {(run.arm, run.seed): run for run in reversed(runs) if run.phase == "confirm" and run.status != "skipped"}
    whole = [seed for seed in dict.fromkeys(plan.seeds) if all((arm, seed) in made for arm in plan.arms)]
    if len(whole) == len(set(plan.seeds)):
        return None
    chosen = {run.arm: run.config for run in reversed(runs) if run.phase == "confirm" and run.arm in plan.arms}
    if len(chosen) < len(set(plan.arms)):
        return None
    again = [run for run in runs if run.phase == "noise" and run.status != "skipped"]
    kept = {record.name: record.value for record in reversed(found) if isinstance(record, KeptRecord)}
    return Left(kept=kept, chosen=chosen, runs=(*(made[arm, seed] for seed in whole for arm in plan.arms), *again))
