"""Paired differences between arms: every arm against the baseline, and the best of them against those beside it."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from executor.experiment import PlanRecord
from results.findings import Contrast, Noise
from results.statistics import (
    ALPHA,
    MAX_EXACT,
    bca_interval,
    cohens_dz,
    holm,
    pairs_needed,
    sign_flip,
    t_interval,
)

RULE = (
    "Two-sided at 5 %: an arm differs from the baseline where the exact sign-flip test of the paired differences "
    "(Holm-corrected over arms) and their t interval agree, and every gate holds. Runs that fail or diverge stay in the count."
)
"""As `lab.compare` writes it into the plan, and a sweep into that of its confirmation."""

Outcomes = Mapping[str, Mapping[int, float]]
"""The primary metric of every complete run, by arm and seed."""


def against_baseline(plan: PlanRecord, outcomes: Outcomes, noise: Noise | None) -> list[Contrast]:
    """Every arm against the first, where two pairs or more are complete."""
    baseline, *others = plan.arms
    return _corrected([(arm, baseline) for arm in others], plan, outcomes, noise)


def against_rivals(
    plan: PlanRecord, outcomes: Outcomes, contrasts: Sequence[Contrast], noise: Noise | None
) -> list[Contrast]:
    """The arm that is furthest ahead, against its rivals, where two pairs or more are complete. Being ahead of the baseline
    says nothing of the order among arms."""
    return _corrected(rivalries(plan, contrasts), plan, outcomes, noise)


def rivalries(plan: PlanRecord, contrasts: Sequence[Contrast]) -> list[tuple[str, str]]:
    """The arm that is furthest ahead of the baseline, with each of the others that the baseline does not beat; none where
    no arm is ahead."""
    leaders = [one for one in contrasts if decided(one) and ahead_in(plan, one) == one.arm]
    if not leaders:
        return []
    leader = (min if plan.lower_is_better else max)(leaders, key=lambda one: one.mean).arm
    beaten = {one.arm for one in contrasts if decided(one) and ahead_in(plan, one) == one.baseline}
    return [(leader, arm) for arm in plan.arms[1:] if arm != leader and arm not in beaten]


def decided(contrast: Contrast) -> bool:
    """Whether the arms differ: the test and the interval agree, and it is more than the baseline differs from itself."""
    return contrast.p_adjusted < ALPHA and (contrast.low > 0 or contrast.high < 0) and not contrast.within_noise


def ahead_in(plan: PlanRecord, contrast: Contrast) -> str:
    """The arm with the better mean difference."""
    return contrast.arm if (contrast.mean < 0) == plan.lower_is_better else contrast.baseline


def _corrected(
    pairs: Sequence[tuple[str, str]], plan: PlanRecord, outcomes: Outcomes, noise: Noise | None
) -> list[Contrast]:
    """Of those that have two pairs of runs, with Holm's correction for all that were to be compared."""
    made = [_contrast(arm, against, plan, outcomes, noise, len(pairs)) for arm, against in pairs]
    found = [one for one in made if one is not None]
    adjusted = holm([contrast.p for contrast in found], len(pairs))
    return [contrast.model_copy(update={"p_adjusted": p}) for contrast, p in zip(found, adjusted, strict=True)]


def _contrast(
    arm: str, against: str, plan: PlanRecord, outcomes: Outcomes, noise: Noise | None, contrasts: int
) -> Contrast | None:
    own, other = outcomes[arm], outcomes[against]
    by_seed = {seed: own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())}
    differences = np.array(list(by_seed.values()))
    if len(differences) < 2:
        return None
    mean, (low, high), p = float(differences.mean()), t_interval(differences), sign_flip(differences)
    bca_low, bca_high = bca_interval(differences) or (None, None)
    ratios = [_exp(value) for value in (mean, low, high)] if plan.unit == "nats" else [None, None, None]
    return Contrast(
        arm=arm,
        baseline=against,
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
        pairs_needed=pairs_needed(differences, contrasts),
        within_noise=noise is not None and 0.0 < noise.largest >= abs(mean),
        differences=by_seed,
    )


def _exp(value: float) -> float | None:
    return math.exp(value) if value < 700 else None
