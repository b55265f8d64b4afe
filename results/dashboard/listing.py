"""The runs of a results folder (sprints, sweeps, single executions), as a list that can be searched.

A run's files are read once, and again only when they have changed: a thousand of them cost a thousand `stat`s.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from results.dashboard.places import about, mark, read_json, read_text
from results.dashboard.sweep_view import goal_of
from results.readable import line, moment
from results.store import CODE, EVENTS, EXECUTION, SUMMARY, SWEEP, SWEPT, Kind, Store, StoreError, run_order
from results.summary import outcome_of, part, verdict_of, word_of

PAGE = 50
_FRESH = 0.5
_MAX_FIRST = 256 << 10
_TAIL = 4096
_OF_AN_ID = 6
"""Characters that a word must have to be looked for in ids: nearly every digit is in nearly every id."""
_WORKING = "running"
UNFINISHED = "not finished"
_NO_TIME = "0000-00-00 00:00:00"

Marks = tuple[int, ...]
KINDS: tuple[Kind, ...] = ("sprint", "sweep", "exec")
_FILES = {
    "sprint": (SUMMARY, EVENTS),
    "sweep": (SWEPT, SWEEP),
    "exec": (EXECUTION, CODE),
}
"""What a row is read from."""


@dataclass(frozen=True)
class Row:
    """One run in the list."""

    id: str
    goal: str
    outcome: str
    """How its execution ended, or "not finished", or ""."""
    verdict: str
    word: str
    """The verdict in a word or two, as the analysis has it."""
    started: str
    """UTC."""
    found: str = field(repr=False, default="")
    """What a search looks through."""

    @property
    def kind(self) -> str:
        """`sprint`, `sweep` or `exec`."""
        return self.id.partition("_")[0]

    def state(self, running: bool) -> str:
        """What is shown as its outcome."""
        return _WORKING if running else self.outcome


@dataclass(frozen=True)
class Asked:
    """Which runs are wanted, in what order."""

    text: str = ""
    kind: str = ""
    outcome: str = ""
    word: str = ""
    sort: str = "date"
    descending: bool = True
    page: int = 1


@dataclass(frozen=True)
class Page:
    """A part of the list."""

    rows: Sequence[tuple[Row, str]]
    """Each with what is shown as its outcome."""
    total: int
    page: int
    pages: int
    outcomes: Sequence[str]
    """Every outcome and every verdict's word that there is, to choose from."""
    words: Sequence[str]
    every: int
    """How many runs there are in all."""
    kinds: Sequence[str] = ()
    """Every kind that there is."""


_KEYS: dict[str, Callable[[tuple[Row, str]], tuple[Any, ...]]] = {
    "date": lambda shown: (run_order(shown[0].id),),
    "goal": lambda shown: (shown[0].goal.casefold(), run_order(shown[0].id)),
    "outcome": lambda shown: (shown[1], run_order(shown[0].id)),
    "verdict": lambda shown: (shown[0].word, run_order(shown[0].id)),
}
SORTS = tuple(_KEYS)


