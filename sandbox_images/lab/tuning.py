"""The search for every arm's best values of the nuisance parameters, with equally many trials for each."""

import math

from lab.grids import at_edge, further, middle, product

SEED = 1000003  # far from any seed that a study names
_WIDENED = 2  # how often a search may go beyond the edge of its grid


def trials_of(values, one_by_one):
    """How many configurations are tried for each arm, before any edge is gone beyond."""
    sizes = [len(next(iter(per_arm.values()))) for per_arm in values.values()]
    total = 1 + sum(size - 1 for size in sizes) if one_by_one else math.prod(sizes)
    return total if total > 1 else 0


def tuned(study, values, arms, one_by_one, pairs_to_come):
    """{arm: the configuration with the best `select` on the tuning seed}; where none worked, the middle of the grids.

    Every combination, or one parameter after the other: the first beside the middle of the others, the next beside what
    was best so far. Stops for all arms alike where the time for the pairs to come would be used up.
    """
    if one_by_one or not values:
        search = _Search(study, {arm: middle(values, arm) for arm in arms}, pairs_to_come)
        for place, name in enumerate(values):
            search.over({arm: search.beside(arm, name, values[name][arm], place > 0) for arm in arms}, [name])
    else:
        grids = product(values, arms)
        search = _Search(study, {arm: grid[len(grid) // 2] for arm, grid in grids.items()}, pairs_to_come)
        search.over(grids)
    return {arm: config for arm, (_, config) in search.best.items()}


class _Search:
    def __init__(self, study, start, pairs_to_come):
        self.study, self.pairs_to_come = study, pairs_to_come
        self.best = {arm: (math.inf, config) for arm, config in start.items()}
        self.tried = {arm: [] for arm in start}

    def beside(self, arm, name, values, later):
        """The best so far with each of these values; without the middle one where that was tried already."""
        tried = len(values) // 2 if later and self.tried[arm] else None
        return [dict(self.best[arm][1], **{name: value}) for place, value in enumerate(values) if place != tried]

    def over(self, candidates, names=None):
        """Tries one candidate of every arm at a time, from the middle outward, and then beyond the edges."""
        size = len(next(iter(candidates.values())))
        if size + len(next(iter(self.tried.values()))) < 2:
            return  # there is nothing to choose from
        for index in sorted(range(size), key=lambda i: abs(i - size // 2)):
            self.trial({arm: configs[index] for arm, configs in candidates.items()})
        for _ in range(_WIDENED):
            if not any(
                math.isfinite(score) and at_edge(config, self.tried[arm], names)
                for arm, (score, config) in self.best.items()
            ):
                return
            wider = {arm: further(config, self.tried[arm], names) for arm, (_, config) in self.best.items()}
            # Every arm has one more trial, or none has.
            room = None not in wider.values() and self.study.leaves_room(wider, self.pairs_to_come)
            if not room or not self.trial(wider):
                return

    def trial(self, candidates):
        """One candidate of every arm; whether there was time for it."""
        room = self.study.leaves_room(candidates, self.pairs_to_come)
        for arm, config in candidates.items():
            result = (self.study.run if room else self.study.skip)(arm, SEED, "tune", config)
            self.tried[arm] += [config] if room else []
            if result and self.study.score(result) < self.best[arm][0]:
                self.best[arm] = (self.study.score(result), config)
        return room
