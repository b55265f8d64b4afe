"""The verdict in one word and a sentence or two, from the numbers and from nothing else."""

from collections.abc import Sequence

from executor.experiment import PlanRecord, Setting
from results.findings import Arm, Contrast, Gate, Verdict
from results.statistics import ALPHA, pairs_to_decide


def verdict_of(
    plan: PlanRecord, arms: Sequence[Arm], contrasts: Sequence[Contrast], gates: Sequence[Gate], warnings: Sequence[str]
) -> Verdict:
    """What may be said."""
    if not contrasts:
        reason = "; ".join(warnings) or "no seed was run to the end under both arms"
        return _open(f"fewer than two complete pairs ({reason}).")
    if rejected := [gate.detail for gate in gates if not gate.ok]:
        return _open(f"{'; '.join(rejected)}.")
    decided = [contrast for contrast in contrasts if _decided(contrast)]
    fewest = pairs_to_decide(len(contrasts))
    text = " ".join(_sentence(plan, contrast, fewest) for contrast in contrasts)
    lost = {arm.name: arm.failed + arm.diverged for arm in arms}
    fragile = [name for name in (_ahead(plan, contrast) for contrast in decided) if lost[name] > min(lost.values())]
    if fragile:
        names = " and ".join(dict.fromkeys(fragile))
        reason = f"{names} is ahead only where it did not fail or diverge, which it did more often than another arm"
        return _open(f"{reason} ({'; '.join(warnings)}).")
    edges = sorted({arm.name for arm in arms if arm.at_edge} & _involved(decided or contrasts))
    if decided and edges:
        text = " ".join(_sentence(plan, contrast, fewest, "ahead at the settings tried") for contrast in contrasts)
        return _open(f"{_edge(edges)}, so a wider search could change the order. {text}")
    if decided:
        return Verdict(word="better", arm=_winner(plan, arms, decided), text=text)
    if min(contrast.pairs for contrast in contrasts) < fewest:
        return Verdict(word="inconclusive", arm=None, text=f"Inconclusive (underpowered). {text}")
    if edges:
        return _open(f"{_edge(edges)}, so a wider search could show one. {text}")
    return Verdict(word="no detectable difference", arm=None, text=text)


def _edge(arms: Sequence[str]) -> str:
    return f"the tuning of {' and '.join(arms)} ended at the edge of what was tried"


def _open(why: str) -> Verdict:
    return Verdict(word="inconclusive", arm=None, text=f"Inconclusive: {why}")


def _involved(contrasts: Sequence[Contrast]) -> set[str]:
    return {name for contrast in contrasts for name in (contrast.arm, contrast.baseline)}


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
    if contrast.ratio is not None:
        effect += f", a ratio of perplexities of {contrast.ratio:.4g}"
    arm, baseline = _name(plan, contrast.arm), _name(plan, contrast.baseline)
    names = f"{arm} against {baseline}"
    if _decided(contrast):
        ahead = _name(plan, _ahead(plan, contrast))
        return f"{ahead[0].upper()}{ahead[1:]} is {word}: for {names}, {effect}."
    if contrast.pairs < fewest:
        needed = contrast.pairs_needed or fewest
        return f"For {names}, {effect}; about {needed} pairs would be needed to tell."
    return f"No difference between {arm} and {baseline} was detected: {effect}."


def _name(plan: PlanRecord, arm: str) -> str:
    """An arm as it reads in a sentence: "Lion", but "batch size 64" and "gradient checkpointing off"."""
    return arm if arm[0].isupper() or plan.factor == "arm" else f"{plan.factor} {arm}"


def _signed(value: float) -> str:
    return f"{value:+.4g}"


def shown(value: Setting) -> str:
    """A hyperparameter as it reads in a sentence."""
    return f"{value:g}" if isinstance(value, float) else str(value)
