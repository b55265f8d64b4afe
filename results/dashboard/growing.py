"""Curves as they grow: metrics.jsonl read on, each curve thinned so that it stays small however long it gets."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from results.dashboard.tails import Lines
from results.readable import line, number

MOST_CURVES = 240
MOST_POINTS = 2000
_BUCKET = 4
_AT_ONCE = 4 << 20
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

Key = tuple[str, str, str, str]
Point = tuple[float, float, float]
"""Step, value, seconds."""


@dataclass
class Curve:
    """One metric of one training."""

    key: Key
    points: list[Point] = field(default_factory=list)
    seen: int = 0
    """Points in all, before thinning."""

    def add(self, point: Point) -> None:
        """The next point."""
        self.points.append(point)
        self.seen += 1
        if len(self.points) >= 2 * MOST_POINTS:
            self.points = thinned(self.points)

    def as_json(self, points: Iterable[Point] | None = None) -> dict[str, Any]:
        """For a page. Values that JSON has no number for are words."""
        return curve_json(self.key, self.points if points is None else points, self.seen)


class Growing:
    """The curves of one metrics.jsonl."""

    def __init__(self, path: Path) -> None:
        self._lines = Lines(path)
        self.curves: dict[Key, Curve] = {}
        self.left_out: set[Key] = set()
        """Curves beyond the number that is drawn."""

    def close(self) -> None:
        """Lets go of the file."""
        self._lines.close()

    def look(self) -> tuple[bool, dict[Key, list[Point]]]:
        """Whether all that was known is void, and the points that came."""
        grown = self._lines.look(_AT_ONCE)
        if grown.anew:
            self.curves, self.left_out = {}, set()
        fresh: dict[Key, list[Point]] = {}
        for raw in grown.data.splitlines():
            if b'"metric"' in raw:
                self._take(raw, fresh)
        return grown.anew, fresh

    def _take(self, raw: bytes, fresh: dict[Key, list[Point]]) -> None:
        try:
            record = json.loads(raw)
        except (ValueError, RecursionError):
            return
        if not isinstance(record, dict) or not isinstance(record.get("values"), dict):
            return
        at, step = number(record.get("t")), number(record.get("step"))
        training = tuple(line(record.get(name), 128) for name in ("arm", "seed", "phase"))
        for name, value in record["values"].items():
            key: Key = (line(name, 128), *training)  # type: ignore[assignment]
            curve = self.curves.get(key)
            if curve is None:
                if len(self.curves) >= MOST_CURVES:
                    self.left_out.add(key)
                    continue
                curve = self.curves[key] = Curve(key)
            taken = _WORDS.get(value) if isinstance(value, str) else number(value)
            if taken is None:
                continue
            point = (float(curve.seen) if step is None else step, taken, math.nan if at is None else at)
            curve.add(point)
            fresh.setdefault(key, []).append(point)


def thinned(points: list[Point]) -> list[Point]:
    """About half of the points: of every four the lowest and the highest, and what is not finite."""
    kept = points[:1]
    for at in range(1, len(points) - 1, _BUCKET):
        bucket = points[at : min(at + _BUCKET, len(points) - 1)]
        finite = [index for index, point in enumerate(bucket) if math.isfinite(point[1])]
        wanted = {next((index for index, point in enumerate(bucket) if not math.isfinite(point[1])), -1)} - {-1}
        if finite:
            wanted |= {min(finite, key=lambda i: bucket[i][1]), max(finite, key=lambda i: bucket[i][1])}
        kept += [bucket[index] for index in sorted(wanted)]
    return kept + points[-1:]


def curve_json(key: Key, points: Iterable[Point], seen: int, origin: str = "") -> dict[str, Any]:
    """A curve as the pages' script takes it."""
    name, arm, seed, phase = key
    steps, values, seconds = [], [], []
    for step, value, at in points:
        steps.append(_plain(step))
        values.append(_plain(value))
        seconds.append(_plain(at))
    described = {"name": name, "arm": arm, "seed": seed, "phase": phase, "origin": origin}
    return {**described, "x": steps, "y": values, "t": seconds, "seen": seen}


def _plain(value: float) -> float | str | None:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
