"""Paired comparison: every arm under every seed, nuisance parameters tuned alike, every run recorded.

The same seed gives every arm the same initial weights and data order, so that differences between arms are taken pair
by pair. Tuning uses other seeds than the comparison. What does not fit into the time is recorded as skipped.
"""

import itertools
import math
import random
import sys
import time
import traceback

from lab.channel import emit, number, tagged
from lab.clock import time_left

_TUNING_SEED = 1000003  # far from any seed that a study names
_RESERVE = 2.0  # seconds kept for the end of the script
_PAIRS_WANTED = 6  # fewer cannot decide anything (results/analysis.py), so tuning leaves time for them
_MARGIN = 1.25  # how much longer than the longest so far a run may take


def compare(
    train,
    arms,
    seeds,
    tune=None,
    primary="val_loss",
    lower_is_better=True,
    factor="arm",
    note="",
):
    """Runs `train(arm, seed, **config)` for every arm under every seed and records each run.

    arms: names, or a dict of name to settings (what `train` is then given instead of the name). The first is the
    baseline. seeds: whole numbers. tune: nuisance parameters, as {"lr": [values]} for all arms or
    {"lr": {"AdamW": [values], ...}} with equally many for each; every arm gets the same number of trials, and its best
    value by `primary`. `train` returns a dict with `primary` in it, or the number itself.

    Returns {arm: [result of each seed, or None where there is none]}.
    """
    settings = dict(arms) if isinstance(arms, dict) else {str(arm): arm for arm in arms}
    names, seeds = list(settings), [int(value) for value in seeds]
    grids = _grids(tune or {}, names)
    study = _Study(train, settings, primary, lower_is_better)
    emit(
        {
            "type": "plan",
            "factor": factor,
            "arms": names,
            "seeds": seeds,
            "primary": primary,
            "lower_is_better": lower_is_better,
            "tune": _tuned_values(grids, names),
            "note": note,
        }
    )
    chosen = study.tune(grids, min(len(seeds), _PAIRS_WANTED))
    results = {arm: [] for arm in names}
    for index, one_seed in enumerate(seeds):
        # A whole pair or none of it: half a pair tells nothing.
        room = study.fits(names) if index else True
        for arm in names:
            run = study.run if room else study.skip
            results[arm].append(run(arm, one_seed, "confirm", chosen[arm]))
    return results


class _Study:
    def __init__(self, train, settings, primary, lower_is_better):
        self.train, self.settings = train, settings
        self.primary, self.sign = primary, 1 if lower_is_better else -1
        self.longest = {}  # arm -> seconds

    def tune(self, grids, pairs_to_come):
        """{arm: the configuration with the best primary on the tuning seed}.

        One candidate of every arm at a time, from the middle of the grids outward, so that trials stay equal when the
        time for the pairs to come would otherwise be used up. Where none worked, the middle is taken.
        """
        size = len(next(iter(grids.values())))
        middle = size // 2
        best = {arm: (math.inf, grid[middle]) for arm, grid in grids.items()}
        for index in sorted(range(size), key=lambda i: abs(i - middle)) if size > 1 else []:
            run = self.run if self.fits(grids, 1 + pairs_to_come) else self.skip
            for arm, grid in grids.items():
                result = run(arm, _TUNING_SEED, "tune", grid[index])
                if result and self.sign * result[self.primary] < best[arm][0]:
                    best[arm] = (self.sign * result[self.primary], grid[index])
        return {arm: config for arm, (_, config) in best.items()}

    def fits(self, arms, rounds=1):
        """Whether that many runs of each of `arms` will end in time, going by the longest so far."""
        longest = max(self.longest.values(), default=0.0)
        needed = rounds * sum(self.longest.get(arm, longest) for arm in arms) * _MARGIN
        return needed + _RESERVE < time_left()

    def skip(self, arm, seed, phase, config):
        self.record(arm, seed, phase, "skipped", config, error="no time was left")

    def run(self, arm, seed, phase, config):
        """One training; its result, or None when it failed or diverged."""
        if not self.fits([arm]):
            return self.skip(arm, seed, phase, config)
        seed_everything(seed)
        began = time.monotonic()
        result, error = {}, None
        try:
            with tagged(arm=arm, seed=seed, phase=phase):
                result = self.train(self.settings[arm], seed, **config)
            result = dict(result) if isinstance(result, dict) else {self.primary: result}
            values = {name: number(value) for name, value in result.items()}
            status = "ok" if math.isfinite(float(values[self.primary])) else "diverged"
        except Exception as failure:
            values, status = {}, "failed"
            error = traceback.format_exception_only(type(failure), failure)[-1].strip()[:500]
            traceback.print_exc()
        seconds = time.monotonic() - began
        self.longest[arm] = max(self.longest.get(arm, 0.0), seconds)
        self.record(arm, seed, phase, status, config, values, seconds, error)
        return {name: float(value) for name, value in values.items()} if status == "ok" else None

    def record(self, arm, seed, phase, status, config, values=None, seconds=0.0, error=None):
        values = values or {}
        record = {
            "type": "run",
            "arm": arm,
            "seed": seed,
            "phase": phase,
            "status": status,
            "values": values,
            "config": config,
            "seconds": seconds,
        }
        if error:
            record["error"] = error
        emit(record)
        shown = " ".join("%s=%s" % (name, value) for name, value in config.items())
        score = values.get(self.primary, status)
        score = "%.5g" % score if isinstance(score, float) else str(score)
        print("%-8s %-24s seed %-8d %s %s=%s (%.1f s)" % (phase, arm, seed, shown, self.primary, score, seconds))
        sys.stdout.flush()


def seed_everything(seed):
    """Seeds random, and numpy and torch where they are in use."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % (1 << 32))
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def _grids(tune, arms):
    """For each arm the list of configurations to try: the product of its parameters' values."""
    sizes = {}
    for name, values in tune.items():
        per_arm = values if isinstance(values, dict) else dict.fromkeys(arms, values)
        if set(per_arm) != set(arms):
            raise ValueError("tune[%r] must name every arm, or none" % name)
        if len({len(values) for values in per_arm.values()}) != 1 or not all(per_arm.values()):
            raise ValueError("tune[%r] must give every arm equally many values, so that none is favoured" % name)
        sizes[name] = per_arm
    return {
        arm: [dict(zip(sizes, values)) for values in itertools.product(*(sizes[name][arm] for name in sizes))]
        for arm in arms
    }


def _tuned_values(grids, arms):
    """Parameter -> values, as the plan records them; where arms differ, as `parameter[arm]`."""
    found = {}
    for arm in arms:
        for config in grids[arm]:
            for name, value in config.items():
                values = found.setdefault(name, {}).setdefault(arm, [])
                if value not in values:
                    values.append(value)
    plan = {}
    for name, per_arm in found.items():
        if len({tuple(values) for values in per_arm.values()}) == 1:
            plan[name] = next(iter(per_arm.values()))
        else:
            plan.update({"%s[%s]" % (name, arm): values for arm, values in per_arm.items()})
    return plan
