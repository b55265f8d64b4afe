"""The analysis of a comparison, computed from the recorded runs and from nothing else.

Arms are compared with the first, pair by pair (same seed, same initial weights, same data order). Runs that failed, diverged
or were skipped stay in the count.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeGuard

import numpy as np

from executor.experiment import AnyRecord, Config, Execution, MetricRecord, PlanRecord, RunRecord, Setting
from results.contrasts import against_baseline, against_rivals
from results.courses import at_equal_time, courses, curve_metric, to_target
from results.findings import Analysis, Arm, Noise, Verdict
from results.gates import Evidence, gates, untuned
from results.series import LAB, Series, series_of
from results.statistics import usable, varies
from results.trainings import outcomes_of, planned, status_of
from results.verdict import Judged, rejected_of, shown, verdict_of


def analyse(
    records: Iterable[AnyRecord], executions: Sequence[Execution] = (), series: Sequence[Series] | None = None
) -> Analysis:
    """The analysis of one experiment's records.

    executions: the containers they came from, where that is known. series: its metrics, where they were read apart from the
    other records; None: they are among these.
    """
    found = list(records)
    if series is None:
        series = series_of(record for record in found if isinstance(record, MetricRecord))
    plans = [record for record in found if isinstance(record, PlanRecord)]
    runs = [record for record in found if isinstance(record, RunRecord)]
    refused = sum(execution.metrics_rejected for execution in executions)
    if not plans or len(plans[0].arms) < 2:
        return _no_comparison(series, refused)
    plan = plans[0]
    confirmed = planned(plan, runs)
    tuning = [run for run in runs if run.phase == "tune"]
    arms = [_arm(name, plan, confirmed, tuning) for name in plan.arms]
    noise = _noise(plan, confirmed, [run for run in runs if run.phase == "noise"])
    outcomes = outcomes_of(plan, confirmed)
    contrasts = against_baseline(plan, outcomes, noise)
    rivals = against_rivals(plan, outcomes, contrasts, noise)
    plan_first = not isinstance(next((one for one in found if not isinstance(one, MetricRecord)), None), RunRecord)
    passed = gates(Evidence(plans, plan_first, runs, arms, contrasts, noise, executions))
    warnings = [*_warnings(plan, arms), *_selection(plan, arms), *rejected_of(refused)]
    metric = curve_metric(plan, series)
    complete = [run for run in confirmed if status_of(run, plan.primary) == "ok"]
    curves = courses(series, complete, metric) if metric else {}
    return Analysis(
        factor=plan.factor,
        primary=plan.primary,
        lower_is_better=plan.lower_is_better,
        arms=arms,
        contrasts=contrasts,
        rivals=rivals,
        at_equal_time=at_equal_time(plan, curves, metric) if metric else [],
        target=to_target(plan, curves, metric) if metric else None,
        noise=noise,
        gates=passed,
        warnings=warnings,
        verdict=verdict_of(Judged(plan, arms, contrasts, rivals, passed, warnings, refused)),
    )


def _no_comparison(series: Sequence[Series], refused: int) -> Analysis:
    last = {one.name: float(one.values[-1]) for one in series if one.origin == LAB}
    shown = ", ".join(f"{name} {_figure(value)}" for name, value in list(last.items())[:6])
    text = "Not a comparison: no arms were run under seeds with lab.compare, so nothing is claimed."
    text += f" Last values: {shown}." if shown else " No metrics were recorded."
    warnings = rejected_of(refused)
    verdict = Verdict(word="not a comparison", arm=None, text=" ".join([text, *(f"{one}." for one in warnings)]))
    return Analysis(
        factor=None, primary=None, lower_is_better=None, arms=[], contrasts=[], warnings=warnings, verdict=verdict
    )


_TEST = re.compile(r"(^|_)test(_|$)|held_?out", re.IGNORECASE)


def _arm(name: str, plan: PlanRecord, runs: Sequence[RunRecord], tuning: Sequence[RunRecord]) -> Arm:
    own = [run for run in runs if run.arm == name]
    counts = Counter(status_of(run, plan.primary) for run in own)
    values = [run.values[plan.primary] for run in own if status_of(run, plan.primary) == "ok"]
    config = own[0].config if own else {}
    ran = [run.seconds for run in own if run.status != "skipped"]
    trials = [run for run in tuning if run.arm == name]
    tried = [run.config for run in trials if run.status != "skipped"]
    return Arm(
        name=name,
        ok=counts["ok"],
        failed=counts["failed"],
        diverged=counts["diverged"],
        skipped=counts["skipped"],
        missing=len(set(plan.seeds)) - len(own),
        mean=float(np.mean(values)) if values else None,
        sd=_sd(values),
        config=config,
        at_edge=[key for key in config if _at_edge(key, config, tried, _candidates(plan, name, key))],
        trials=len(tried),
        trials_usable=sum(status_of(run, plan.select or plan.primary) == "ok" for run in trials),
        trials_skipped=len(trials) - len(tried),
        seconds=_mean(ran) if ran else 0.0,
        values=_means([run.values for run in own if status_of(run, plan.primary) == "ok"]),
    )


def _sd(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    array = np.array(values)
    return float(np.std(array, ddof=1)) if varies(array) else 0.0


def _mean(values: Sequence[float]) -> float:
    """Finite where they are, however large."""
    return math.fsum(value / len(values) for value in values)


def _means(values: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of what every one of them has, and is finite."""
    common = set.intersection(*(set(one) for one in values)) if values else set()
    means = {
        name: _mean([one[name] for one in values])
        for name in sorted(common)
        if all(usable(one[name]) for one in values)
    }
    return {name: mean for name, mean in means.items() if usable(mean)}


