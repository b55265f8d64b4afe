"""Which values of the nuisance parameters are tried: the same number for every arm, and beyond the edge where the best is there."""

import itertools


def grids_of(tune, arms):
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


def tuned_values(grids):
    """Parameter -> values, as the plan records them; where arms differ, as `parameter[arm]`."""
    found = {}
    for arm, grid in grids.items():
        for config in grid:
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


def at_edge(best, tried):
    """The parameters whose best value is the smallest or largest of three or more numbers that were tried."""
    return [name for name in best if best[name] in _ends(name, tried)]


def further(best, tried):
    """One more configuration for an arm: a step beyond the edge where the best is at one, else between the best and its
    neighbour, so that arms have equally many trials. None where no number was tuned."""
    edges = at_edge(best, tried)
    names = edges or [name for name in best if len(_numbers(name, tried)) >= 3]
    if not names:
        return None
    name = names[0]
    values = _numbers(name, tried)
    place = values.index(best[name])
    if edges:
        inner = values[1] if place == 0 else values[-2]
        new = _beyond(best[name], inner)
    else:
        new = _between(best[name], values[place + 1])
    if isinstance(best[name], int):
        new = round(new)
    config = dict(best, **{name: new})
    return None if config in tried else config


def _numbers(name, tried):
    return sorted({config[name] for config in tried if type(config[name]) in (int, float)})


def _ends(name, tried):
    values = _numbers(name, tried)
    return (values[0], values[-1]) if len(values) >= 3 else ()


def _beyond(edge, inner):
    """As far from the edge as its neighbour is: by ratio, as such grids are made, or by distance around zero."""
    return edge * edge / inner if edge * inner > 0 else 2 * edge - inner


def _between(low, high):
    return (low * high) ** 0.5 * (1 if low > 0 else -1) if low * high > 0 else (low + high) / 2
