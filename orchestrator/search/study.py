"""The search itself, by Optuna: its SQLite file in the sweep's folder is the record of what was tried.

The first trial runs with the experiment's own defaults and declares its space (`lab.params`); the others are suggested.
A trial that a crash cut off is tried again with the same values, and does not count. Nothing here is for several threads
at once.
"""

import itertools
import math
import sqlite3
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from executor.experiment import Config, Dimension
from orchestrator.search.spec import SweepSpec, Unfit

if TYPE_CHECKING:  # half a second that most commands do not need
    import optuna

State = Literal["complete", "pruned", "failed", "lost"]
"""`lost`: a crash cut it off, and its values were tried again."""
_DENSE = 256
"""Values of a trial that the pruner gets one by one; of later ones ever fewer, since each is written to the disk."""
_EDGE = 0.02
"""So near to an end of its range, on the scale that is searched, a value is at the edge."""
_LOST, _WHY, _AGAIN = "lost", "why", "again"


class Running:
    """A trial that was asked for, and whose end is not told yet."""

    def __init__(self, trial: "optuna.Trial") -> None:
        self.trial = trial
        self.number: int = trial.number
        self.params: Config = dict(trial.params)
        self._heard = 0

    def hopeless(self, value: float, step: float | None) -> int | None:
        """Takes a value on the way; the step at which the trial is worse than most were, if it is."""
        count, self._heard = self._heard, self._heard + 1
        if not math.isfinite(value) or count % (1 << (count // _DENSE).bit_length()):
            return None
        at = int(step) if step is not None and 0 <= step < 2**31 and step == int(step) else count
        self.trial.report(value, at)
        return at if self.trial.should_prune() else None


class Search:
    """The trials of one sweep."""

    def __init__(self, folder: Path, spec: SweepSpec) -> None:
        import optuna

        optuna.logging.disable_default_handler()
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        self._optuna = optuna
        self._spec = spec
        # The file's path is not a part of the address, where some of its characters would mean something.
        connection = lambda: sqlite3.connect(folder / "study.db", timeout=30, check_same_thread=False)  # noqa: E731
        storage = optuna.storages.RDBStorage("sqlite:///study.db", engine_kwargs={"creator": connection})
        self.study: optuna.Study = optuna.create_study(
            study_name="sweep",
            storage=storage,
            load_if_exists=True,
            direction="maximize" if spec.maximize else "minimize",
            sampler=optuna.samplers.RandomSampler(spec.seed),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1)
            if spec.prune
            else optuna.pruners.NopPruner(),
        )
        self._space: dict[str, Dimension] = {
            name: Dimension.model_validate(value) for name, value in self._attribute("space", {}).items()
        }
        self._use_sampler()

    @property
    def metric(self) -> str | None:
        """By which trials are compared; None before the first has ended, where nobody said."""
        found: str | None = self._attribute("metric", self._spec.metric)
        return found

    @property
    def space(self) -> Mapping[str, Dimension]:
        """What the experiment declares; empty before the first trial."""
        return self._space

    @property
    def begun(self) -> bool:
        """Whether the first trial is on record."""
        return bool(self.study.get_trials(deepcopy=False))

    def begin(self, space: Mapping[str, Dimension], defaults: Config, metric: str, value: float) -> None:
        """With the first trial's end: what it declared, with what it ran, and what came of it."""
        self._space = dict(space)
        self.study.set_user_attr("metric", metric)
        self.study.set_user_attr("space", {name: one.model_dump(exclude_none=True) for name, one in space.items()})
        self.study.add_trial(  # last: it says that the rest is there
            self._optuna.trial.create_trial(params=dict(defaults), distributions=self._distributions(), value=value)
        )

    def lay_grid(self) -> str | None:
        """Puts the whole grid into the queue, once; its shape in words then. (Optuna's own can only be driven by Optuna.)"""
        if self._spec.sampler != "grid" or self._attribute("grid", False):
            return None
        levels = grid(self._space, self._spec.trials)
        for values in itertools.product(*levels.values()):
            self.study.enqueue_trial(dict(zip(levels, values, strict=True)), skip_if_exists=True)
        self.study.set_user_attr("grid", True)
        return ", ".join(f"{len(values)} of {name}" for name, values in levels.items())

    def take_up(self) -> int:
        """Trials that a dead process left running: they are to be tried again. Returns how many.

        A kill may come between any two writes. So telling comes last: until then the trial is found running, and what was
        done for it already is not done twice.
        """
        states = self._optuna.trial.TrialState
        trials = self.study.get_trials(deepcopy=False)
        queued = {trial.user_attrs.get(_AGAIN) for trial in trials}
        lost = [trial for trial in trials if trial.state == states.RUNNING]
        for trial in lost:
            # Told trials take no attributes, so what was lost is in the study's.
            known = self._attribute(_LOST, [])
            if trial.number not in known:
                self.study.set_user_attr(_LOST, [*known, trial.number])
            # Not by enqueue_trial's skip_if_exists, which would take the trial itself for its repetition.
            if trial.number not in queued:
                # One that was killed while it was asked for has not all of its queued values yet.
                values = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
                self.study.enqueue_trial(values, user_attrs={_AGAIN: trial.number})
            self.study.tell(trial.number, state=states.FAIL)
        return len(lost)

    def ask(self) -> Running:
        """The next trial: the first of the queue, or one that the sampler suggests. `tell` ends it."""
        return Running(self.study.ask(self._distributions()))

    def tell(self, running: Running, value: float | None, pruned: bool, why: str) -> None:
        """What came of it; without a value and not pruned, it failed."""
        states = self._optuna.trial.TrialState
        running.trial.set_user_attr(_WHY, why)
        if value is not None:
            self.study.tell(running.trial, value)
        else:
            self.study.tell(running.trial, state=states.PRUNED if pruned else states.FAIL)

    def left(self) -> int:
        """How many trials are still to be made: the rest of those asked for, or of the grid."""
        rest = self._spec.trials - sum(state != "lost" for _, state in self.ended())
        waiting = self.study.get_trials(deepcopy=False, states=[self._optuna.trial.TrialState.WAITING])
        return max(0, min(rest, len(waiting)) if self._spec.sampler == "grid" else rest)

    def ended(self) -> list[tuple["optuna.trial.FrozenTrial", State]]:
        """The trials that have ended, in their order."""
        lost = set(self._attribute(_LOST, []))
        names: dict[str, State] = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
        return [
            (trial, "lost" if trial.number in lost else names[trial.state.name])
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state.is_finished()
        ]

    def edges(self, params: Mapping[str, Any]) -> list[str]:
        """The parameters whose value is at an end of its range: a better one may lie beyond."""
        return [name for name, one in self._space.items() if name in params and _at_edge(one, params[name])]

    def best(self) -> "optuna.trial.FrozenTrial | None":
        """The trial with the best value; None where none has one."""
        try:
            return self.study.best_trial
        except ValueError:
            return None

    def importances(self) -> dict[str, float]:
        """How much each parameter mattered (PED-ANOVA); empty where there are too few trials to tell."""
        complete = self.study.get_trials(deepcopy=False, states=[self._optuna.trial.TrialState.COMPLETE])
        if len(complete) < 4 or len(self._space) < 2:
            return {}
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

        try:
            return get_param_importances(self.study, evaluator=PedAnovaImportanceEvaluator())
        except (ValueError, RuntimeError):
            return {}

    def _use_sampler(self) -> None:
        samplers, number = self._optuna.samplers, len(self.study.get_trials(deepcopy=False))
        seed = (self._spec.seed + number) % 2**32  # resumed, it does not suggest the same again
        if self._spec.sampler == "random":
            self.study.sampler = samplers.RandomSampler(seed)
        else:
            self.study.sampler = samplers.TPESampler(
                seed=seed, multivariate=True, constant_liar=self._spec.parallel > 1
            )

    def _distributions(self) -> dict[str, "optuna.distributions.BaseDistribution"]:
        return {name: self._distribution(one) for name, one in self._space.items()}

    def _distribution(self, one: Dimension) -> Any:
        kinds = self._optuna.distributions
        if one.kind == "choice":
            return kinds.CategoricalDistribution(one.choices)
        low, high = one.low or 0.0, one.high or 0.0
        if one.kind.endswith("int"):
            return kinds.IntDistribution(int(low), int(high), log=one.kind == "logint")
        return kinds.FloatDistribution(low, high, log=one.kind == "log")

    def _attribute(self, name: str, otherwise: Any) -> Any:
        return self.study.user_attrs.get(name, otherwise)


def grid(space: Mapping[str, Dimension], trials: int) -> dict[str, list[Any]]:
    """Values of every dimension, as many as give a grid of at most so many trials, that with the defaults among them."""
    # The first choices are the defaults; a range's middle need not be on its grid.
    most = trials if all(one.kind == "choice" for one in space.values()) else trials - 1
    counts, growing = dict.fromkeys(space, 1), list(space)
    while growing:
        name = min(growing, key=lambda one: counts[one])
        wider = {**counts, name: counts[name] + 1}
        if wider[name] <= _distinct(space[name]) and math.prod(wider.values()) <= most:
            counts = wider
        else:
            growing.remove(name)
    return {name: _levels(one, counts[name]) for name, one in space.items()}


def _distinct(one: Dimension) -> float:
    if one.kind == "choice":
        return len(one.choices)
    return (one.high or 0.0) - (one.low or 0.0) + 1 if one.kind.endswith("int") else math.inf


def _levels(one: Dimension, count: int) -> list[Any]:
    """So many values, from end to end; one is the middle. Where whole numbers fall together, fewer."""
    if one.kind == "choice":
        return list(one.choices[:count])
    low, high = one.low or 0.0, one.high or 0.0
    shares = [step / (count - 1) for step in range(count)] if count > 1 else [0.5]
    logarithmic = one.kind.startswith("log")
    values = [low * (high / low) ** part if logarithmic else low + (high - low) * part for part in shares]
    values = [min(high, max(low, value)) for value in values]  # without what rounding adds
    return sorted({round(value) for value in values}) if one.kind.endswith("int") else values


def _at_edge(one: Dimension, value: Any) -> bool:
    if one.kind == "choice":
        return False
    scale = math.log if one.kind.startswith("log") else float
    low, high = scale(one.low or 0.0), scale(one.high or 0.0)
    return not _EDGE < (scale(value) - low) / (high - low) < 1 - _EDGE


def metric_of(values: dict[str, float], wanted: str | None) -> str:
    """By which metric trials are compared. Raises Unfit where the first has none to offer."""
    if wanted is not None:
        if wanted not in values:
            known = ", ".join(sorted(values)[:8]) or "none at all"
            raise Unfit(f"the experiment logged no {ascii(wanted)[1:-1]}; it logged {ascii(known)[1:-1]}")
        return wanted
    losses = [name for name in values if "loss" in name.lower()]
    found = next((name for name in ("val_loss", *losses, *reversed(values)) if name in values), None)
    if found is None:
        raise Unfit("the experiment logged no metric (lab.log) by which trials could be compared")
    return found
