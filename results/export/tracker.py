"""What every destination has in common: a run is told record by record, and becomes one entry for each training.

Live logging and export both go through `Tracked`, so that they cannot differ. Nothing an experiment sends is trusted:
the number of entries is bounded, and names are rewritten by each destination (names.py).
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from executor.experiment import AnyRecord, MetricRecord, PlanRecord, RunRecord

State = Literal["finished", "failed", "killed"]
Scalar = str | int | float | bool | None
MAX_ENTRIES = 1000
_MAX_OPEN = 64


class ExportError(OSError):
    """A destination cannot be used; the text is one line for people."""


class ExtractedRecord(MetricRecord):
    """What was read out of an experiment's output or files."""

    origin: str
    """`stdout`, `stderr` or `artifacts/<file>`."""
    timed: bool
    """Whether the source had times; if not, `t` is 0."""


@dataclass(frozen=True)
class RunInfo:
    """What a run is, before anything was recorded."""

    id: str
    """The sprint's, or the single execution's."""
    began: float
    """Seconds since the epoch, from which the records' `t` counts."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Goal, sha256 of the code, and so on, as they are known."""


@dataclass(frozen=True)
class Summary:
    """How a run ended."""

    state: State
    facts: Mapping[str, str] = field(default_factory=dict)
    """Outcome, verdict, policy, image and so on."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """What a destination that takes files shall take, by the name that it has in the run's folder."""


@dataclass(frozen=True)
class Training:
    """One training of one arm under one seed. `trial` counts those of the same name, from 1."""

    arm: str | None
    seed: int | None
    phase: str | None
    trial: int = 1

    @property
    def label(self) -> str:
        """A name for people. Not safe as a path."""
        seed = None if self.seed is None else f"seed {self.seed}"
        trial = None if self.trial == 1 else f"trial {self.trial}"
        return ", ".join(part for part in (self.arm, seed, self.phase, trial) if part is not None)


@dataclass(frozen=True)
class Point:
    """One `lab.log` call. `index` counts those of its training, from 0, for records without a step."""

    index: int
    step: float | None
    t: float
    values: Mapping[str, float]
    origin: str = ""
    """From where these were read; empty where the experiment recorded them."""
    timed: bool = True
    """Whether `t` is known."""


class Entry(Protocol):
    """A destination's own run: of a training, or of the sprint as a whole."""

    def point(self, point: Point) -> None:
        """Adds metrics; NaN and infinities among them."""

    def finish(
        self,
        state: State,
        t: float | None,
        values: Mapping[str, float],
        config: Mapping[str, Scalar],
        facts: Mapping[str, str],
        files: Mapping[str, Path],
    ) -> None:
        """Ends it. `values` is what the training returned, `t` when, in seconds since the run began."""


class Destination(Protocol):
    """A tool's folder, file or server."""

    where: str
    """For people: where to look."""

    def taken(self, run: str) -> bool:
        """Is a run of this id there already?"""

    def open(self, run: RunInfo, training: Training | None) -> Entry:
        """A new entry; `training` is None for the run as a whole, which is opened first and finished last."""

    def close(self) -> None:
        """After the last entry has been finished."""

    def abandon(self) -> None:
        """Instead of the rest: what was told is not whole, so it is removed, or marked as failed where it cannot be."""


@dataclass
class _Open:
    training: Training
    entry: Entry
    points: int = 0


_STATES: Mapping[str, State] = {"ok": "finished", "failed": "failed", "diverged": "failed", "skipped": "killed"}
_Key = tuple[str | None, int | None, str | None]


