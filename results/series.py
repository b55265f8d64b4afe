"""What a run measured over its steps: metrics.jsonl, and extracted.jsonl where the experiment did not use `lab`.

Numbers are as they were recorded: NaN and infinities stay, a step that goes back goes back, a step that comes twice is
there twice. The files may be of any age and origin: a line that is no record is left out and counted, and so is a torn
last line, which a run that was killed or is still going leaves. Memory is bounded whatever they hold.
"""

import itertools
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from executor.experiment import LEAST_WHOLE, MAX_NAME, MAX_VALUES, MOST_WHOLE, RECORD, Landmark, MetricRecord
from results.store import EXTRACTED, METRICS

LAB = "lab.log"
"""The origin of what the experiment recorded itself."""
_CHUNK = 1 << 20
_MAX_LINE = 1 << 20
_MAX_POINTS = 10_000_000
_MAX_SERIES = 20_000
MAX_ORIGIN = 256
"""Characters of where a metric was read from."""
_MAX_RECORDS = 100_000  # plans and runs
_FEW = 8
"""Lines for which making arrays takes longer than taking them one by one."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Series:
    """One metric of one training. The arrays have the same length and are in the order recorded."""

    name: str
    arm: str | None
    seed: int | None
    phase: str | None
    origin: str
    """`lab.log`, `stdout`, `stderr` or `artifacts/<file>`."""
    steps: Floats
    """The point's number, from 0, where none was recorded."""
    values: Floats
    seconds: Floats
    """Since the start; NaN where unknown."""


@dataclass(frozen=True, eq=False)
class Reading:
    """Everything that a run's folder holds of its metrics."""

    series: list[Series]
    """In the order of their first points."""
    records: list[Landmark]
    skipped: int
    """Lines that are no record."""
    left_out: int
    """Points beyond what is kept in memory."""


def read_series(folder: Path) -> list[Series]:
    """The metrics of a run's folder; [] when there are none. Raises OSError."""
    return read_folder(folder).series


def read_folder(folder: Path) -> Reading:
    """The metrics, plans and runs of a run's folder. Raises OSError."""
    found = _Collector()
    for name, origin in ((METRICS, LAB), (EXTRACTED, None)):
        for lines in _chunks(folder / name):
            found.add_lines(lines, origin)
    return found.reading()


def series_of(records: Iterable[MetricRecord]) -> list[Series]:
    """The series of records that are in memory."""
    found = _Collector()
    for record in records:
        found.add_record(_tag(record, LAB), record.step, record.t, record.values.items())
    return found.reading().series


