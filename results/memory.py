"""What earlier sprints found: an index over a results folder, for the next discussion and for people.

The folders are the truth; the index (SQLite, FTS5) is made from them and brought up to date before every use, so a missing or
damaged one costs a moment. A finding is superseded by a better-powered one on the same question, never averaged with it.
"""

import json
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from executor.experiment import Config
from results.findings import Analysis
from results.store import SUMMARY, Store, StoreError
from results.summary import Summary, ended_of, final_implementation, outcome_of, part, verdict_of

_VERSION = 2
_BUSY = 20.0
"""Seconds to wait for another process that writes to the index."""
_MAX_TEXT = 4000
_MAX_WORDS = 40
_MAX_REPAIRS = 5
_SAME_SCALE = 2.0
"""How many times as long a training may be and still ask the same."""
_WORD = re.compile(r"\w+")
_DATA = re.compile(r"\blab\.(text|digits)\(")
# Words of so many goals that they say nothing of what one is about.
_COMMON = frozenset(
    _WORD.findall(
        "a an and are as at be by compare compared do does for from how if impact in is it measure of on or small test than"
        " the to training versus vs what whether with"
    )
)


class Setting(BaseModel):
    """What tuning chose for an arm."""

    model_config = ConfigDict(frozen=True)

    arm: str
    config: Config


class Effect(BaseModel):
    """An arm against the baseline, as an analysis had it."""

    model_config = ConfigDict(frozen=True)

    arm: str
    baseline: str
    pairs: int
    mean: float
    low: float
    high: float


class Finding(BaseModel):
    """What one sprint left."""

    model_config = ConfigDict(frozen=True)

    sprint: str
    goal: str
    when: str
    outcome: str
    word: str
    """The verdict's; empty where there was none."""
    verdict: str
    failure: str
    """Why it did not complete; empty where it did."""
    repairs: tuple[str, ...] = ()
    """What went wrong on the way, and what was decided."""
    factor: str = ""
    primary: str = ""
    settings: tuple[Setting, ...] = ()
    """Of the arms whose tuning did not end at an edge."""
    effects: tuple[Effect, ...] = ()
    sound: bool = False
    """Whether every gate held."""
    data: tuple[str, ...] = ()
    """Which of the lab's data sets the code used."""
    length: float | None = None
    """What a training of the baseline was given: its mean tokens, else samples, else steps."""
    superseded_by: str | None = None
    """The sprint that asked the same with more power."""

    @property
    def question(self) -> str:
        """Findings with the same factor, arms, metric and data may answer the same; empty where nothing was compared."""
        arms = sorted({name for effect in self.effects for name in (effect.arm, effect.baseline)})
        # "arm" is a factor that nobody named: only the goal tells what it was.
        factor = self.factor if self.factor != "arm" else f"arm: {self.goal.casefold()}"
        return json.dumps([factor, arms, self.primary, self.data]) if arms else ""

    def at_the_scale_of(self, other: "Finding") -> bool:
        """Whether trainings were about as long: who wins after 30 steps need not win after 3000."""
        if not self.length or not other.length:
            return self.length == other.length
        return 1 / _SAME_SCALE <= self.length / other.length <= _SAME_SCALE

    @property
    def power(self) -> tuple[bool, int, float]:
        """A finding that may be believed before one that may not, then more pairs, then narrower intervals."""
        if not self.effects:
            return self.sound, 0, 0.0
        return self.sound, min(one.pairs for one in self.effects), -max(one.high - one.low for one in self.effects)


