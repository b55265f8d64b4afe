"""A sweep as it goes on: its trials as they begin and end, and the runs that confirm the best.

Events: `trials` (all that are shown, with states and values), `confirm`, `end`. Its folders are looked at again only when
something in them has changed.
"""

from dataclasses import asdict
from typing import Any

from results.dashboard.controls import Controls
from results.dashboard.files import is_there
from results.dashboard.places import Place, mark, parts
from results.dashboard.sweep_view import SweepView, sweep_view
from results.readable import line
from results.store import STUDY, SWEPT

_AT_WORK = 64
"""Folders at the end of the list in which something may go on: as many run at a time at most."""

Event = tuple[str, Any]


class SweepWatch:
    """One sweep's folder. `look` and `whole` are called by one thread at a time."""

    def __init__(self, place: Place, lab: Controls) -> None:
        self._place, self._lab = place, lab
        self._marks: tuple[object, ...] = ()
        self._known: dict[str, Any] = {}
        self._ended = False

    def look(self) -> list[Event]:
        """What is new."""
        running = self._place.run in self._lab.running()  # first: what is read afterwards is at least as new
        events: list[Event] = []
        marks = (running, *self._changing())
        if marks != self._marks:
            self._marks = marks
            told = _told(sweep_view(self._place, running))
            events = [(name, data) for name, data in told.items() if data != self._known.get(name)]
            self._known = told
        if not running and not self._ended:
            events.append(("end", self._end()))
        self._ended = not running
        return events

    def whole(self) -> list[Event]:
        """All that there is, for somebody who knows nothing."""
        return [*self._known.items(), *([("end", self._end())] if self._ended else [])]

    def close(self) -> None:
        """Nothing is held open."""

    def _end(self) -> dict[str, Any]:
        said = line(self._lab.last_words(self._place.run), 600)
        return {"ended": is_there(self._place.path, SWEPT), "said": said}

    def _changing(self) -> list[tuple[int, int]]:
        folder = self._place.path
        newest = [one.path for kind in ("trials", "confirm") for one in parts(self._place, kind)[-_AT_WORK:]]
        return [mark(path) for path in (folder / STUDY, folder / SWEPT, *newest)]


def _told(view: SweepView) -> dict[str, Any]:
    ended = sum(one.state not in ("running", "cut off") for one in view.trials)
    return {
        "trials": {"metric": view.metric, "rows": [asdict(one) for one in view.trials], "ended": ended},
        "confirm": [asdict(one) for one in view.confirmations],
    }