def _candidates(plan: PlanRecord, arm: str, key: str) -> list[Setting]:
    return plan.tune.get(f"{key}[{arm}]", plan.tune.get(key, []))


def _at_edge(key: str, chosen: Config, tried: Sequence[Config], planned_values: Sequence[Setting]) -> bool:
    """Of numbers only: alternatives have no inside. Zero, below which nothing was tried, is where the parameter ends."""
    if len(planned_values) < 2 or not all(_is_number(value) for value in planned_values):
        return False
    numbers = [value for value in (one.get(key) for one in (chosen, *tried)) if _is_number(value)]
    lowest, highest = min(numbers, default=None), max(numbers, default=None)
    return chosen[key] == highest or (chosen[key] == lowest != 0)


def _is_number(value: Setting) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _noise(plan: PlanRecord, confirmed: Sequence[RunRecord], repeats: Sequence[RunRecord]) -> Noise | None:
    first = {(run.arm, run.seed): run for run in confirmed if status_of(run, plan.primary) == "ok"}
    differences = [
        abs(again.values[plan.primary] - first[again.arm, again.seed].values[plan.primary])
        for again in repeats
        if status_of(again, plan.primary) == "ok"
        and (again.arm, again.seed) in first
        and again.config == first[again.arm, again.seed].config
    ]
    return Noise(repeats=len(differences), largest=max(differences)) if differences else None


def _warnings(plan: PlanRecord, arms: Sequence[Arm]) -> list[str]:
    found = []
    for arm in arms:
        lost = [
            (arm.failed, "failed"),
            (arm.diverged, "diverged"),
            (arm.skipped, "did not fit into the time"),
            (arm.missing, "were not made"),
        ]
        for count, what in lost:
            if count:
                found.append(f"{count} of {len(plan.seeds)} runs of {arm.name} {what}")
        if arm.trials_skipped:
            trials = arm.trials + arm.trials_skipped
            found.append(f"{arm.trials_skipped} of {trials} tuning trials of {arm.name} did not fit into the time")
        for key in arm.at_edge:
            value = shown(arm.config[key])
            edge = f"the best {key} of {arm.name} ({value}) is at the edge of what was tried"
            found.append(edge if arm.trials else f"the {key} of {arm.name} ({value}) was not tuned")
    return found


def _selection(plan: PlanRecord, arms: Sequence[Arm]) -> list[str]:
    """What tuning did not do as it should."""
    found = [
        f"no tuning trial of {name} gave a number to choose by: its settings are untuned" for name in untuned(arms)
    ]
    names = {name for arm in arms for name in arm.values}
    if plan.tune and (plan.select or plan.primary) == plan.primary:
        tested = [name for name in sorted(names - {plan.primary}) if _TEST.search(name)]
        if _TEST.search(plan.primary):
            found.append(f"tuning chose by {plan.primary}, on which arms are compared too: chosen values flatter it")
        elif tested:
            found.append(f"tuning and the comparison are both by {plan.primary}, though there is {tested[0]}")
    return found


def _figure(value: float) -> str:
    return f"{value:.4g}"
