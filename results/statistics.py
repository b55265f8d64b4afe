"""The statistics of paired differences: pure functions, by scipy where it has the method.

Student's t interval; the BCa bootstrap interval (Efron 1987); the sign-flip test (Fisher 1935), exact up to 16 pairs; Holm's
correction (Holm 1979). scipy is loaded when something is computed: it takes half a second that most commands do not need. The
sign-flip test is done here, since scipy's makes all patterns at once, which is a gibibyte for 256 pairs.
"""

import math
import warnings
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

ALPHA = 0.05
MAX_EXACT = 16
"""Pairs. With more, the sign-flip test is done by 2^16 random sign patterns."""
_RESAMPLES = 9999
_BATCH = 4096
"""Random sign patterns at a time: 8 MiB of them for the 256 pairs that a plan may have."""
_POWER = 0.8
_MOST_PAIRS = 10_000
"""More are not worth naming."""

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


def varies(values: Floats) -> bool:
    """Whether they differ by more than rounding: the standard deviation of equal numbers need not be exactly 0."""
    return bool(np.ptp(values) > 1e-12 * float(np.abs(values).max()))


def sign_flip(differences: Floats) -> float:
    """Two-sided p of the paired randomisation test on the mean: the share of sign patterns as extreme as the data's.

    All of them up to 16 pairs. With more, random ones, with the data's own counted among them (Phipson and Smyth 2010), so
    that p is never 0.
    """
    if not differences.any():
        return 1.0
    scaled = differences / float(
        np.abs(differences).max()
    )  # so that neither huge nor tiny numbers are lost in rounding
    # Equal sums, added in another order, are ties.
    observed = abs(float(scaled.sum())) - 1e-12 * len(scaled)
    if len(scaled) <= MAX_EXACT:
        return float(np.mean(np.abs(_patterns(len(scaled)) @ scaled) >= observed))
    rng, extreme = np.random.default_rng(0), 0
    for _ in range((1 << MAX_EXACT) // _BATCH):
        flipped = rng.integers(0, 2, (_BATCH, len(scaled)), np.int8).astype(np.float64) @ scaled
        extreme += int(np.count_nonzero(np.abs(scaled.sum() - 2 * flipped) >= observed))
    return (extreme + 1) / ((1 << MAX_EXACT) + 1)


@cache
def _patterns(pairs: int) -> Floats:
    """Every pattern of signs but for its mirror image: (2^(pairs-1), pairs), of 1 and -1."""
    bits = (np.arange(1 << (pairs - 1))[:, None] >> np.arange(pairs)) & 1
    return (1 - 2 * bits).astype(np.float64)


def holm(p_values: Sequence[float], planned: int) -> list[float]:
    """Holm's step-down adjustment for as many comparisons as were planned, in the order given. One that could not be made
    counts with p = 1: which are lost is known only afterwards, and must not make the others look better."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (planned - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def cohens_dz(differences: Floats) -> float | None:
    """Mean of the differences over their standard deviation; None when they do not vary."""
    mean, sd = float(differences.mean()), float(differences.std(ddof=1))
    return mean / sd if sd > abs(mean) * 1e-12 else None


def pairs_needed(differences: Floats, contrasts: int = 1) -> int | None:
    """About how many pairs would show a difference of this size with 80 % power; None when it cannot be said.

    By the noncentral t distribution at 5 % over that many contrasts, and one pair more, for what the sign-flip test asks
    beyond the t interval: on simulated studies that is never too few, and at most one too many. Never fewer than the
    sign-flip test needs to decide anything.
    """
    from scipy.special import nctdtr, ndtri, stdtrit

    d_z = cohens_dz(differences)
    if not d_z:
        return None
    alpha = ALPHA / contrasts
    # By the normal approximation, which is below the answer and near it.
    about = ((float(ndtri(1 - alpha / 2)) + float(ndtri(_POWER))) / d_z) ** 2 if abs(d_z) > 1e-3 else math.inf
    pairs = max(2, math.floor(about)) if about < _MOST_PAIRS else _MOST_PAIRS
    while pairs < _MOST_PAIRS:
        critical = float(stdtrit(pairs - 1, 1 - alpha / 2))
        if 1 - float(nctdtr(pairs - 1, abs(d_z) * math.sqrt(pairs), critical)) >= _POWER:
            return max(pairs_to_decide(contrasts), pairs + 1)
        pairs += 1
    return None
