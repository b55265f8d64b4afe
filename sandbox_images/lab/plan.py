"""The plan of a comparison: what is recorded before anything runs. What cannot be recorded is refused here, by ValueError."""

from lab.grids import plain, tuned_values

RULE = (
    "Two-sided at 5 %: an arm differs from the baseline where the exact sign-flip test of the paired differences "
    "(Holm-corrected over arms) and their t interval agree, and every gate holds. Runs that fail or diverge stay in the count."
)
_MOST_ARMS, _MOST_SEEDS, _LONGEST_NAME, _LONGEST_NOTE = 32, 256, 128, 2000  # executor/experiment.py


def named(arms):
    """{name: what `train` is given for the arm}, in the order given."""
    pairs = [(str(arm), given) for arm, given in (arms.items() if isinstance(arms, dict) else ((a, a) for a in arms))]
    found = {_name(name, "an arm"): given for name, given in pairs}
    if not 1 <= len(pairs) <= _MOST_ARMS:
        raise ValueError("%d arms: a comparison has 1 to %d" % (len(pairs), _MOST_ARMS))
    if len(found) < len(pairs):
        raise ValueError("two arms have the same name")
    return found


def seeds_of(seeds):
    """As whole numbers, each once: the same seed again is no further pair."""
    found = [int(seed) for seed in seeds]
    if not 1 <= len(found) <= _MOST_SEEDS:
        raise ValueError("%d seeds: a comparison has 1 to %d" % (len(found), _MOST_SEEDS))
    if len(set(found)) < len(found):
        raise ValueError("the same seed twice")
    if any(abs(seed) >= 1 << 62 for seed in found):
        raise ValueError("a seed has at most 62 bits")
    return found


def plan_of(settings, seeds, values, trials, primary, select, unit, repeats, factor, note, **flags):
    """The record."""
    if unit not in (None, "nats"):
        raise ValueError('unit is "nats", or None')
    if not 0 <= int(repeats) <= _MOST_SEEDS:
        raise ValueError("repeats is 0 to %d" % _MOST_SEEDS)
    for parameter in values:
        _name(parameter, "a tuned parameter")
    return {
        "type": "plan",
        "factor": _name(factor, "factor"),
        "arms": list(settings),
        "seeds": seeds,
        "primary": _name(primary, "primary"),
        "select": _name(select or primary, "select"),
        "rule": RULE,
        "tune": tuned_values(values),
        "trials": trials,
        "note": str(note).encode("utf-8", "replace").decode()[:_LONGEST_NOTE],
        "unit": unit,
        "repeats": int(repeats),
        "settings": {arm: fixed(given) for arm, given in settings.items() if isinstance(given, dict)},
        **flags,
    }


def fixed(settings):
    """What an arm is given beside what is tuned, as a record can hold it."""
    return {plain(str(name)[:100]) or "?": plain(value) for name, value in list(settings.items())[:64]}


def _name(text, what):
    text = str(text)
    if not text or len(text) > _LONGEST_NAME or text != text.encode("utf-8", "replace").decode():
        raise ValueError("%s is named with 1 to %d characters, not %.150r" % (what, _LONGEST_NAME, text))
    return text
