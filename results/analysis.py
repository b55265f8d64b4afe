"""The analysis of a comparison, computed from the recorded runs and from nothing else.

Arms are compared with the first, pair by pair (same seed, same initial weights, same data order). Runs that failed, diverged
or were skipped stay in the count.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from executor.experiment import AnyRecord, Config, Execution, MetricRecord, PlanRecord, RunRecord, Setting
from results.courses import at_equal_time, courses, curve_metric, to_target
from results.findings import Analysis, Arm, Contrast, Noise, Verdict
from results.gates import gates
from results.series import LAB, Series, series_of
from results.statistics import (
    MAX_EXACT,
    Floats,
    bca_interval,
    cohens_dz,
    holm,
    pairs_needed,
    pairs_to_decide,
    sign_flip,
    t_interval,
    usable,
)
from results.verdict import shown, verdict_of


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
    plan = next((record for record in found if isinstance(record, PlanRecord)), None)
    runs = [record for record in found if isinstance(record, RunRecord)]
    if plan is None or len(plan.arms) < 2:
        return _no_comparison(series)
    confirmed = _planned(plan, runs)
    tuning = [run for run in runs if run.phase == "tune"]
    arms = [_arm(name, plan, confirmed, tuning) for name in plan.arms]
    contrasts = _contrasts(plan, confirmed)
    noise = _noise(plan, confirmed, [run for run in runs if run.phase == "noise"])
    plan_first = not isinstance(next((one for one in found if not isinstance(one, MetricRecord)), None), RunRecord)
    passed = gates(plan, plan_first, runs, arms, contrasts, noise, executions)
    warnings = _warnings(plan, arms)
    metric = curve_metric(plan, series)
    complete = [run for run in confirmed if _status(run, plan) == "ok"]
    curves = courses(series, complete, metric) if metric else {}
    return Analysis(
        factor=plan.factor,
        primary=plan.primary,
        lower_is_better=plan.lower_is_better,
        arms=arms,
        contrasts=contrasts,
        at_equal_time=at_equal_time(plan, curves, metric) if metric else [],
        target=to_target(plan, curves, metric) if metric else None,
        noise=noise,
        gates=passed,
        warnings=warnings,
        verdict=verdict_of(plan, arms, contrasts, passed, warnings),
    )


def _planned(plan: PlanRecord, runs: Sequence[RunRecord]) -> list[RunRecord]:
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


def _no_comparison(series: Sequence[Series]) -> Analysis:
    last = {one.name: float(one.values[-1]) for one in series if one.origin == LAB}
    shown = ", ".join(f"{name} {_figure(value)}" for name, value in list(last.items())[:6])
    text = "Not a comparison: no arms were run under seeds with lab.compare, so nothing is claimed."
    text += f" Last values: {shown}." if shown else " No metrics were recorded."
    verdict = Verdict(word="not a comparison", arm=None, text=text)
    return Analysis(
        factor=None, primary=None, lower_is_better=None, arms=[], contrasts=[], warnings=[], verdict=verdict
    )


def _arm(name: str, plan: PlanRecord, runs: Sequence[RunRecord], tuning: Sequence[RunRecord]) -> Arm:
    own = [run for run in runs if run.arm == name]
    counts = Counter(_status(run, plan) for run in own)
    values = [run.values[plan.primary] for run in own if _status(run, plan) == "ok"]
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
        sd=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        config=config,
        at_edge=[key for key in config if _at_edge(key, config, tried, _candidates(plan, name, key))],
        trials=len(tried),
        trials_skipped=len(trials) - len(tried),
        seconds=float(np.mean(ran)) if ran else 0.0,
        values=_means([run.values for run in own if _status(run, plan) == "ok"]),
    )


def _means(values: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of what every one of them has, and is finite."""
    common = set.intersection(*(set(one) for one in values)) if values else set()
    means = {
        name: math.fsum(one[name] / len(values) for one in values)
        for name in sorted(common)
        if all(usable(one[name]) for one in values)
    }
    return {name: mean for name, mean in means.items() if usable(mean)}


def _status(run: RunRecord, plan: PlanRecord) -> str:
    """The run's status; `ok` is taken at its word only when the primary metric is a number to calculate with."""
    if run.status != "ok":
        return run.status
    return "ok" if usable(run.values.get(plan.primary, math.nan)) else "diverged"


def _candidates(plan: PlanRecord, arm: str, key: str) -> list[Setting]:
    return plan.tune.get(f"{key}[{arm}]", plan.tune.get(key, []))


def _at_edge(key: str, chosen: Config, tried: Sequence[Config], planned: Sequence[Setting]) -> bool:
    """Of three planned values or more: two were meant as alternatives, and have no inside."""
    numbers = [value for value in (one.get(key) for one in (chosen, *tried)) if isinstance(value, int | float)]
    return len(planned) >= 3 and bool(numbers) and chosen[key] in (min(numbers), max(numbers))


def _contrasts(plan: PlanRecord, runs: Sequence[RunRecord]) -> list[Contrast]:
    by_arm = {
        arm: {run.seed: run.values[plan.primary] for run in runs if run.arm == arm and _status(run, plan) == "ok"}
        for arm in plan.arms
    }
    baseline, *others = plan.arms
    found = []
    for arm in others:
        seeds = sorted(by_arm[arm].keys() & by_arm[baseline].keys())
        differences = np.array([by_arm[arm][seed] - by_arm[baseline][seed] for seed in seeds])
        if len(differences) >= 2:
            found.append(_contrast(plan, arm, dict(zip(seeds, differences.tolist(), strict=True)), differences))
    adjusted = holm([contrast.p for contrast in found])
    return [contrast.model_copy(update={"p_adjusted": p}) for contrast, p in zip(found, adjusted, strict=True)]


def _contrast(plan: PlanRecord, arm: str, by_seed: dict[int, float], differences: Floats) -> Contrast:
    needed = pairs_needed(differences)
    mean, (low, high), p = float(differences.mean()), t_interval(differences), sign_flip(differences)
    bca_low, bca_high = bca_interval(differences) or (None, None)
    ratios = [_exp(value) for value in (mean, low, high)] if plan.unit == "nats" else [None, None, None]
    return Contrast(
        arm=arm,
        baseline=plan.arms[0],
        pairs=len(differences),
        mean=mean,
        low=low,
        high=high,
        bca_low=bca_low,
        bca_high=bca_high,
        p=p,
        exact=len(differences) <= MAX_EXACT,
        p_adjusted=p,
        d_z=cohens_dz(differences),
        ratio=ratios[0],
        ratio_low=ratios[1],
        ratio_high=ratios[2],
        pairs_needed=None if needed is None else max(needed, pairs_to_decide(len(plan.arms) - 1)),
        differences=by_seed,
    )


def _exp(value: float) -> float | None:
    return math.exp(value) if value < 700 else None


def _noise(plan: PlanRecord, confirmed: Sequence[RunRecord], repeats: Sequence[RunRecord]) -> Noise | None:
    first = {(run.arm, run.seed): run for run in confirmed if _status(run, plan) == "ok"}
    differences = [
        abs(again.values[plan.primary] - first[again.arm, again.seed].values[plan.primary])
        for again in repeats
        if _status(again, plan) == "ok"
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


def _figure(value: float) -> str:
    return f"{value:.4g}"
