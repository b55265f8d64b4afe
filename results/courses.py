"""The courses of trainings: each one's learning curve by step and by second, and what arms can be compared by along them."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from executor.experiment import PlanRecord, RunRecord
from results.findings import AtEqualTime, Reached, Target
from results.series import LAB, Series
from results.statistics import TOO_LARGE, Floats, holm, sign_flip, t_interval

_LOWER = re.compile(r"loss|perplexity|ppl|err(or)?(_|$)|nll", re.IGNORECASE)
_HIGHER = re.compile(r"acc(uracy)?(_|$)|(^|_)f1|score|reward|return", re.IGNORECASE)

Training = tuple[str, int]
"""Arm and seed."""


@dataclass(frozen=True)
class Course:
    """One training's curve, as logged: what can be calculated with."""

    steps: Floats
    seconds: Floats
    """Since the training began."""
    values: Floats

    def at(self, seconds: float) -> float | None:
        """The value at that time, on the line between the two logged around it; None outside of what was logged.

        The last logged value would be older for one arm than for the other, and an old loss is a worse one.
        """
        if not self.seconds[0] <= seconds <= self.seconds[-1]:
            return None
        return float(np.interp(seconds, self.seconds, self.values))

    def first(self, target: float, sign: int) -> int | None:
        """Where it first was at least as good as the target."""
        there = np.flatnonzero(sign * self.values <= sign * target)
        return int(there[0]) if len(there) else None


def curve_metric(plan: PlanRecord, series: Iterable[Series]) -> str | None:
    """What was logged while training that says most about the outcome: the primary, else what tuning selects by, else
    what was logged most often; None where nothing was."""
    counts: Counter[str] = Counter()
    for one in series:
        if one.phase == "confirm" and one.origin == LAB:
            counts[one.name] += len(one.values)
    wanted = next((name for name in (plan.primary, plan.select) if name in counts), None)
    return wanted or next((name for name, _ in counts.most_common(1)), None)


def courses(series: Iterable[Series], runs: Sequence[RunRecord], metric: str) -> dict[Training, Course]:
    """The curves of the trainings `runs`."""
    made = {(run.arm, run.seed): run for run in runs}
    found: dict[Training, Course] = {}
    for one in series:
        run = made.get((one.arm or "", one.seed if one.seed is not None else -1))
        if run is None or one.name != metric or one.phase != "confirm" or one.origin != LAB:
            continue
        seconds = one.seconds - (run.t - run.seconds)
        # Each container counts its own seconds: what is beyond the training is of an attempt that another cut off.
        kept = (np.abs(one.values) < TOO_LARGE) & (np.abs(one.steps) < TOO_LARGE)
        kept &= (seconds > -1) & (seconds < min(run.seconds, TOO_LARGE) + 1)
        if kept.any():
            found[run.arm, run.seed] = Course(one.steps[kept], np.maximum(seconds[kept], 0.0), one.values[kept])
    return found


def at_equal_time(plan: PlanRecord, found: Mapping[Training, Course], metric: str) -> list[AtEqualTime]:
    """Every arm against the baseline after as many seconds as the shorter training of each pair took."""
    baseline, *others = plan.arms
    compared = []
    for arm in others:
        ends, differences = [], []
        for seed in plan.seeds:
            pair = found.get((arm, seed)), found.get((baseline, seed))
            if pair[0] is None or pair[1] is None:
                continue
            end = min(pair[0].seconds[-1], pair[1].seconds[-1])
            values = pair[0].at(end), pair[1].at(end)
            if values[0] is not None and values[1] is not None:
                ends.append(end)
                differences.append(values[0] - values[1])
        if len(differences) >= 2:
            array = np.array(differences)
            low, high = t_interval(array)
            compared.append(
                AtEqualTime(
                    arm=arm,
                    baseline=baseline,
                    metric=metric,
                    pairs=len(array),
                    seconds=float(np.mean(ends)),
                    mean=float(array.mean()),
                    low=low,
                    high=high,
                    p=sign_flip(array),
                )
            )
    adjusted = holm([one.p for one in compared], len(others))
    return [one.model_copy(update={"p": p}) for one, p in zip(compared, adjusted, strict=True)]


def to_target(plan: PlanRecord, found: Mapping[Training, Course], metric: str) -> Target | None:
    """How soon each arm gets to where the worst of them ends on average; None where an arm has no curve, or where
    nobody said which way the metric is better."""
    sign = _direction(plan, metric)
    by_arm = {arm: [course for (name, _), course in found.items() if name == arm] for arm in plan.arms}
    if sign is None or not all(by_arm.values()):
        return None
    ends = [float(np.mean([course.values[-1] for course in own])) for own in by_arm.values()]
    value = max(ends, key=lambda end: sign * end)
    return Target(metric=metric, value=value, arms=[_reached(arm, own, value, sign) for arm, own in by_arm.items()])


def _direction(plan: PlanRecord, metric: str) -> int | None:
    """1 where lower is better, -1 where higher is; None where neither the plan nor the metric's name says it."""
    if metric == plan.primary:
        lower: bool | None = plan.lower_is_better
    elif metric == plan.select:
        lower = plan.lower_is_better if plan.select_lower_is_better is None else plan.select_lower_is_better
    else:
        lower = True if _LOWER.search(metric) else False if _HIGHER.search(metric) else None
    return None if lower is None else 1 if lower else -1


def _reached(arm: str, own: Sequence[Course], value: float, sign: int) -> Reached:
    places = [(course, place) for course in own if (place := course.first(value, sign)) is not None]
    return Reached(
        arm=arm,
        reached=len(places),
        of=len(own),
        steps=float(np.mean([course.steps[place] for course, place in places])) if places else None,
        seconds=float(np.mean([course.seconds[place] for course, place in places])) if places else None,
    )
