"""The statistics of paired differences: pure functions, by scipy where it has the method.

Student's t interval; the BCa bootstrap interval (Efron 1987); the sign-flip test (Fisher 1935), exact up to 16 pairs; Holm's
correction (Holm 1979). scipy is loaded when something is computed: it takes half a second that most commands do not need.
"""

import math
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ALPHA = 0.05
MAX_EXACT = 16
"""Pairs. With more, the sign-flip test is done by 2^16 random sign patterns."""
_RESAMPLES = 9999
_POWER_Z = 1.96 + 0.84
"""Normal quantiles for a two-sided test at 5 % and 80 % power."""

Floats = NDArray[np.float64]
TOO_LARGE = 1e50


def usable(value: float) -> bool:
    """Whether there is anything to calculate with: finite, and its square, too."""
    return math.isfinite(value) and abs(value) < TOO_LARGE


def pairs_to_decide(contrasts: int) -> int:
    """The fewest pairs with which the sign-flip test can decide: its smallest two-sided p, 2/2^n, after Holm's
    correction for that many contrasts, must be below 0.05. That is 6 for one contrast, 7 for two or three."""
    return math.floor(math.log2(2 * contrasts / ALPHA)) + 1


def t_interval(differences: Floats) -> tuple[float, float]:
    """Student's 95 % interval of the mean of two values or more."""
    from scipy.special import stdtrit

    count, mean = len(differences), float(differences.mean())
    half = float(stdtrit(count - 1, 1 - ALPHA / 2)) * float(differences.std(ddof=1)) / math.sqrt(count)
    return mean - half, mean + half


def bca_interval(differences: Floats) -> tuple[float, float] | None:
    """The bias-corrected and accelerated 95 % bootstrap interval of the mean; None where it is not defined.

    With few pairs it covers less often than it says (about 91 % of the time at 8 pairs), so nothing is decided by it.
    """
    from scipy import stats

    if len(differences) < 3 or np.ptp(differences) <= 1e-12 * float(np.abs(differences).max()):
        return None
    with warnings.catch_warnings(action="ignore"):  # where it is not defined, it says so by NaN as well
        done = stats.bootstrap((differences,), np.mean, method="BCa", n_resamples=_RESAMPLES, rng=0)
    found = done.confidence_interval
    low, high = float(found.low), float(found.high)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def sign_flip(differences: Floats) -> float:
    """Two-sided p of the paired randomisation test on the mean: the share of sign patterns as extreme as the data's."""
    from scipy import stats

    if not differences.any():
        return 1.0
    scale = float(np.abs(differences).max())  # so that neither huge nor tiny numbers are lost in rounding
    tested = stats.permutation_test(
        (differences / scale,),
        lambda sample, axis: np.round(np.mean(sample, axis=axis), 12),  # equal sums, added in another order, are ties
        permutation_type="samples",
        n_resamples=1 << MAX_EXACT,
        vectorized=True,
        rng=0,
    )
    return min(1.0, float(tested.pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def cohens_dz(differences: Floats) -> float | None:
    """Mean of the differences over their standard deviation; None when they do not vary."""
    mean, sd = float(differences.mean()), float(differences.std(ddof=1))
    return mean / sd if sd > abs(mean) * 1e-12 else None


def pairs_needed(differences: Floats) -> int | None:
    """About how many pairs would show a difference of this size with 80 % power; None when it cannot be said."""
    mean, sd = float(differences.mean()), float(differences.std(ddof=1))
    ratio = _POWER_Z * sd / abs(mean) if mean and sd else math.inf
    return math.ceil(ratio * ratio) if ratio * ratio <= 10_000 else None
