"""Without what nothing is concluded: pure functions of the records and of what the host saw."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from executor.experiment import Execution, Outcome, PlanRecord, RunRecord
from results.findings import Arm, Contrast, Gate, Noise

IDENTICAL = "all arms gave identical results: the factor may not have taken effect"
_ROUNDING = 1e-12
_IDLE_BYTES = 64 << 20
"""Of a GPU. Less than any use of it takes."""


@dataclass(frozen=True)
class Evidence:
    """What the gates look at."""

    plans: Sequence[PlanRecord]
    """One, and the same again in each further container of a study."""
    plan_first: bool
    """No training was recorded before it."""
    runs: Sequence[RunRecord]
    arms: Sequence[Arm]
    contrasts: Sequence[Contrast]
    noise: Noise | None
    executions: Sequence[Execution]
    """Empty where it is not known which they were."""


def gates(found: Evidence) -> list[Gate]:
    """Every gate, in the order in which they matter."""
    plan = found.plans[0]
    return [
        *_outcome(found.executions),
        *_whole(found.arms, found.executions),
        Gate(
            name="plan",
            ok=found.plan_first,
            detail="written before anything ran" if found.plan_first else "trainings ran before the plan",
        ),
        *_single(found.plans),
        _trials(plan, found.arms),
        _seeds(found.runs),
        _identical(found.arms, found.contrasts),
        _constant(plan, found.arms),
        _floor(found.contrasts, found.noise),
        *_device(found.executions),
    ]


def _outcome(executions: Sequence[Execution]) -> list[Gate]:
    """A run that was ended from outside is no pass, whatever it recorded until then."""
    if not executions:
        return []
    ended = [one for one in executions if one.outcome is not Outcome.COMPLETED]
    if not ended:
        return [Gate(name="outcome", ok=True, detail="completed")]
    many = f"{len(ended)} of {len(executions)} executions" if len(executions) > 1 else "the execution"
    told = ", ".join(sorted({one.outcome.value for one in ended}))
    return [Gate(name="outcome", ok=False, detail=f"{many} did not complete ({told})")]


def _whole(arms: Sequence[Arm], executions: Sequence[Execution]) -> list[Gate]:
    """Runs without time are on record as skipped. One without any record was left out by the experiment, which could stop
    whenever it likes what it sees."""
    missing = sum(arm.missing for arm in arms)
    if not missing:
        return [Gate(name="runs", ok=True, detail="every planned run is on record")]
    by_itself = executions and all(one.outcome is Outcome.COMPLETED for one in executions)
    why = ", though the experiment ended by itself" if by_itself else ""
    return [Gate(name="runs", ok=False, detail=f"{missing} planned runs were not made{why}")]


def _single(plans: Sequence[PlanRecord]) -> list[Gate]:
    same = all(plan.model_copy(update={"t": plans[0].t}) == plans[0] for plan in plans)
    detail = "one" if same else f"{len(plans)} different plans were recorded, of which only the first was judged"
    return [Gate(name="comparisons", ok=same, detail=detail)]


def _trials(plan: PlanRecord, arms: Sequence[Arm]) -> Gate:
    if not plan.tune:
        return Gate(name="trials", ok=True, detail="nothing was tuned")
    trials = {arm.name: arm.trials for arm in arms}
    if len(set(trials.values())) > 1:
        told = ", ".join(f"{count} of {name}" for name, count in trials.items())
        return Gate(name="trials", ok=False, detail=f"arms were not tuned alike: {told}")
    if useless := untuned(arms):
        return Gate(
            name="trials", ok=False, detail=f"no tuning trial of {' or '.join(useless)} gave a number to choose by"
        )
    return Gate(name="trials", ok=True, detail=f"{arms[0].trials} for every arm")


def untuned(arms: Iterable[Arm]) -> list[str]:
    """Those that were tried, and never with a result: nothing was chosen for them."""
    return [arm.name for arm in arms if arm.trials and not arm.trials_usable]


def _seeds(runs: Sequence[RunRecord]) -> Gate:
    """A training may derive its seeds from the one it is given; the same for two of them is not derived."""
    used: dict[tuple[str, int | str], set[int]] = {}
    for run in runs:
        if run.phase == "confirm":
            if run.reseeded is not None:
                used.setdefault(("torch", run.reseeded), set()).add(run.seed)
            for generator, state in run.generators.items():
                used.setdefault((generator, state), set()).add(run.seed)
    fixed = sorted({_overridden(*key) for key, seeds in used.items() if len(seeds) > 1})
    if fixed:
        return Gate(name="seeds", ok=False, detail=f"the experiment replaced different seeds by the same {fixed[0]}")
    return Gate(name="seeds", ok=True, detail="the platform's")


def _overridden(generator: str, state: int | str) -> str:
    return f"({state})" if generator == "torch" else f"(of {generator})"


def _identical(arms: Sequence[Arm], contrasts: Sequence[Contrast]) -> Gate:
    size = max((abs(arm.mean) for arm in arms if arm.mean is not None), default=0.0)
    same = bool(contrasts) and all(
        abs(difference) <= _ROUNDING * size for contrast in contrasts for difference in contrast.differences.values()
    )
    return Gate(name="arms", ok=not same, detail=IDENTICAL if same else "differ")


def _constant(plan: PlanRecord, arms: Sequence[Arm]) -> Gate:
    """A count may be the same under every seed (bytes, parameters), where the plan says so; not in all arms alike."""
    constant = [arm for arm in arms if arm.sd == 0.0]
    means = [arm.mean for arm in constant if arm.mean is not None]
    if means and len(constant) == len(arms) and all(math.isclose(mean, means[0], rel_tol=_ROUNDING) for mean in means):
        return Gate(name="metric", ok=False, detail=f"{plan.primary} is the same in every run")
    if constant and not plan.deterministic:
        names = " and ".join(arm.name for arm in constant)
        detail = f"{plan.primary} of {names} is the same under every seed, and the plan does not call it deterministic"
        return Gate(name="metric", ok=False, detail=detail)
    if constant:
        return Gate(name="metric", ok=True, detail=f"{plan.primary} does not depend on the seed, as planned")
    return Gate(name="metric", ok=True, detail=f"{plan.primary} varies with the seed")


def _floor(contrasts: Sequence[Contrast], noise: Noise | None) -> Gate:
    """Each contrast within it is undecided by itself; this fails where all are."""
    if noise is None:
        return Gate(name="noise", ok=True, detail="the baseline was not run twice: its noise floor is not known")
    if noise.largest == 0.0:
        return Gate(name="noise", ok=True, detail="the baseline repeats to the last digit")
    told = f"the baseline differs by up to {noise.largest:.3g} from itself"
    within = [contrast.arm for contrast in contrasts if contrast.within_noise]
    if within and len(within) == len(contrasts):
        return Gate(name="noise", ok=False, detail=f"{told}, which is more than the arms differ by")
    also = f", and {' and '.join(within)} by no more from it" if within else ""
    return Gate(name="noise", ok=True, detail=told + also)


def _device(executions: Sequence[Execution]) -> list[Gate]:
    given = [usage for execution in executions for usage in execution.usage.gpus]
    if not given:
        return []
    idle = all(usage.peak_memory_bytes < _IDLE_BYTES and not usage.mean_utilisation for usage in given)
    return [Gate(name="device", ok=not idle, detail="a GPU was given, and not used" if idle else "the GPU was used")]