class Listing:
    """The list of one store. Safe for several threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._root = str(store.root)
        self._lock = threading.Lock()
        self._known: dict[str, tuple[Marks, Row]] = {}
        self._looked = float("-inf")

    def rows(self) -> list[Row]:
        """Every run, of each kind oldest first. Raises StoreError."""
        with self._lock:
            if time.monotonic() - self._looked > _FRESH:
                ids = [run for kind in KINDS for run in self._store.runs(kind)]
                self._known = {run: self._row(run) for run in ids}
                self._looked = time.monotonic()
            return [row for _, row in self._known.values()]

    def page(self, asked: Asked, running: Sequence[str]) -> Page:
        """What is asked for. Raises StoreError."""
        every, at_work = self.rows(), set(running)
        shown = [(row, row.state(row.id in at_work)) for row in every]
        words = [one.casefold() for one in asked.text.split()]
        wanted = [
            (row, state)
            for row, state in shown
            if asked.kind in ("", row.kind)
            and asked.outcome in ("", state)
            and asked.word in ("", row.word)
            and all(word in row.found or (len(word) >= _OF_AN_ID and word in row.id) for word in words)
        ]
        wanted.sort(key=_KEYS.get(asked.sort, _KEYS["date"]), reverse=asked.descending)
        pages = max(1, -(-len(wanted) // PAGE))
        page = min(max(1, asked.page), pages)
        return Page(
            rows=wanted[(page - 1) * PAGE : page * PAGE],
            total=len(wanted),
            page=page,
            pages=pages,
            outcomes=sorted({state for _, state in shown if state}),
            words=sorted({row.word for row in every if row.word}),
            every=len(every),
            kinds=[kind for kind in KINDS if any(row.kind == kind for row in every)],
        )

    def _row(self, run: str) -> tuple[Marks, Row]:
        folder = (
            f"{self._root}/{run}"  # paths as texts: with a thousand sprints, making others takes longer than looking
        )
        marks = tuple(each for name in _FILES[run.partition("_")[0]] for each in mark(f"{folder}/{name}"))
        known = self._known.get(run)
        if known is not None and known[0] == marks:
            return known
        return marks, _read(self._store, run)


def _read(store: Store, run: str) -> Row:
    """A run from its summary; a sprint that has none is read from its journal."""
    folder = store.root / run
    if run.startswith("sweep"):
        return _read_sweep(folder)
    if run.startswith("exec"):
        return _read_single(folder)
    ended = has_ended(folder / EVENTS)
    unfinished = UNFINISHED if ended is False else ""
    try:
        summary = store.summary(run)
    except StoreError:
        summary = {"goal": _asked_goal(folder / EVENTS)}
    word = line(word_of(summary), 60)
    goal = line(summary.get("goal"), 400)
    said = line(verdict_of(summary) or part(summary, "implementation").get("error"), 400)
    began = moment(summary.get("start_time"))
    started = f"{began:%Y-%m-%d %H:%M:%S}" if began else _named_time(run)
    outcome = unfinished or line(outcome_of(summary), 40)
    return Row(run, goal, outcome, said, word, started, f"{goal}\n{said}\n{word}".casefold())


def _read_sweep(folder: Path) -> Row:
    spec, summary = read_json(folder, SWEEP), read_json(folder, SWEPT)
    goal = line(goal_of(spec, summary), 400)
    found: Any = summary
    for name in ("confirmation", "numbers", "verdict"):
        found = found.get(name) if isinstance(found, dict) else None
    verdict = found if isinstance(found, dict) else {}
    said, word = line(verdict.get("text"), 400), line(verdict.get("word"), 60)
    return _row(folder.name, goal, "completed" if summary else UNFINISHED, said, word)


def _read_single(folder: Path) -> Row:
    execution = read_json(folder, EXECUTION)
    goal = line(about(read_text(folder, CODE, 4096)), 400)
    outcome = line(execution.get("outcome"), 40) or UNFINISHED
    said = line(execution.get("message"), 400) if outcome != "completed" else ""
    return _row(folder.name, goal, outcome, said, "")


def _row(run: str, goal: str, outcome: str, said: str, word: str) -> Row:
    return Row(run, goal, outcome, said, word, _named_time(run), f"{goal}\n{said}\n{word}".casefold())


def has_ended(journal: Path) -> bool | None:
    """Whether a sprint's last step is its end; None where there is no journal to tell."""
    try:
        with journal.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - _TAIL))
            last = file.read(_TAIL).rstrip(b"\n").rpartition(b"\n")[2]
    except OSError:
        return None
    return last.startswith(b'{"step": "end"') if end else None


def _asked_goal(journal: Path) -> Any:
    try:
        with journal.open("rb") as file:
            step = json.loads(file.readline(_MAX_FIRST))
        return step["result"]["goal"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _named_time(run: str) -> str:
    """The time in a folder's name, which is this machine's, in UTC."""
    words = run.split("_")
    if len(words) < 3 or len(words[1]) != 8 or len(words[2]) != 6:
        return _NO_TIME
    try:
        found = datetime.strptime(f"{words[1]}{words[2]}", "%Y%m%d%H%M%S").astimezone(UTC)
    except (ValueError, OverflowError):
        return _NO_TIME
    return f"{found:%Y-%m-%d %H:%M:%S}"