def _chunks(path: Path) -> Iterator[list[bytes]]:
    """The file's whole lines, about a megabyte at a time; one that is too long comes as b"-", which is no record."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        rest = b""
        while chunk := file.read(_CHUNK):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > _MAX_LINE:
                rest = b"-"
            yield lines


_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)]


class _Line(msgspec.Struct, gc=False):
    """A line of either file, of any type: what is no metric is told apart by `type` and read again by its model."""

    type: str
    t: float | Literal["NaN"] | None = None
    step: float | None = None
    arm: _Name | None = None
    seed: Annotated[int, msgspec.Meta(ge=LEAST_WHOLE, le=MOST_WHOLE)] | None = None
    phase: _Name | None = None
    origin: Annotated[str, msgspec.Meta(max_length=MAX_ORIGIN)] | None = None
    values: Annotated[
        dict[_Name, float | Literal["NaN", "Infinity", "-Infinity"]], msgspec.Meta(max_length=MAX_VALUES)
    ] = {}


_decode = msgspec.json.Decoder(_Line).decode
_Tags = tuple[str, str | None, int | None, str | None, str | None]
_tags: Callable[[_Line], _Tags] = attrgetter("type", "arm", "seed", "phase", "origin")
_Tag = tuple[str | None, int | None, str | None, str]


def _tag(record: MetricRecord | _Line, origin: str) -> _Tag:
    return record.arm, record.seed, record.phase, origin


@dataclass
class _Columns:
    steps: "array[float]" = field(default_factory=lambda: array("d"))
    values: "array[float]" = field(default_factory=lambda: array("d"))
    seconds: "array[float]" = field(default_factory=lambda: array("d"))


class _Collector:
    """Gathers points by series, up to the bounds."""

    def __init__(self) -> None:
        self._by_tag: dict[_Tag, dict[str, _Columns]] = {}
        self._series = 0
        self._points = 0
        self._records: list[Landmark] = []
        self._skipped = 0
        self._left_out = 0

    def reading(self) -> Reading:
        series = [
            Series(name, *tag, np.array(columns.steps), np.array(columns.values), np.array(columns.seconds))
            for tag, by_name in self._by_tag.items()
            for name, columns in by_name.items()
        ]
        return Reading(series, self._records, self._skipped, self._left_out)

    def add_lines(self, lines: Sequence[bytes], origin: str | None) -> None:
        """Lines of one file; `origin` is given where all of the file has the same."""
        try:
            decoded = list(map(_decode, lines))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            lines, decoded = self._sifted(lines)
        # Lines of one training mostly name the same metrics: these are taken together, which is several times as fast,
        # however the trainings take turns. By type first: what is no metric needs its raw line.
        by_tag: defaultdict[_Tags, list[_Line]] = defaultdict(list)
        for place, (tagged, one) in enumerate(zip(map(_tags, decoded), decoded, strict=True)):
            if tagged[0] == "metric":
                by_tag[tagged].append(one)
            else:
                self._add_other(lines[place])
        if self._points + MAX_VALUES * len(decoded) > _MAX_POINTS:  # near the bound, in the order of the file
            for one in decoded:
                if one.type == "metric":
                    tag = _tag(one, origin or one.origin or "unknown")
                    self.add_record(tag, one.step, one.t, one.values.items())
            return
        for (_, arm, seed, phase, said), together in by_tag.items():
            tag = arm, seed, phase, origin or said or "unknown"
            if len(together) < _FEW:
                for one in together:
                    self.add_record(tag, one.step, one.t, one.values.items())
            else:
                self._add_together(tag, together)

    def _sifted(self, lines: Sequence[bytes]) -> tuple[list[bytes], list[_Line]]:
        kept, decoded = [], []
        for line in lines:
            try:
                decoded.append(_decode(line))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                self._skipped += bool(line)
            else:
                kept.append(line)
        return kept, decoded

    def _add_other(self, line: bytes) -> None:
        try:
            record = RECORD.validate_json(line)
        except ValidationError:
            self._skipped += 1
            return
        if not isinstance(record, MetricRecord) and len(self._records) < _MAX_RECORDS:
            self._records.append(record)

    def _add_together(self, tag: _Tag, lines: Sequence[_Line]) -> None:
        values = [line.values for line in lines]
        try:
            by_name = {name: [one[name] for one in values] for name in values[0]}
        except KeyError:
            by_name = {}
        if sum(map(len, values)) != len(by_name) * len(values):  # not all name the same
            for line in lines:
                self.add_record(tag, line.step, line.t, line.values.items())
            return
        steps = np.array([line.step for line in lines], dtype=np.float64)  # None becomes NaN
        seconds = np.array([line.t for line in lines], dtype=np.float64).tobytes()
        for name, column in by_name.items():
            columns = self._columns(tag, name, len(lines))
            if columns is not None:
                numbers = np.arange(len(columns.steps), len(columns.steps) + len(lines), dtype=np.float64)
                columns.steps.frombytes(np.where(np.isnan(steps), numbers, steps).tobytes())
                columns.values.frombytes(np.array(column, dtype=np.float64).tobytes())
                columns.seconds.frombytes(seconds)

    def add_record(
        self, tag: _Tag, step: float | None, t: float | str | None, values: Iterable[tuple[str, float | str]]
    ) -> None:
        """One record's points."""
        for name, value in values:
            columns = self._columns(tag, name, 1)
            if columns is not None:
                columns.steps.append(len(columns.steps) if step is None else step)
                columns.values.append(float(value))
                columns.seconds.append(np.nan if t is None else float(t))

    def _columns(self, tag: _Tag, name: str, points: int) -> _Columns | None:
        """Where to put that many points; None when there is no room, which is counted."""
        by_name = self._by_tag.get(tag, {})
        columns = by_name.get(name)
        if self._points + points > _MAX_POINTS or (columns is None and self._series >= _MAX_SERIES):
            self._left_out += points
            return None
        self._points += points
        if columns is None:
            self._series += 1
            columns = self._by_tag.setdefault(tag, by_name)[name] = _Columns()
        return columns


