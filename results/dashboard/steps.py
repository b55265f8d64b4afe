"""A sprint's journal as data: which phase it is in, and since when. Read as it grows; any line may be of any shape."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from results.readable import line, moment, number

PHASES = ("discussion", "implementation", "validation")
_MAX_SHOWN = 200


@dataclass(frozen=True)
class PhaseState:
    """One phase, now."""

    name: str
    state: str
    """"waiting", "running", "ended" or "broken off"."""
    seconds: float | None
    """It has taken so long."""
    left: float | None
    """It has at most so many seconds more; None unless it runs."""


@dataclass(frozen=True)
class Step:
    """A step that ended."""

    name: str
    at: str
    seconds: float | None
    error: str


class Steps:
    """The steps on record so far."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.asked: tuple[tuple[str, str], ...] = ()
        """What the sprint was asked to be: policy, seed, limits and so on, by name."""
        self._budgets: Mapping[str, float] = {}
        """Phase → seconds that it has at most; of sprints older than this record, nothing is said."""
        self._began: dict[str, float] = {}
        self._ended: dict[str, float] = {}

    def take(self, raw: bytes) -> None:
        """Adds whole lines."""
        for one in raw.splitlines():
            try:
                found = json.loads(one)
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict):
                self._add(found)

    def _add(self, found: dict[str, Any]) -> None:
        name, error = line(found.get("step"), 80), found.get("error")
        if name == "sprint":
            self.asked = tuple(_asked(found.get("result")))
        if name == "begin":
            self._budgets = _budgets(found.get("result"))
        said = line(error.get("text"), 300) if isinstance(error, dict) else ""
        at = moment(found.get("time"))
        clock = f"{at:%H:%M:%S}" if at else ""
        self.steps = [*self.steps[-_MAX_SHOWN + 1 :], Step(name, clock, number(found.get("seconds")), said)]
        phase, _, what = name.partition(".")
        if at is not None and phase in PHASES and what in ("begin", "end"):
            (self._began if what == "begin" else self._ended)[phase] = at.timestamp()

    def phases(self, since: float | None) -> list[PhaseState]:
        """Every phase. since: when the process that is at the sprint started; None when there is none.

        A phase that was broken off has its whole budget again when the sprint is resumed.
        """
        return [self._phase(name, self._budgets.get(name), since) for name in PHASES]

    def _phase(self, name: str, budget: float | None, since: float | None) -> PhaseState:
        began, ended = self._began.get(name), self._ended.get(name)
        if began is None:
            return PhaseState(name, "waiting", None, None)
        if ended is not None:
            return PhaseState(name, "ended", max(0.0, ended - began), None)
        if since is None:
            return PhaseState(name, "broken off", None, None)
        taken = max(0.0, time.time() - max(began, since))
        return PhaseState(name, "running", taken, max(0.0, budget - taken) if budget is not None else None)

    def as_json(self, since: float | None) -> dict[str, Any]:
        """For a page."""
        return {
            "phases": [asdict(phase) for phase in self.phases(since)],
            "steps": [asdict(step) for step in self.steps[-40:]],
        }


def _budgets(begun: Any) -> dict[str, float]:
    """What a sprint's beginning says of its phases' time."""
    found = begun.get("budgets") if isinstance(begun, dict) else None
    told = {name: number(found.get(name)) for name in PHASES} if isinstance(found, dict) else {}
    return {name: seconds for name, seconds in told.items() if seconds is not None}


def _asked(spec: Any) -> Iterator[tuple[str, str]]:
    """Options of a sprint's first step, goal and account left out; those of `options` and `limits` beside the others."""
    for name, value in list(spec.items())[:_MAX_SHOWN] if isinstance(spec, dict) else ():
        if isinstance(value, dict):
            yield from _asked(value)
        elif name not in ("goal", "account") and value is not None:
            yield line(str(name).replace("_", " "), 40), line(value, 200)
