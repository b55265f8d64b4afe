"""What an analysis says: plain data, in `numbers` of a sprint's summary."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from executor.experiment import Config

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
    """Sample standard deviation over seeds; 0 where they differ by no more than rounding."""
    config: Config
    """The nuisance parameters that tuning chose for it."""
    at_edge: list[str]
    """Those whose chosen value is the smallest or largest that was tried, or that were to be tuned and were not."""
    trials: int
    """Tuning runs that were made, whatever came of them."""
    trials_usable: int = 0
    """Those that gave a number to choose by."""
    trials_skipped: int
    """Those for which no time was left."""
    seconds: float
    """Mean duration of a run."""
    values: dict[str, float] = {}
    """Means over its complete runs of all that a training returned, such as parameters, tokens, ms_per_step."""


class Contrast(_Data):
    """One arm against another, mostly the baseline; the difference is arm minus baseline."""

    arm: str
    baseline: str
    pairs: int
    mean: float
    low: float
    """Student's 95 % interval: the one that decides."""
    high: float
    bca_low: float | None = None
    """The bootstrap's, for comparison; None where it is not defined."""
    bca_high: float | None = None
    p: float
    exact: bool
    """Whether p counts every sign pattern; if not, it is estimated from random ones."""
    p_adjusted: float
    """By Holm's correction over all comparisons that were planned, whatever came of them."""
    d_z: float | None
    """Mean of the differences over their standard deviation; None when they do not vary."""
    ratio: float | None = None
    """exp(mean): the ratio of perplexities, where the metric is in nats; with its interval."""
    ratio_low: float | None = None
    ratio_high: float | None = None
    pairs_needed: int | None
    """About how many pairs would show a difference of this size with 80 % power; None when it cannot be said."""
    within_noise: bool = False
    """The difference is no larger than that of the baseline from itself."""
    differences: dict[int, float] = {}
    """By seed."""


class AtEqualTime(_Data):
    """A contrast of learning curves where both trainings of a pair had run for as long as the shorter one."""

    arm: str
    baseline: str
    metric: str
    pairs: int
    seconds: float
    """Mean over pairs."""
    mean: float
    low: float
    high: float
    p: float
    """Of the sign-flip test, with Holm's correction over arms."""


class Reached(_Data):
    """When an arm's trainings first got to the target."""

    arm: str
    reached: int
    """Of its complete runs."""
    of: int
    steps: float | None
    """Mean over those that did."""
    seconds: float | None


class Target(_Data):
    """Steps to target: the final value of the arm that ended worst, on average."""

    metric: str
    value: float
    arms: list[Reached]


class Noise(_Data):
    """The baseline against itself: the same settings, the same seed, once more."""

    repeats: int
    largest: float
    """The largest absolute difference; 0: it repeats to the last digit."""


class Gate(_Data):
    """Something without which nothing is concluded, and whether it holds."""

    name: str
    ok: bool
    detail: str


class Verdict(_Data):
    """What may be said."""

    word: Word
    arm: str | None
    """The better arm, when there is one: one of several that beat the baseline only where it beats the others as well."""
    text: str
    """One or two sentences with the numbers."""


class Analysis(_Data):
    """Everything that was computed."""

    factor: str | None
    primary: str | None
    lower_is_better: bool | None
    arms: list[Arm]
    contrasts: list[Contrast]
    rivals: list[Contrast] = []
    """The arm that is furthest ahead of the baseline against the others: whether it may be called the best."""
    at_equal_time: list[AtEqualTime] = []
    target: Target | None = None
    noise: Noise | None = None
    gates: list[Gate] = []
    warnings: list[str]
    verdict: Verdict