class Tracked:
    """Makes one entry of each training, and one of the run. Takes them in order, from one thread."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._run: RunInfo | None = None
        self._main: Entry | None = None
        self._main_points = 0
        self._open: dict[_Key, _Open] = {}
        self._trials: dict[_Key, int] = {}
        self._plan: dict[str, str] = {}
        self._last = 0.0
        self._origins: dict[str, str] = {}
        self.entries = 0
        self.left_out = 0
        """Records of trainings beyond MAX_ENTRIES."""

    def begin(self, run: RunInfo) -> None:
        """Opens the run's own entry."""
        self._run = run
        self._main = self._destination.open(run, None)
        self.entries = 1

    def record(self, record: AnyRecord) -> None:
        """Passes it to the entry of its training."""
        self._last = max(self._last, record.t)
        if isinstance(record, MetricRecord):
            self._metric(record)
        elif isinstance(record, RunRecord):
            self._ran(record)
        elif isinstance(record, PlanRecord):  # others are of no concern to other tools
            direction = "lower" if record.lower_is_better else "higher"
            self._plan = {
                "factor": record.factor,
                "arms": ", ".join(record.arms),
                "primary": f"{record.primary} ({direction} is better)",
            }

    def end(self, summary: Summary) -> None:
        """Finishes every entry that is open, the run's last."""
        if self._main is None:
            return
        rest: State = "finished" if summary.state == "finished" else "killed"
        for key in list(self._open):
            self._finish(key, rest)
        facts = {**self._facts(), **self._plan, **summary.facts}
        if self._origins:
            facts["extracted_from"] = ", ".join(dict.fromkeys(self._origins.values()))
        if self.left_out:
            facts["left_out"] = f"{self.left_out} records: more than {MAX_ENTRIES} trainings"
        self._main.finish(summary.state, self._last, {}, {}, facts, summary.files)
        self._main = None
        self._destination.close()

    def abandon(self) -> None:
        """After a failure, when nobody can tell the rest. What else goes wrong is of no interest any more."""
        self._main = None
        self._open.clear()
        with contextlib.suppress(Exception):
            self._destination.abandon()

    def _facts(self) -> Mapping[str, str]:
        return self._run.facts if self._run is not None else {}

    def _metric(self, record: MetricRecord) -> None:
        key = record.arm, record.seed, record.phase
        if key == (None, None, None):
            if self._main is not None:
                self._main.point(self._point(self._main_points, record))
                self._main_points += 1
        elif (found := self._of(key)) is not None:
            found.entry.point(self._point(found.points, record))
            found.points += 1

    def _point(self, index: int, record: MetricRecord) -> Point:
        """A name that was read from several places stays that of the first; elsewhere it is another metric."""
        if not isinstance(record, ExtractedRecord):
            return Point(index, record.step, record.t, record.values)
        values = {}
        for name, value in record.values.items():
            first = self._origins.setdefault(name, record.origin)
            values[name if first == record.origin else f"{record.origin}/{name}"] = value
        return Point(index, record.step, record.t, values, record.origin, record.timed)

    def _ran(self, record: RunRecord) -> None:
        key = record.arm, record.seed, record.phase
        if self._of(key) is not None:
            state = _STATES[record.status]
            facts = {"status": record.status, **({"error": record.error} if record.error else {})}
            self._finish(key, state, record, facts)

    def _of(self, key: _Key) -> _Open | None:
        """The open entry of this training, or a new one; None when there are too many."""
        if (found := self._open.get(key)) is not None:
            return found
        if self.entries > MAX_ENTRIES or self._run is None:
            self.left_out += 1
            return None
        if len(self._open) >= _MAX_OPEN:
            self._finish(next(iter(self._open)), "killed")
        self._trials[key] = self._trials.get(key, 0) + 1
        training = Training(*key, self._trials[key])
        found = self._open[key] = _Open(training, self._destination.open(self._run, training))
        self.entries += 1
        return found

    def _finish(
        self, key: _Key, state: State, ran: RunRecord | None = None, facts: Mapping[str, str] | None = None
    ) -> None:
        entry = self._open.pop(key).entry
        values, config = (ran.values, ran.config) if ran is not None else ({}, {})
        entry.finish(state, ran.t if ran is not None else self._last, values, config, facts or {}, {})