def thin(series: Series, points: int = 2000) -> Series:
    """At most `points` (and at least 16) of the series' own points, chosen to keep its shape.

    Each stretch of finite values, between gaps and steps that go back, is thinned on its own by Largest Triangle Three
    Buckets (Steinarsson 2013). The first and last point, the largest and the smallest value survive, and of every run
    of values that are not finite the first and last; where these alone would be too many, some of them.
    """
    points = max(points, 16)
    if len(series.values) <= points:
        return series
    kept = _chosen(series.steps, series.values, points)
    return replace(series, steps=series.steps[kept], values=series.values[kept], seconds=series.seconds[kept])


def _chosen(steps: Floats, values: Floats, points: int) -> NDArray[np.intp]:
    finite = np.isfinite(values)
    always = [0, len(values) - 1]
    if finite.any():
        always += [int(np.where(finite, values, -np.inf).argmax()), int(np.where(finite, values, np.inf).argmin())]
    breaks = np.flatnonzero((finite[1:] != finite[:-1]) | (steps[1:] < steps[:-1])) + 1
    room = points - len(always)
    if len(breaks) + 1 > room // 4:
        gaps, numbers = np.flatnonzero(~finite), np.flatnonzero(finite)
        spread = gaps[np.unique(np.linspace(0, len(gaps) - 1, min(len(gaps), room // 2)).astype(np.intp))]
        chosen = [spread, numbers[_lttb(values[numbers], room - len(spread))]]
    else:
        edges = [0, *breaks.tolist(), len(values)]
        share = (room - 2 * (len(edges) - 1)) / max(1, int(np.count_nonzero(finite)))
        chosen = []
        for start, end in itertools.pairwise(edges):
            if finite[start]:
                chosen.append(start + _lttb(values[start:end], 2 + int(share * (end - start))))
            else:
                chosen.append(np.array([start, end - 1]))
    return np.unique(np.concatenate([np.array(always), *chosen]))


def _lttb(values: Floats, points: int) -> NDArray[np.intp]:
    """Indices of at most `points` of finite values, by their place: steps may repeat, and go back."""
    if len(values) <= points:
        return np.arange(len(values))
    if points < 3:
        return np.array([0, len(values) - 1][:points])
    from tsdownsample import LTTBDownsampler

    largest = float(np.abs(values).max())
    scaled = values / largest if largest > 1e100 else values  # the areas of triangles stay finite
    chosen = LTTBDownsampler().downsample(  # type: ignore[no-untyped-call]
        np.ascontiguousarray(scaled), n_out=points
    )
    return np.asarray(chosen, dtype=np.intp)


def oddities(series: Series) -> list[str]:
    """What a reader should know before trusting a line through the points, in words; [] when there is nothing.

    Ask the whole series: thinning leaves some of it out.
    """
    values, steps = series.values, series.steps
    found = [
        f"{count} {word}"
        for count, word in (
            (np.count_nonzero(np.isnan(values)), "NaN"),
            (np.count_nonzero(np.isposinf(values)), "inf"),
            (np.count_nonzero(np.isneginf(values)), "-inf"),
        )
        if count
    ]
    if back := int(np.count_nonzero(steps[1:] < steps[:-1])):
        found.append(f"the step goes back {'once' if back == 1 else f'{back} times'}")
    if twice := int(np.count_nonzero(steps[1:] == steps[:-1])):
        found.append(f"{twice} duplicate step{'s' if twice > 1 else ''}")
    return found
