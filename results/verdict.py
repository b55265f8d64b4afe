"""The verdict in one word and a sentence or two, from the numbers and from nothing else.

`better` has an arm where that arm beats the baseline and every other that the baseline does not beat, or is the baseline
and beats all; without one, several arms may be better than the baseline, and which is best is open.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from executor.experiment import PlanRecord, Setting
from results.contrasts import ahead_in, decided, rivalries
from results.findings import Arm, Contrast, Gate, Verdict
from results.readable import digits_of_p
from results.statistics import ALPHA, pairs_to_decide


@dataclass(frozen=True)
class Judged:
    """What a verdict rests on."""

    plan: PlanRecord
    arms: Sequence[Arm]
    contrasts: Sequence[Contrast]
    rivals: Sequence[Contrast]
    gates: Sequence[Gate]
    warnings: Sequence[str]
    refused: int
    """Records that the host did not accept."""


def verdict_of(found: Judged) -> Verdict:
    """What may be said. Lost runs and refused records are told with every verdict."""
    said = _said(found)
    more = [
        *([f"Lost: {told}."] if (told := lost_of(found.plan, found.arms)) and told not in said.text else []),
        *(f"{told}." for told in rejected_of(found.refused) if told not in said.text),
    ]
    return said.model_copy(update={"text": " ".join([said.text, *more])})


def lost_of(plan: PlanRecord, arms: Sequence[Arm]) -> str:
    """Runs that failed or diverged, in words; empty where none did."""
    counts = (
        (arm.name, count, what) for arm in arms for count, what in ((arm.failed, "failed"), (arm.diverged, "diverged"))
    )
    return "; ".join(f"{count} of {len(plan.seeds)} runs of {name} {what}" for name, count, what in counts if count)


def rejected_of(refused: int) -> list[str]:
    """What is said of records that the host did not accept."""
    return [f"{refused} record{'s were' if refused > 1 else ' was'} rejected"] if refused else []


def _said(found: Judged) -> Verdict:
    plan, contrasts = found.plan, found.contrasts
    if not contrasts:
        reason = "; ".join(found.warnings) or "no seed was run to the end under both arms"
        return _open(f"fewer than two complete pairs ({reason}).")
    if failed := [gate.detail for gate in found.gates if not gate.ok]:
        return _open(f"{'; '.join(failed)}.")
    made = [contrast for contrast in contrasts if decided(contrast)]
    planned = len(plan.arms) - 1
    text = " ".join(_sentence(plan, contrast, planned) for contrast in contrasts)
    lost = {arm.name: arm.failed + arm.diverged for arm in found.arms}
    told = lost_of(plan, found.arms)
    fragile = [name for name in (ahead_in(plan, one) for one in made) if lost[name] > min(lost.values())]
    if fragile:
        names = " and ".join(dict.fromkeys(fragile))
        reason = f"{names} is ahead only where it did not fail or diverge, which it did more often than another arm"
        return _open(f"{reason} ({told}).")
    if not made and len(set(lost.values())) > 1:
        return _open(f"arms lost unequally many runs ({told}), and only those that were left are compared. {text}")
    edges = sorted({arm.name for arm in found.arms if arm.at_edge} & _involved(made or contrasts))
    if made and edges:
        text = " ".join(_sentence(plan, contrast, planned, "ahead at the settings tried") for contrast in contrasts)
        return _open(f"{_edge(edges)}, so a wider search could change the order. {text}")
    if made:
        return _best(plan, found, made, text)
    if min(contrast.pairs for contrast in contrasts) < pairs_to_decide(planned):
        return Verdict(word="inconclusive", arm=None, text=f"Inconclusive (underpowered). {text}")
    if edges:
        return _open(f"{_edge(edges)}, so a wider search could show one. {text}")
    none = f"No arm is best: no difference from {_name(plan, plan.arms[0])} was detected. " if planned > 1 else ""
    return Verdict(word="no detectable difference", arm=None, text=f"{none}{text}")


def _best(plan: PlanRecord, found: Judged, made: Sequence[Contrast], text: str) -> Verdict:
    """Of comparisons with the baseline of which some are decided: which arm may be named."""
    baseline = plan.arms[0]
    ahead = [one.arm for one in made if ahead_in(plan, one) != baseline]
    if not ahead:
        if len(made) == len(found.contrasts):
            best = (
                f"Best: {_name(plan, baseline)}; {_beats(plan, [one.arm for one in made])}. "
                if len(plan.arms) > 2
                else ""
            )
            return Verdict(word="better", arm=baseline, text=f"{best}{text}")
        behind = _listed(plan, [one.arm for one in made])
        beside = _listed(plan, [one.arm for one in found.contrasts if not decided(one)])
        return _open(f"{_name(plan, baseline)} is ahead of {behind}, and not told from {beside}. {text}")
    planned = max(1, len(rivalries(plan, found.contrasts)))
    edged = {arm.name for arm in found.arms if arm.at_edge}
    words = ["ahead at the settings tried" if one.baseline in edged else "better" for one in found.rivals]
    among = " ".join(_sentence(plan, one, planned, word) for one, word in zip(found.rivals, words, strict=True))
    if all(decided(one) and ahead_in(plan, one) == one.arm and one.baseline not in edged for one in found.rivals):
        leader = found.rivals[0].arm if found.rivals else ahead[0]
        if len(plan.arms) == 2:
            return Verdict(word="better", arm=leader, text=text)
        beaten = [one.arm for one in made if ahead_in(plan, one) == baseline]
        rest = f"; {_name(plan, baseline)} is {_beats(plan, beaten)}" if beaten else ""
        summary = (
            f"Best: {_name(plan, leader)}; {_beats(plan, [baseline, *(one.baseline for one in found.rivals)])}{rest}."
        )
        return Verdict(word="better", arm=leader, text=f"{summary} {text} {among}".rstrip())
    are = "is" if len(ahead) == 1 else "are"
    better = f"{_listed(plan, ahead)} {are} {_beats(plan, [baseline])}"
    summary = f"No arm is called the best: {better}, and which arm is best is open."
    return Verdict(word="better", arm=None, text=f"{summary} {text} {among}")


def _beats(plan: PlanRecord, arms: Sequence[str]) -> str:
    return f"better than {_listed(plan, arms)}"


def _listed(plan: PlanRecord, arms: Sequence[str]) -> str:
    return " and ".join(_name(plan, arm) for arm in arms)


def _edge(arms: Sequence[str]) -> str:
    return f"the tuning of {' and '.join(arms)} ended at the edge of what was tried"


def _open(why: str) -> Verdict:
    return Verdict(word="inconclusive", arm=None, text=f"Inconclusive: {why}")


def _involved(contrasts: Sequence[Contrast]) -> set[str]:
    return {name for contrast in contrasts for name in (contrast.arm, contrast.baseline)}


def _sentence(plan: PlanRecord, contrast: Contrast, planned: int, word: str = "better") -> str:
    """planned: over how many comparisons its p is corrected."""
    fewest = pairs_to_decide(planned)
    holm = f", p = {digits_of_p(contrast.p_adjusted)} (Holm)" if planned > 1 else ""
    effect = (
        f"the paired difference in {plan.primary} is {_signed(contrast.mean)} "
        f"(95 % interval {_signed(contrast.low)} to {_signed(contrast.high)}, {contrast.pairs} pairs, "
        f"{'exact' if contrast.exact else 'Monte Carlo'} p {digits_of_p(contrast.p)}{holm})"
    )
    if contrast.ratio is not None:
        effect += f", a ratio of perplexities of {contrast.ratio:.4g}"
    arm, baseline = _name(plan, contrast.arm), _name(plan, contrast.baseline)
    names = f"{arm} against {baseline}"
    if decided(contrast):
        ahead = _name(plan, ahead_in(plan, contrast))
        return f"{ahead[0].upper()}{ahead[1:]} is {word}: for {names}, {effect}."
    if contrast.pairs < fewest:
        needed = contrast.pairs_needed or fewest
        return f"For {names}, {effect}; about {needed} pairs would be needed to tell."
    beyond = " beyond that of the baseline from itself" if contrast.within_noise else ""
    crossing = contrast.p_adjusted < ALPHA and contrast.low <= 0 <= contrast.high
    why = f"; p is under {ALPHA:g}, but the interval must agree, and it holds 0" if crossing else ""
    return f"No difference{beyond} between {arm} and {baseline} was detected: {effect}{why}."


def _name(plan: PlanRecord, arm: str) -> str:
    """An arm as it reads in a sentence: "Lion", but "batch size 64" and "gradient checkpointing off"."""
    return arm if arm[0].isupper() or plan.factor == "arm" else f"{plan.factor} {arm}"


def _signed(value: float) -> str:
    return f"{value:+.4g}"


def shown(value: Setting) -> str:
    """A hyperparameter as it reads in a sentence."""
    return f"{value:g}" if isinstance(value, float) else str(value)
