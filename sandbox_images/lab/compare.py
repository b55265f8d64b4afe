"""Paired comparison: every arm under every seed, nuisance parameters tuned alike, every run recorded.

The same seed gives every arm the same initial weights and data order, so that differences between arms are taken pair
by pair. Tuning uses other seeds than the comparison. What does not fit into the time is recorded as skipped; a further
container may make it.
"""

import math
import random
import sys
import time
import traceback

from lab.channel import emit, number, tagged
from lab.clock import OutOfTime, stopping_at, study_time_left, time_left
from lab.grids import at_edge, further, grids_of, tuned_values
from lab.kept import earlier, left
from lab.launch import stop_loading

_TUNING_SEED = 1000003  # far from any seed that a study names
_RESERVE = 2.0  # seconds kept for the end of the script
_LAST = 1.5  # seconds before the limit at which a training that takes longer than expected is broken off
_PAIRS_WANTED = 6  # fewer cannot decide anything (results/analysis.py), so tuning leaves time for them
_MARGIN = 1.25  # how much longer than the longest so far a run may take
_WIDENED = 2  # how often a search may go beyond the edge of its grid


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
):
    """Runs `train(arm, seed, **config)` for every arm under every seed and records each run.

    arms: names, or a dict of name to settings (what `train` is then given instead of the name). The first is the
    baseline. seeds: whole numbers. tune: nuisance parameters, as {"lr": [values]} for all arms or
    {"lr": {"AdamW": [values], ...}} with equally many for each; every arm gets the same number of trials, and its best
    value by `select` (by default `primary`). Where an arm's best is the smallest or largest of its values, the search
    goes on beyond it, with one more trial for every arm. `train` returns a dict with `primary` in it, or the number itself.
    unit: "nats" where `primary` is a mean negative log-likelihood in nats. repeats: runs of the baseline that are made
    again under the same seed, whose differences are the noise floor.

    Returns {arm: [result of each seed, or None where there is none]}.
    """
    stop_loading()
    settings = dict(arms) if isinstance(arms, dict) else {str(arm): arm for arm in arms}
    names, seeds = list(settings), [int(value) for value in seeds]
    grids = grids_of(tune or {}, names)
    study = _Study(train, settings, primary, select or primary, lower_is_better)
    emit(
        {
            "type": "plan",
            "factor": factor,
            "arms": names,
            "seeds": seeds,
            "primary": primary,
            "lower_is_better": lower_is_better,
            "tune": tuned_values(grids),
            "note": note,
            "select": select or primary,
            "unit": unit,
            "repeats": repeats,
            "settings": {arm: fixed(given) for arm, given in settings.items() if isinstance(given, dict)},
        }
    )
    chosen = left()["chosen"] or study.tune(grids, min(len(seeds), _PAIRS_WANTED))
    results = {arm: [] for arm in names}
    for index, one_seed in enumerate(seeds):
        # A whole pair or none of it: half a pair tells nothing.
        room = study.fits(names) if index else True
        for arm in names:
            run = study.run if room else study.skip
            results[arm].append(run(arm, one_seed, "confirm", chosen[arm]))
        if index + 1 == min(_PAIRS_WANTED, len(seeds)):
            study.repeat(names[0], seeds[:repeats], chosen[names[0]])
    return results


class _Study:
    def __init__(self, train, settings, primary, select, lower_is_better):
        self.train, self.settings = train, settings
        self.primary, self.select, self.sign = primary, select, 1 if lower_is_better else -1
        self.longest = {}  # arm -> seconds

    def tune(self, grids, pairs_to_come):
        """{arm: the configuration with the best `select` on the tuning seed}.

        One candidate of every arm at a time, from the middle of the grids outward, so that trials stay equal when the
        time for the pairs to come would otherwise be used up. Where none worked, the middle is taken.
        """
        size = len(next(iter(grids.values())))
        middle = size // 2
        best = {arm: (math.inf, grid[middle]) for arm, grid in grids.items()}
        if size == 1:
            return {arm: config for arm, (_, config) in best.items()}
        tried = {arm: [] for arm in grids}

        def trial(candidates):
            room = self.leaves_room(candidates, pairs_to_come)
            for arm, config in candidates.items():
                result = (self.run if room else self.skip)(arm, _TUNING_SEED, "tune", config)
                tried[arm] += [config] if room else []
                if result and self.sign * result[self.select] < best[arm][0]:
                    best[arm] = (self.sign * result[self.select], config)
            return room

        for index in sorted(range(size), key=lambda i: abs(i - middle)):
            trial({arm: grid[index] for arm, grid in grids.items()})
        for _ in range(_WIDENED):
            if not any(math.isfinite(score) and at_edge(config, tried[arm]) for arm, (score, config) in best.items()):
                break
            wider = {arm: further(config, tried[arm]) for arm, (_, config) in best.items()}
            # Every arm has one more trial, or none has.
            if None in wider.values() or not self.leaves_room(wider, pairs_to_come) or not trial(wider):
                break
        return {arm: config for arm, (_, config) in best.items()}

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
        before = earlier(phase, arm, seed, config)
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
            result = dict(result) if isinstance(result, dict) else {self.primary: result}
            values = {name: number(value) for name, value in result.items()}
            status = (
                "ok" if all(math.isfinite(float(values[name])) for name in (self.primary, self.select)) else "diverged"
            )
        except OutOfTime:
            self.longest[arm] = max(self.longest.get(arm, 0.0), time.monotonic() - began)
            return self.skip(arm, seed, phase, config, time.monotonic() - began)
        except Exception as failure:
            values, status = {}, "failed"
            error = traceback.format_exception_only(type(failure), failure)[-1].strip()[:500]
            traceback.print_exc()
        seconds = time.monotonic() - began
        self.longest[arm] = max(self.longest.get(arm, 0.0), seconds)
        self.record(arm, seed, phase, status, config, values, seconds, error, reseeded(seed))
        return {name: float(value) for name, value in values.items()} if status == "ok" else None

    def again(self, before):
        """What an earlier container found."""
        self.longest[before["arm"]] = max(self.longest.get(before["arm"], 0.0), before["seconds"])
        return {name: float(v) for name, v in before["values"].items()} if before["status"] == "ok" else None

    def record(self, arm, seed, phase, status, config, values=None, seconds=0.0, error=None, replaced=None):
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
        if replaced is not None:
            record["reseeded"] = replaced
        emit(record)
        shown = " ".join("%s=%s" % (name, value) for name, value in config.items())
        score = values.get(self.primary, status)
        score = "%.5g" % score if isinstance(score, float) else str(score)
        print("%-8s %-24s seed %-8d %s %s=%s (%.1f s)" % (phase, arm, seed, shown, self.primary, score, seconds))
        sys.stdout.flush()


def fixed(settings):
    """What an arm is given beside what is tuned, as a record can hold it."""
    return {str(name)[:100] or "?": _plain(value) for name, value in list(settings.items())[:64]}


def _plain(value):
    exact = value is None or isinstance(value, bool) or (isinstance(value, (int, float)) and abs(value) < 1e15)
    return value if exact else str(value)[:100]


def seed_everything(seed):
    """Seeds random, and numpy and torch where they are in use."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % (1 << 32))
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def reseeded(seed):
    """The seed that torch has now, where the training replaced the one it was given; else None."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    now = torch.initial_seed() & ((1 << 63) - 1)
    return None if now == seed else now
