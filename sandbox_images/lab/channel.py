"""The way out for records: one JSON object a line, on the descriptor named by LAB_CHANNEL_FD.

JSON has no NaN and no infinities, so these are written as the strings "NaN", "Infinity" and "-Infinity". Outside the
sandbox there is no such descriptor, and the lines are printed.
"""

import json
import math
import os
import threading

MAX_LINE = 60000

_lock = threading.Lock()
_context = {}  # arm, seed and phase while lab.compare trains; added to every metric record


def log(step=None, **values):
    """Records metrics: `lab.log(step=10, loss=0.5, accuracy=0.9)`. Values are numbers, or one-element tensors."""
    record = {"type": "metric", "values": {name: number(value) for name, value in values.items()}, **_context}
    if step is not None:
        record["step"] = number(step)
    emit(record)


def emit(record):
    """Sends one record, whole, whichever thread or forked process calls."""
    line = json.dumps(record, allow_nan=False)
    if len(line) > MAX_LINE:
        raise ValueError("a record of %d characters is more than the %d that a line may have" % (len(line), MAX_LINE))
    descriptor = os.environ.get("LAB_CHANNEL_FD")
    with _lock:
        if descriptor is None:
            print("lab: " + line, flush=True)
            return
        data = line.encode() + b"\n"
        while data:
            data = data[os.write(int(descriptor), data) :]


def number(value):
    """A JSON number, or the name of one that JSON cannot write. Raises TypeError for what is no number."""
    if hasattr(value, "item"):  # a one-element tensor or a numpy scalar
        value = value.item()
    if isinstance(value, (bool, int)):
        value = int(value)
        return value if abs(value) < 1 << 53 else float(value)
    if not isinstance(value, float):
        raise TypeError("not a number: %r" % (value,))
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


class tagged:
    """Within this context every metric record carries these fields."""

    def __init__(self, **fields):
        self.fields = fields

    def __enter__(self):
        _context.update(self.fields)

    def __exit__(self, *exception):
        for name in self.fields:
            _context.pop(name, None)
