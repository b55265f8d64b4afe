"""Hyperparameters that somebody outside may choose: `labsandbox sweep`, or the defaults where nobody did."""

import json
import os

from lab.channel import emit

KINDS = ("log", "uniform", "int", "logint", "choice")


class Chosen(dict):
    """The values, by name: `p["lr"]` or `p.lr`."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError("%s is not a parameter; there are %s" % (name, ", ".join(self))) from None


def params(**space):
    """Declares parameters, and returns the values with which this experiment runs.

    Each is ("log", low, high) or ("uniform", low, high) for floats, ("int", low, high) or ("logint", low, high) for whole
    numbers, bounds included, or a list of choices. Where nobody chose, a value is the middle (geometric for the logarithmic ones),
    or the first choice.

    Raises ValueError for a space that is none, and for chosen values that are not in it.
    """
    if not 1 <= len(space) <= 32:
        raise ValueError("lab.params takes 1 to 32 parameters, not %d" % len(space))
    dimensions = {name: _dimension(name, value) for name, value in space.items()}
    given = json.loads(os.environ.get("LAB_PARAMS") or "{}")
    values = Chosen()
    for name, dimension in dimensions.items():
        values[name] = given.get(name, _default(dimension))
        if not _inside(values[name], dimension):
            raise ValueError("%s=%r is not in what this experiment declares: %r" % (name, values[name], space[name]))
    strangers = sorted(set(given) - set(dimensions))
    if strangers:
        raise ValueError("the experiment declares no parameter %s" % ", ".join(strangers))
    emit({"type": "params", "space": dimensions, "chosen": dict(values)})
    return values


def _dimension(name, value):
    if isinstance(value, tuple) and len(value) == 2 and value[0] == "choice":
        value = value[1]
    if isinstance(value, list):
        if not value or not all(isinstance(one, (str, int, float, bool)) for one in value):
            raise ValueError("%s: the choices are numbers, words or booleans" % name)
        if len(value) > 64 or any(len(one) > 256 for one in value if isinstance(one, str)):
            raise ValueError("%s: at most 64 choices, of at most 256 characters" % name)
        if len(set(value)) < len(value):
            raise ValueError("%s: a choice is there twice" % name)
        return {"kind": "choice", "choices": value}
    if not (isinstance(value, tuple) and len(value) == 3 and value[0] in KINDS[:4]):
        raise ValueError('%s: write ("log", low, high), ("uniform", …), ("int", …), ("logint", …) or a list' % name)
    kind, low, high = value
    if kind in ("int", "logint"):
        low, high = int(low), int(high)
    if not low < high or (kind.startswith("log") and low <= 0):
        raise ValueError("%s: low must be below high, and above zero on a logarithmic scale" % name)
    return {"kind": kind, "low": low, "high": high}


def _default(dimension):
    kind = dimension["kind"]
    if kind == "choice":
        return dimension["choices"][0]
    low, high = dimension["low"], dimension["high"]
    middle = (low * high) ** 0.5 if kind.startswith("log") else (low + high) / 2
    return round(middle) if kind.endswith("int") else middle


def _inside(value, dimension):
    if dimension["kind"] == "choice":
        return value in dimension["choices"]
    return isinstance(value, (int, float)) and dimension["low"] <= value <= dimension["high"]
