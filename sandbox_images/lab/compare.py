"""Paired comparison: every arm under every seed, nuisance parameters tuned alike, every run recorded.

The same seed gives every arm the same initial weights and data order, so that differences between arms are taken pair
by pair. Tuning uses other seeds than the comparison. What does not fit into the time is recorded as skipped; a further
container may make it.
"""

import math
import sys
import time
import traceback

from lab.channel import emit, number, tagged
from lab.clock import OutOfTime, stopping_at, study_time_left, time_left
from lab.grids import actual, recorded, values_of
from lab.kept import earlier, left
from lab.launch import stop_loading
from lab.plan import named, plan_of, seeds_of
from lab.seeding import generators, reseeded, seed_everything
from lab.tuning import trials_of, tuned

_RESERVE = 2.0  # seconds kept for the end of the script
_LAST = 1.5  # seconds before the limit at which a training that takes longer than expected is broken off
_PAIRS_WANTED = 6  # fewer cannot decide anything (results/analysis.py), so tuning leaves time for them
_MARGIN = 1.25  # how much longer than the longest so far a run may take
_MOST_VALUES = 64  # of a training (executor/experiment.py)

_begun = False


def compare(
    train,
    arms,
    seeds,
    tune=None,
    primary="val_loss",
    lower_is_better=True,
    factor="arm",
    note="",
    select=None,
    unit=None,
    repeats=1,
    one_by_one=False,
    deterministic=False,
    select_lower_is_better=None,
):
    """Runs `train(arm, seed, **config)` for every arm under every seed and records each run.

    arms: names, or a dict of name to settings (what `train` is then given instead of the name). The first is the
    baseline. seeds: different whole numbers. tune: nuisance parameters, as {"lr": [values]} for all arms or
    {"lr": {"AdamW": [values], ...}} with equally many for each; every arm gets the same number of trials, and its best
    value by `select` (by default `primary`). Where an arm's best is the smallest or largest of its values, the search
    goes on beyond it, with one more trial for every arm. one_by_one: the first parameter is tuned beside the middle of
    the others, the next beside the best of the first, and so on; else every combination is tried. `train` returns a dict
    with `primary` in it, or the number itself. unit: "nats" where `primary` is a mean negative log-likelihood in nats.
    repeats: runs of the baseline that are made again under the same seed, whose differences are the noise floor.
    deterministic: `primary` is a count that no seed changes, such as bytes. select_lower_is_better: the direction of
    `select`, where it is not that of `primary`.

    Returns {arm: [result of each seed, or None where there is none]}. Raises ValueError, before anything runs, for what
    cannot be recorded; RuntimeError for a second comparison: an experiment has one, whose plan comes first.
    """
    stop_loading()
    settings, seeds = named(arms), seeds_of(seeds)
    names, values = list(settings), values_of(tune or {}, list(settings))
    trials = trials_of(values, one_by_one)
    downward = lower_is_better if select_lower_is_better is None else select_lower_is_better
    study = _Study(train, settings, primary, select or primary, downward)
    plan = plan_of(
        settings, seeds, values, trials, primary, select, unit, repeats, factor, note,
        lower_is_better=bool(lower_is_better), deterministic=bool(deterministic), select_lower_is_better=bool(downward),
    )  # fmt: skip
    _begin()
    emit(plan)
    chosen = {arm: actual(config, values, arm) for arm, config in left()["chosen"].items()}
    chosen = chosen or tuned(study, values, names, one_by_one, min(len(seeds), _PAIRS_WANTED))
    results = {arm: [] for arm in names}
    for index, one_seed in enumerate(seeds):
        # A whole pair or none of it: half a pair tells nothing.
        room = study.fits(names) if index else True
        for arm in names:
            run = study.run if room else study.skip
            results[arm].append(run(arm, one_seed, "confirm", chosen[arm]))
        if index + 1 == min(_PAIRS_WANTED, len(seeds)):
            study.repeat(names[0], seeds[:repeats], chosen[names[0]])
    return dict(zip(arms, results.values())) if isinstance(arms, dict) else results


def _begin():
    global _begun
    if _begun:
        raise RuntimeError("one comparison for each experiment: put all arms into one lab.compare")
    _begun = True


