"""Which values of the nuisance parameters are tried: the same number for every arm, and beyond the edge where the best is there."""

import itertools

_MOST = 16  # parameters that are tuned (executor/experiment.py)


def values_of(tune, arms):
    """{parameter: {arm: values}}. Raises ValueError for a grid that favours an arm, or that cannot be recorded."""
    if len(tune) > _MOST:
        raise ValueError("%d parameters are more than the %d that can be tuned" % (len(tune), _MOST))
    return {str(name): _per_arm(name, given, arms) for name, given in tune.items()}


def _per_arm(name, given, arms):
    if isinstance(given, dict):
        found = {str(arm): [_scalar(value) for value in values] for arm, values in given.items()}
    else:
        found = {arm: [_scalar(value) for value in given] for arm in arms}
    if set(found) != set(arms):
        raise ValueError("tune[%r] must name every arm, or none" % name)
    if len({len(values) for values in found.values()}) != 1 or not all(found.values()):
        raise ValueError("tune[%r] must give every arm equally many values, so that none is favoured" % name)
    for values in found.values():
        if len({repr(plain(value)) for value in values}) < len(values):
            raise ValueError("tune[%r] has values that are the same, or look the same on record" % name)
    return found


def product(values, arms):
    """For each arm the list of configurations to try: every combination."""
    return {
        arm: [dict(zip(values, one)) for one in itertools.product(*(values[name][arm] for name in values))]
        for arm in arms
    }


def middle(values, arm):
    """The middle of every parameter's values."""
    return {name: per_arm[arm][len(per_arm[arm]) // 2] for name, per_arm in values.items()}


def tuned_values(values):
    """Parameter -> values, as the plan records them; where arms differ, as `parameter[arm]`."""
    plan = {}
    for name, per_arm in values.items():
        told = {arm: [plain(value) for value in own] for arm, own in per_arm.items()}
        first = next(iter(told.values()))
        if all(own == first for own in told.values()):
            plan[name] = first
        else:
            plan.update({"%s[%s]" % (name, arm): own for arm, own in told.items()})
    return plan


def recorded(config):
    """A configuration as a record can hold it."""
    return {name: plain(value) for name, value in config.items()}


def actual(config, values, arm):
    """The configuration that was recorded as `config`: betas are text on record, and a tuple for the training."""
    known = {(name, plain(value)): value for name, per_arm in values.items() for value in per_arm[arm]}
    return {name: known.get((name, value), value) for name, value in config.items()}


def plain(value):
    """A number, a word, a switch or None as it is, and anything else as text."""
    exact = value is None or isinstance(value, bool) or (isinstance(value, (int, float)) and abs(value) < 1e15)
    return value if exact else str(value)[:100].encode("utf-8", "replace").decode()


def _scalar(value):
    """numpy's and torch's numbers as Python's."""
    return value.item() if getattr(value, "shape", None) == () else value


def at_edge(best, tried, names=None):
    """The parameters (of `names`, or all) whose best value is the smallest or largest of the numbers that were tried."""
    return [name for name in (best if names is None else names) if best[name] in _ends(name, tried)]


def further(best, tried, names=None):
    """One more configuration for an arm: a step beyond the edge where the best is at one, else between the best and its
    neighbour, so that arms have equally many trials. None where no number was tuned, or there is nothing beyond."""
    edges = at_edge(best, tried, names)
    found = edges or [
        name
        for name in (best if names is None else names)
        if len(_numbers(name, tried)) >= 2 and _is_number(best[name])
    ]
    if not found:
        return None
    name = found[0]
    values = _numbers(name, tried)
    place = values.index(best[name])
    if edges:
        new = _beyond(best[name], values[1] if place == 0 else values[-2])
    else:
        new = _between(best[name], values[place + 1])
    if type(best[name]) is int:
        new = round(new)
        if best[name] > 0 >= new:
            return None  # of layers or samples there is nothing below one
    config = dict(best, **{name: new})
    return None if config in tried else config


def _is_number(value):
    return type(value) in (int, float)


def _numbers(name, tried):
    return sorted({config[name] for config in tried if _is_number(config[name])})


def _ends(name, tried):
    """Zero, below which nothing was tried, is no edge but where the parameter itself ends: no decay, no warm-up."""
    values = _numbers(name, tried)
    if len(values) < 2:
        return ()
    return (values[-1],) if values[0] == 0 else (values[0], values[-1])


def _beyond(edge, inner):
    """As far from the edge as its neighbour is: by ratio, as such grids are made, or by distance around zero."""
    return edge * edge / inner if edge * inner > 0 else 2 * edge - inner


def _between(low, high):
    return (low * high) ** 0.5 * (1 if low > 0 else -1) if low * high > 0 else (low + high) / 2
