"""What earlier containers of the same study left: trainings that are not done twice, sizes that must stay as they were.

A study that does not fit into one container's time goes on in the next: the same program runs again, and finds here what
the host recorded of the containers before.
"""

import json
from pathlib import Path

from lab.channel import emit, number

_FILE = Path(__file__).resolve().parent.parent / "study.json"
_left = None


def keep(name, value):
    """`value`, or what the first container of this study kept under `name`.

    For sizes that depend on measured time, such as steps for each training: without it, a study that goes on in a further
    container would train differently there. A whole number or a float.
    """
    kept = left()["kept"]
    if name not in kept:
        kept[name] = value
        emit({"type": "kept", "name": name, "value": number(value)})
    return kept[name]


def earlier(phase, arm, seed, config):
    """The record of a training that an earlier container has finished, or None."""
    for run in left()["runs"]:
        if (run["phase"], run["arm"], run["seed"], run["config"]) == (phase, arm, seed, config):
            return run
    return None


def left():
    """What was left, as {"kept": {name: value}, "chosen": {arm: config}, "runs": [record]}; empty in a study's first container."""
    global _left
    if _left is None:
        _left = {"kept": {}, "chosen": {}, "runs": []}
        if _FILE.exists():
            _left.update(json.loads(_FILE.read_text()))
    return _left