class _Study:
    def __init__(self, train, settings, primary, select, select_downward):
        self.train, self.settings = train, settings
        self.primary, self.select, self.sign = primary, select, 1 if select_downward else -1
        self.longest = {}  # arm -> seconds

    def score(self, result):
        """What tuning makes small."""
        return self.sign * result[self.select]

    def repeat(self, arm, seeds, config):
        """The baseline once more under seeds that it had: what differs then is noise."""
        for one_seed in seeds:
            (self.run if self.fits([arm]) else self.skip)(arm, one_seed, "noise", config)

    def fits(self, arms):
        """Whether a run of each of `arms` will end in this container's time, going by the longest so far."""
        return self.needed(arms) + _RESERVE < time_left()

    def leaves_room(self, arms, pairs):
        """Whether it will, and the study has time for that many pairs after it."""
        return self.fits(arms) and (1 + pairs) * self.needed(arms) + _RESERVE < study_time_left()

    def needed(self, arms):
        longest = max(self.longest.values(), default=0.0)
        return sum(self.longest.get(arm, longest) for arm in arms) * _MARGIN

    def skip(self, arm, seed, phase, config, seconds=0.0):
        self.record(arm, seed, phase, "skipped", config, seconds=seconds, error="no time was left")

    def run(self, arm, seed, phase, config):
        """One training; its result, or None when it failed, diverged, or took longer than there was time."""
        before = earlier(phase, arm, seed, recorded(config))
        if before is not None:
            return self.again(before)
        if not self.fits([arm]):
            return self.skip(arm, seed, phase, config)
        seed_everything(seed)
        began = time.monotonic()
        result, error = {}, None
        try:
            with tagged(arm=arm, seed=seed, phase=phase), stopping_at(_LAST):
                result = self.train(self.settings[arm], seed, **config)
            values = self.measured(result)
            status = (
                "ok" if all(math.isfinite(float(values[name])) for name in (self.primary, self.select)) else "diverged"
            )
        except OutOfTime:
            self.longest[arm] = max(self.longest.get(arm, 0.0), time.monotonic() - began)
            return self.skip(arm, seed, phase, config, time.monotonic() - began)
        except (Exception, SystemExit) as failure:  # a training that quits early has failed, and does not end the study
            values, status = {}, "failed"
            error = traceback.format_exception_only(type(failure), failure)[-1].strip()[:500]
            error = error.encode("utf-8", "replace").decode()
            traceback.print_exc()
        seconds = time.monotonic() - began
        self.longest[arm] = max(self.longest.get(arm, 0.0), seconds)
        left_behind = {"reseeded": reseeded(seed), "generators": generators()}
        self.record(arm, seed, phase, status, config, values, seconds, error, left_behind)
        return {name: float(value) for name, value in values.items()} if status == "ok" else None

    def measured(self, result):
        """What a training returned, as a record can hold it: of too many values, those that matter and the first."""
        result = dict(result) if isinstance(result, dict) else {self.primary: result}
        names = sorted(result, key=lambda name: name not in (self.primary, self.select))[:_MOST_VALUES]
        return {str(name)[:128]: number(result[name]) for name in names}

    def again(self, before):
        """What an earlier container found."""
        self.longest[before["arm"]] = max(self.longest.get(before["arm"], 0.0), before["seconds"])
        return {name: float(v) for name, v in before["values"].items()} if before["status"] == "ok" else None

    def record(self, arm, seed, phase, status, config, values=None, seconds=0.0, error=None, left_behind=None):
        values = values or {}
        record = {
            "type": "run",
            "arm": arm,
            "seed": seed,
            "phase": phase,
            "status": status,
            "values": values,
            "config": recorded(config),
            "seconds": seconds,
        }
        if error:
            record["error"] = error
        record.update({name: value for name, value in (left_behind or {}).items() if value is not None})
        emit(record)
        shown = " ".join("%s=%s" % (name, value) for name, value in config.items())
        score = values.get(self.primary, status)
        score = "%.5g" % score if isinstance(score, float) else str(score)
        print("%-8s %-24s seed %-8d %s %s=%s (%.1f s)" % (phase, arm, seed, shown, self.primary, score, seconds))
        sys.stdout.flush()
