"""The verdict on a comparison, computed from the recorded runs and from nothing else.

Arms are compared with the first, pair by pair (same seed, same initial weights, same data order): the mean paired
difference with Student's t interval, the sign-flip test (Fisher 1935; exact, by every one of the 2^n sign patterns, up
to 16 pairs, and by random ones beyond), Cohen's d_z, and Holm's correction (Holm 1979) where there are more than two
arms. Runs that failed, diverged or were skipped stay in the count.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from executor.experiment import Config, MetricRecord, PlanRecord, RunRecord, Setting
from results.metrics import AnyRecord

ALPHA = 0.05


def pairs_to_decide(contrasts: int) -> int:
    """The fewest pairs with which the sign-flip test can decide: its smallest two-sided p, 2/2^n, after Holm's
    correction for that many contrasts, must be below 0.05. That is 6 for one contrast, 7 for two or three."""
    return math.floor(math.log2(2 * contrasts / ALPHA)) + 1


_TOO_LARGE = 1e50
_MAX_EXACT = 16  # pairs; with more, the test is done by 2^16 random sign patterns

Word = Literal["better", "no detectable difference", "inconclusive", "not a comparison"]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Arm(_Data):
    """What one arm's confirming runs gave."""

    name: str
    ok: int
    failed: int
    diverged: int
    skipped: int
    """Those for which no time was left."""
    missing: int
    """Planned runs of which there is no record: the experiment ended before."""
    mean: float | None
    sd: float | None
    """Sample standard deviation over seeds."""
    config: Config
    """The nuisance parameters that tuning chose for it."""
    at_edge: list[str]
    """Those whose chosen value is the smallest or largest that was tried, or that were to be tuned and were not."""
    trials: int
    """Tuning runs that were made, whatever came of them."""
    trials_skipped: int
    """Those for which no time was left."""
    seconds: float
    """Mean duration of a run."""


class Contrast(_Data):
    """One arm against the baseline; the difference is arm minus baseline."""

    arm: str
    baseline: str
    pairs: int
    mean: float
    low: float
    high: float
    p: float
    exact: bool
    """Whether p counts every sign pattern; if not, it is estimated from random ones."""
    p_adjusted: float
    d_z: float | None
    """Mean of the differences over their standard deviation; None when they do not vary."""
    pairs_needed: int | None
    """About how many pairs would show a difference of this size with 80 % power; None when it cannot be said."""


class Verdict(_Data):
    """What may be said."""

    word: Word
    arm: str | None
    """The better arm, when there is one."""
    text: str
    """One or two sentences with the numbers."""


class Analysis(_Data):
    """Everything that was computed."""

    factor: str | None
    primary: str | None
    lower_is_better: bool | None
    arms: list[Arm]
    contrasts: list[Contrast]
    warnings: list[str]
    verdict: Verdict


def analyse(records: Iterable[AnyRecord]) -> Analysis:
    """The analysis of one experiment's records."""
    found = list(records)
    plan = next((record for record in found if isinstance(record, PlanRecord)), None)
    runs = [record for record in found if isinstance(record, RunRecord)]
    if plan is None or len(plan.arms) < 2:
        return _no_comparison(found)
    confirmed = _planned(plan, runs)
    tuning = [run for run in runs if run.phase == "tune"]
    arms = [_arm(name, plan, confirmed, tuning) for name in plan.arms]
    contrasts = _contrasts(plan, confirmed)
    warnings = _warnings(plan, arms, contrasts)
    return Analysis(
        factor=plan.factor,
        primary=plan.primary,
        lower_is_better=plan.lower_is_better,
        arms=arms,
        contrasts=contrasts,
        warnings=warnings,
        verdict=_verdict(plan, arms, contrasts, warnings),
    )