@dataclass(frozen=True)
class Memory:
    """The index of one results folder."""

    path: Path
    """The database's file; several results folders may share it."""
    results: Path

    def search(self, text: str, limit: int = 10) -> list[Finding]:
        """The findings that have most to do with a text, best first; all its words are plain words."""
        words = [word for word in _WORD.findall(text.lower()) if word not in _COMMON][:_MAX_WORDS]
        if not words:
            return []
        query = " OR ".join(f'"{word}"' for word in dict.fromkeys(words))
        with self._open() as database:
            rows = database.execute(
                "SELECT sprints.sprint, finding FROM texts JOIN sprints ON sprints.rowid = texts.rowid"
                " WHERE texts MATCH ? AND root = ? ORDER BY bm25(texts, 4.0, 1.0, 2.0, 1.0) LIMIT ?",
                (query, self._root, limit),
            ).fetchall()
            return self._findings(database, rows)

    def show(self, sprint: str) -> Finding | None:
        """What is known of one sprint."""
        name = sprint if sprint.startswith("sprint_") else f"sprint_{sprint}"
        with self._open() as database:
            rows = database.execute(
                "SELECT sprint, finding FROM sprints WHERE root = ? AND sprint = ?", (self._root, name)
            ).fetchall()
            return next(iter(self._findings(database, rows)), None)

    def rebuild(self) -> int:
        """Makes the index of this folder anew, and returns how many sprints it has."""
        with self._open(fresh=True) as database:
            return int(database.execute("SELECT count(*) FROM sprints WHERE root = ?", (self._root,)).fetchone()[0])

    @property
    def _root(self) -> str:
        return str(self.results.absolute())

    @contextmanager
    def _open(self, *, fresh: bool = False) -> Iterator[sqlite3.Connection]:
        """The index, up to date. One that cannot be read is made anew. Raises StoreError."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                database = self._connected()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                self.path.unlink()  # it is made from the folders, and holds nothing else
                database = self._connected()
            try:
                self._refresh(database, fresh)
                yield database
            finally:
                database.close()
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"the index of past sprints {self.path}: {error}") from None

    def _connected(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, timeout=_BUSY, isolation_level=None)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            if database.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
                with _transaction(database):
                    for name in ("texts", "sprints"):
                        database.execute(f"DROP TABLE IF EXISTS {name}")
                    database.execute(
                        "CREATE TABLE sprints (root TEXT, sprint TEXT, stamp TEXT, question TEXT, finding TEXT,"
                        " UNIQUE (root, sprint))"
                    )
                    database.execute("CREATE INDEX questions ON sprints (root, question)")
                    database.execute("CREATE VIRTUAL TABLE texts USING fts5 (goal, plan, verdict, failure)")
                    database.execute(f"PRAGMA user_version = {_VERSION}")
        except BaseException:
            database.close()
            raise
        return database

    def _refresh(self, database: sqlite3.Connection, fresh: bool) -> None:
        """Takes in the sprints whose summaries are new or have changed, and forgets those that are gone."""
        there = dict(self._stamps())
        with _transaction(database):
            known = dict(database.execute("SELECT sprint, stamp FROM sprints WHERE root = ?", (self._root,)).fetchall())
            for sprint in [name for name in known if fresh or known[name] != there.get(name)]:
                (row,) = database.execute(
                    "SELECT rowid FROM sprints WHERE root = ? AND sprint = ?", (self._root, sprint)
                ).fetchone()
                database.execute("DELETE FROM texts WHERE rowid = ?", (row,))
                database.execute("DELETE FROM sprints WHERE rowid = ?", (row,))
            store = Store(self.results)
            for sprint, stamp in there.items():
                if not fresh and known.get(sprint) == stamp:
                    continue
                try:
                    summary = store.summary(sprint)
                except StoreError:
                    continue  # half written or damaged: it says nothing
                self._add(database, sprint, stamp, summary)

    def _stamps(self) -> Iterable[tuple[str, str]]:
        for sprint in Store(self.results).runs():
            try:
                state = (self.results / sprint / SUMMARY).stat()
            except OSError:
                continue
            yield sprint, f"{state.st_mtime_ns}-{state.st_size}-{state.st_ino}"

    def _add(self, database: sqlite3.Connection, sprint: str, stamp: str, summary: Summary) -> None:
        finding = finding_of(sprint, summary)
        row = database.execute(
            "INSERT INTO sprints (root, sprint, stamp, question, finding) VALUES (?, ?, ?, ?, ?)",
            (self._root, sprint, stamp, finding.question, finding.model_dump_json()),
        ).lastrowid
        plan = _text(part(summary, "discussion").get("action_plan"))
        failures = " ".join([finding.failure, *finding.repairs])
        texts = (finding.goal, plan, f"{finding.verdict} {finding.factor}", failures)
        database.execute(
            "INSERT INTO texts (rowid, goal, plan, verdict, failure) VALUES (?, ?, ?, ?, ?)", (row, *texts)
        )

    def _findings(self, database: sqlite3.Connection, rows: Iterable[tuple[str, str]]) -> list[Finding]:
        found = [Finding.model_validate_json(text) for _, text in rows]
        return [one.model_copy(update={"superseded_by": self._better(database, one)}) for one in found]

    def _better(self, database: sqlite3.Connection, finding: Finding) -> str | None:
        """The sprint whose finding supersedes this one."""
        if not finding.question:
            return None
        rows = database.execute(
            "SELECT finding FROM sprints WHERE root = ? AND question = ?", (self._root, finding.question)
        ).fetchall()
        others = [Finding.model_validate_json(text) for (text,) in rows]
        rivals = [one for one in others if one.sprint == finding.sprint or one.at_the_scale_of(finding)]
        # There may be none: another process may have forgotten this sprint meanwhile.
        best = max(rivals, key=lambda one: (one.power, one.when), default=finding)
        return best.sprint if best.power > finding.power else None


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


def finding_of(sprint: str, summary: Summary) -> Finding:
    """What a summary says, whoever wrote it; bounded."""
    analysis = _analysis(summary)
    outcome = outcome_of(summary) or ""
    error = part(summary, "implementation").get("error")
    code = final_implementation(summary).get("code")
    return Finding(
        sprint=sprint,
        goal=_text(summary.get("goal"), 500),
        when=_text(summary.get("start_time"), 40),
        outcome=_text(outcome, 40),
        word=analysis.verdict.word if analysis else "",
        verdict=_text(verdict_of(summary), 1000),
        failure="" if outcome == "completed" else _text(ended_of(summary) or error, 500),
        repairs=tuple(_repairs(summary)),
        factor=analysis.factor or "" if analysis else "",
        primary=analysis.primary or "" if analysis else "",
        settings=tuple(
            Setting(arm=arm.name, config=arm.config)
            for arm in (analysis.arms if analysis else ())
            if arm.config and arm.ok and not arm.at_edge
        ),
        effects=tuple(
            Effect(arm=one.arm, baseline=one.baseline, pairs=one.pairs, mean=one.mean, low=one.low, high=one.high)
            for one in (analysis.contrasts if analysis else ())
        ),
        sound=bool(analysis and all(gate.ok for gate in analysis.gates)),
        data=tuple(sorted(set(_DATA.findall(code)))) if isinstance(code, str) else (),
        length=_length(analysis.arms[0].values) if analysis and analysis.arms else None,
    )


def _repairs(summary: Summary) -> Iterator[str]:
    attempts = part(summary, "self_healing").get("attempts")
    for attempt in attempts[:_MAX_REPAIRS] if isinstance(attempts, list) else ():
        if isinstance(attempt, dict):
            yield f"{_text(attempt.get('failure'), 300)} ({_text(attempt.get('decision'), 100)})"


def _length(values: dict[str, float]) -> float | None:
    return next((values[name] for name in ("tokens", "samples", "steps") if name in values), None)


def _analysis(summary: Summary) -> Analysis | None:
    try:
        return Analysis.model_validate(part(summary, "validation").get("numbers"))
    except ValidationError:
        return None


def _text(value: Any, limit: int = _MAX_TEXT) -> str:
    return " ".join(str(value).split())[:limit] if value is not None else ""


Recall = Callable[[str], list[Finding]]
"""What is known that has to do with a goal."""
