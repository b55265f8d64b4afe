"""The curves of a run, thinned for drawing, as JSON; kept until its files change."""

import json
import threading
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from results.dashboard.growing import MOST_CURVES, curve_json
from results.dashboard.places import mark
from results.readable import line
from results.series import LAB, Series, oddities, read_folder, thin
from results.store import EXTRACTED, METRICS

_KEPT = 32
_MOST_POINTS = 1000
_MOST_NOTES = 12


class Recorded:
    """Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[Path, tuple[object, bytes]] = OrderedDict()

    def curves(self, folder: Path) -> bytes:
        """The curves of one run's folder."""
        marks = [mark(folder / name) for name in (METRICS, EXTRACTED)]
        with self._lock:
            known = self._known.get(folder)
            if known is None or known[0] != marks:
                known = marks, json.dumps(_read(folder), ensure_ascii=True, allow_nan=False).encode()
            self._known[folder] = known
            self._known.move_to_end(folder)
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
            return known[1]


def _read(folder: Path) -> dict[str, Any]:
    reading = read_folder(folder)
    shown = reading.series[:MOST_CURVES]
    notes = [f"{line(_named(one), 100)}: {', '.join(odd)}" for one in shown if (odd := _odd(one))]
    if len(notes) > _MOST_NOTES:
        notes = [*notes[:_MOST_NOTES], f"and {len(notes) - _MOST_NOTES} more curves with something odd about them"]
    origins = Counter(one.origin for one in reading.series if one.origin != LAB)
    if origins:
        notes.insert(0, f"read from {', '.join(line(origin, 100) for origin in list(origins)[:5])}")
    if reading.skipped:
        notes.append(f"{reading.skipped} lines are no records")
    if reading.left_out:
        notes.append(f"{reading.left_out} points were too many to read")
    return {"curves": [_curve(one) for one in shown], "left_out": len(reading.series) - len(shown), "notes": notes}


def _curve(series: Series) -> dict[str, Any]:
    drawn = thin(series, _MOST_POINTS)
    key = (
        line(series.name, 128),
        line(series.arm, 128),
        "" if series.seed is None else str(series.seed),
        line(series.phase, 40),
    )
    points = np.column_stack((drawn.steps, drawn.values, drawn.seconds)).tolist()
    return curve_json(key, points, len(series.values), line(series.origin, 100))


def _odd(series: Series) -> list[str]:
    """What is odd about it; that each of an arm's tuning trials begins at the first step is not."""
    return [said for said in oddities(series) if series.phase != "tune" or not said.startswith("the step goes back")]


def _named(series: Series) -> str:
    parts = [series.name, series.arm, None if series.seed is None else f"seed {series.seed}", series.phase]
    return ", ".join(part for part in parts if part)