def _planned(plan: PlanRecord, runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The confirming runs that the plan names, the first of each: others prove nothing, and could be without end."""
    found: dict[tuple[str, int], RunRecord] = {}
    arms, seeds = set(plan.arms), set(plan.seeds)
    for run in runs:
        if run.phase == "confirm" and run.arm in arms and run.seed in seeds:
            found.setdefault((run.arm, run.seed), run)
    return list(found.values())


def _no_comparison(records: Sequence[AnyRecord]) -> Analysis:
    last = {
        name: value for record in records if isinstance(record, MetricRecord) for name, value in record.values.items()
    }
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
    )


def _status(run: RunRecord, plan: PlanRecord) -> str:
    """The run's status; `ok` is taken at its word only when the primary metric is a number to calculate with."""
    if run.status != "ok":
        return run.status
    value = run.values.get(plan.primary, math.nan)
    return "ok" if math.isfinite(value) and abs(value) < _TOO_LARGE else "diverged"


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
            found.append(_contrast(arm, baseline, differences))
    adjusted = holm([contrast.p for contrast in found])
    return [contrast.model_copy(update={"p_adjusted": p}) for contrast, p in zip(found, adjusted, strict=True)]


def _contrast(arm: str, baseline: str, differences: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> Contrast:
    from scipy.special import stdtrit  # here: it takes a quarter of a second that most commands do not need

    count, mean, sd = len(differences), float(differences.mean()), float(differences.std(ddof=1))
    half = float(stdtrit(count - 1, 1 - ALPHA / 2)) * sd / math.sqrt(count)
    ratio = (1.96 + 0.84) * sd / abs(mean) if mean and sd else math.inf
    needed = ratio * ratio
    p = sign_flip(differences)
    return Contrast(
        arm=arm,
        baseline=baseline,
        pairs=count,
        mean=mean,
        low=mean - half,
        high=mean + half,
        p=p,
        exact=count <= _MAX_EXACT,
        p_adjusted=p,
        d_z=mean / sd if sd > abs(mean) * 1e-12 else None,
        pairs_needed=math.ceil(needed) if needed <= 10_000 else None,
    )


def sign_flip(differences: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> float:
    """Two-sided p of the paired randomisation test on the mean: the share of sign patterns as extreme as the data's."""
    count = len(differences)
    if count <= _MAX_EXACT:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=count)))
    else:
        signs = np.random.default_rng(0).choice((1.0, -1.0), size=(1 << _MAX_EXACT, count))
        signs[0] = 1.0  # the data themselves are one of the patterns, so p is never 0
    sums = np.abs(signs @ differences)
    observed = abs(float(differences.sum()))
    return float(np.mean(sums >= observed * (1 - 1e-9)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def _warnings(plan: PlanRecord, arms: Sequence[Arm], contrasts: Sequence[Contrast]) -> list[str]:
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
            value = _setting(arm.config[key])
            edge = f"the best {key} of {arm.name} ({value}) is at the edge of what was tried"
            found.append(edge if arm.trials else f"the {key} of {arm.name} ({value}) was not tuned")
    if _identical(contrasts):
        found.append(_IDENTICAL)
    elif any(arm.sd == 0.0 for arm in arms) and len({arm.mean for arm in arms}) == 1:
        found.append(f"{plan.primary} is the same in every run")
    return found


_IDENTICAL = "all arms gave identical results: the factor may not have taken effect"


def _identical(contrasts: Sequence[Contrast]) -> bool:
    return bool(contrasts) and all(contrast.low == contrast.high == 0.0 for contrast in contrasts)


def _verdict(plan: PlanRecord, arms: Sequence[Arm], contrasts: Sequence[Contrast], warnings: Sequence[str]) -> Verdict:
    if not contrasts:
        reason = "; ".join(warnings) or "no seed was run to the end under both arms"
        return Verdict(word="inconclusive", arm=None, text=f"Inconclusive: fewer than two complete pairs ({reason}).")
    if _identical(contrasts):
        return Verdict(word="inconclusive", arm=None, text=f"Inconclusive: {_IDENTICAL}.")
    decided = [contrast for contrast in contrasts if _decided(contrast)]
    fewest = pairs_to_decide(len(contrasts))
    text = " ".join(_sentence(plan, contrast, fewest) for contrast in contrasts)
    edges = {arm.name: arm.at_edge for arm in arms if arm.at_edge}
    involved = {name for contrast in decided for name in (contrast.arm, contrast.baseline)}
    lost = {arm.name: arm.failed + arm.diverged for arm in arms}
    fragile = [name for name in (_ahead(plan, contrast) for contrast in decided) if lost[name] > min(lost.values())]
    if fragile:
        names = " and ".join(dict.fromkeys(fragile))
        reason = f"{names} is ahead only where it did not fail or diverge, which it did more often than another arm"
        return Verdict(word="inconclusive", arm=None, text=f"Inconclusive: {reason} ({'; '.join(warnings)}).")
    if decided and not involved & edges.keys():
        return Verdict(word="better", arm=_winner(plan, arms, decided), text=text)
    if decided:
        names = " and ".join(sorted(involved & edges.keys()))
        reason = f"the tuning of {names} ended at the edge of what was tried, so a wider search could change the order"
        text = " ".join(_sentence(plan, contrast, fewest, "ahead at the settings tried") for contrast in contrasts)
        return Verdict(word="inconclusive", arm=None, text=f"Inconclusive: {reason}. {text}")
    if min(contrast.pairs for contrast in contrasts) < pairs_to_decide(len(contrasts)):
        return Verdict(word="inconclusive", arm=None, text=f"Inconclusive (underpowered). {text}")
    return Verdict(word="no detectable difference", arm=None, text=text)


def _decided(contrast: Contrast) -> bool:
    return contrast.p_adjusted < ALPHA and (contrast.low > 0 or contrast.high < 0)


def _winner(plan: PlanRecord, arms: Sequence[Arm], decided: Sequence[Contrast]) -> str:
    """The best of the arms that beat the baseline; the baseline when none did."""
    means = {arm.name: arm.mean for arm in arms if arm.mean is not None}
    ahead = [contrast.arm for contrast in decided if _ahead(plan, contrast) == contrast.arm]
    sign = 1 if plan.lower_is_better else -1
    return min(ahead or plan.arms[:1], key=lambda name: sign * means[name])


def _ahead(plan: PlanRecord, contrast: Contrast) -> str:
    """The arm with the better mean difference."""
    return contrast.arm if (contrast.mean < 0) == plan.lower_is_better else contrast.baseline


def _sentence(plan: PlanRecord, contrast: Contrast, fewest: int, word: str = "better") -> str:
    effect = (
        f"the paired difference in {plan.primary} is {_signed(contrast.mean)} "
        f"(95 % interval {_signed(contrast.low)} to {_signed(contrast.high)}, {contrast.pairs} pairs, "
        f"{'exact' if contrast.exact else 'Monte Carlo'} p {contrast.p_adjusted:.3g})"
    )
    arm, baseline = _name(plan, contrast.arm), _name(plan, contrast.baseline)
    names = f"{arm} against {baseline}"
    if _decided(contrast):
        ahead = _name(plan, _ahead(plan, contrast))
        return f"{ahead[0].upper()}{ahead[1:]} is {word}: for {names}, {effect}."
    if contrast.pairs < fewest:
        needed = max(fewest, contrast.pairs_needed or fewest)
        return f"For {names}, {effect}; about {needed} pairs would be needed to tell."
    return f"No difference between {arm} and {baseline} was detected: {effect}."


def _name(plan: PlanRecord, arm: str) -> str:
    """An arm as it reads in a sentence: "Lion", but "batch size 64" and "gradient checkpointing off"."""
    return arm if arm[0].isupper() or plan.factor == "arm" else f"{plan.factor} {arm}"


def _figure(value: float) -> str:
    return f"{value:.4g}"


def _signed(value: float) -> str:
    return f"{value:+.4g}"


def _setting(value: Setting) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
