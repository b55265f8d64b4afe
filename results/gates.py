"""Without what nothing is concluded: pure functions of the records and of what the host saw."""

from collections.abc import Sequence

from executor.experiment import Execution, PlanRecord, RunRecord
from results.findings import Arm, Contrast, Gate, Noise

IDENTICAL = "all arms gave identical results: the factor may not have taken effect"
_IDLE_BYTES = 64 << 20
"""Of a GPU. Less than any use of it takes."""


def gates(
    plan: PlanRecord,
    plan_first: bool,
    runs: Sequence[RunRecord],
    arms: Sequence[Arm],
    contrasts: Sequence[Contrast],
    noise: Noise | None,
    executions: Sequence[Execution],
) -> list[Gate]:
    """Every gate, in the order in which they matter."""
    return [
        Gate(
            name="plan",
            ok=plan_first,
            detail="written before anything ran" if plan_first else "trainings ran before the plan",
        ),
        _trials(plan, arms),
        _seeds(runs),
        _identical(contrasts),
        _constant(plan, arms),
        _floor(contrasts, noise),
        *_device(executions),
    ]


def _trials(plan: PlanRecord, arms: Sequence[Arm]) -> Gate:
    trials = {arm.name: arm.trials for arm in arms}
    if not plan.tune:
        return Gate(name="trials", ok=True, detail="nothing was tuned")
    if len(set(trials.values())) == 1:
        return Gate(name="trials", ok=True, detail=f"{arms[0].trials} for every arm")
    told = ", ".join(f"{count} of {name}" for name, count in trials.items())
    return Gate(name="trials", ok=False, detail=f"arms were not tuned alike: {told}")


def _seeds(runs: Sequence[RunRecord]) -> Gate:
    """A training may derive its seeds from the one it is given; the same for two of them is not derived."""
    replaced: dict[int, set[int]] = {}
    for run in runs:
        if run.reseeded is not None and run.phase == "confirm":
            replaced.setdefault(run.reseeded, set()).add(run.seed)
    fixed = sorted(seed for seed, used in replaced.items() if len(used) > 1)
    if fixed:
        return Gate(name="seeds", ok=False, detail=f"the experiment replaced different seeds by the same ({fixed[0]})")
    return Gate(name="seeds", ok=True, detail="the platform's")


def _identical(contrasts: Sequence[Contrast]) -> Gate:
    same = bool(contrasts) and all(contrast.low == contrast.high == 0.0 for contrast in contrasts)
    return Gate(name="arms", ok=not same, detail=IDENTICAL if same else "differ")


def _constant(plan: PlanRecord, arms: Sequence[Arm]) -> Gate:
    """A count may be the same under every seed in each arm (bytes, parameters); not in all arms alike."""
    constant = bool(arms) and all(arm.sd == 0.0 and arm.ok > 1 for arm in arms)
    same = constant and len({arm.mean for arm in arms}) == 1
    if constant:
        detail = f"{plan.primary} is the same in every run" if same else f"{plan.primary} does not depend on the seed"
        return Gate(name="metric", ok=not same, detail=detail)
    return Gate(name="metric", ok=True, detail=f"{plan.primary} varies with the seed")


def _floor(contrasts: Sequence[Contrast], noise: Noise | None) -> Gate:
    if noise is None:
        return Gate(name="noise", ok=True, detail="the baseline was not run twice: its noise floor is not known")
    if noise.largest == 0.0:
        return Gate(name="noise", ok=True, detail="the baseline repeats to the last digit")
    told = f"the baseline differs by up to {noise.largest:.3g} from itself"
    largest = max((abs(contrast.mean) for contrast in contrasts), default=0.0)
    if contrasts and largest <= noise.largest:
        return Gate(name="noise", ok=False, detail=f"{told}, which is more than the arms differ by")
    return Gate(name="noise", ok=True, detail=told)


def _device(executions: Sequence[Execution]) -> list[Gate]:
    given = [usage for execution in executions for usage in execution.usage.gpus]
    if not given:
        return []
    idle = all(usage.peak_memory_bytes < _IDLE_BYTES and not usage.mean_utilisation for usage in given)
    return [Gate(name="device", ok=not idle, detail="a GPU was given, and not used" if idle else "the GPU was used")]
