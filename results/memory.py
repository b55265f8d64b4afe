"""What earlier sprints and sweeps found: an index over a results folder, for the next discussion and for people.

The folders are the truth; the index (SQLite, FTS5) is made from them and brought up to date before every use, so a missing or
damaged one costs a moment. A finding is superseded by a better-powered one on the same question, never averaged with it.
"""

import json
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from results.lessons import MAX_TEXT, Finding, finding_of, finding_of_sweep
from results.readable import line
from results.store import CODE, SUMMARY, SWEEP, SWEPT, Store, StoreError, read_object
from results.summary import part

_VERSION = 4
_BUSY = 20.0
"""Seconds to wait for another process that writes to the index."""
_MAX_WORDS = 40
_WORD = re.compile(r"\w+")
# Words of so many goals that they say nothing of what one is about.
_COMMON = frozenset(
    _WORD.findall(
        "a an and are as at be by compare compared do does for from how if impact in is it measure of on or small test than"
        " the to training versus vs what whether with"
    )
)


@dataclass(frozen=True)
class Memory:
    """The index of one results folder."""

    path: Path
    """The database's file; several results folders may share it."""
    results: Path

    def search(self, text: str, limit: int = 10) -> list[Finding]:
        """The findings that have most to do with a text, best first; all its words are plain words."""
        with self._open() as database:
            rivals = _Rivals(database, self._root)
            return [_marked(hit, rivals) for hit in islice(self._hits(database, text), limit)]

    def current(self, text: str, limit: int = 10, without: str = "") -> list[Finding]:
        """The same to go by: for each hit the finding that supersedes it, each once, so that a question that was asked many
        times takes one place. `without`: a run that is to be left out, and so supersedes nothing."""
        found: dict[str, Finding] = {}
        with self._open() as database:
            rivals = _Rivals(database, self._root, without)
            for hit in self._hits(database, text):
                if hit.sprint != without:
                    standing = rivals.standing(hit)
                    found.setdefault(_asked(standing), standing)
                if len(found) >= limit:
                    break
        return list(found.values())

    def _hits(self, database: sqlite3.Connection, text: str) -> Iterator[Finding]:
        """Every finding in which one of the words is, best first."""
        words = [word for word in _WORD.findall(text.lower()) if word not in _COMMON][:_MAX_WORDS]
        if words:
            query = " OR ".join(f'"{word}"' for word in dict.fromkeys(words))
            rows = database.execute(
                "SELECT finding FROM texts JOIN sprints ON sprints.rowid = texts.rowid"
                " WHERE texts MATCH ? AND root = ? ORDER BY bm25(texts, 4.0, 1.0, 2.0, 1.0)",
                (query, self._root),
            )
            yield from (Finding.model_validate_json(found) for (found,) in rows)

    def show(self, sprint: str) -> Finding | None:
        """What is known of one sprint or sweep."""
        name = sprint if sprint.startswith(("sprint_", "sweep_")) else f"sprint_{sprint}"
        with self._open() as database:
            row = database.execute(
                "SELECT finding FROM sprints WHERE root = ? AND sprint = ?", (self._root, name)
            ).fetchone()
            found = Finding.model_validate_json(row[0]) if row else None
            return _marked(found, _Rivals(database, self._root)) if found else None

    def rebuild(self) -> int:
        """Makes the index of this folder anew, and returns how many runs it has."""
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
            for sprint, stamp in there.items():
                if not fresh and known.get(sprint) == stamp:
                    continue
                try:
                    finding, plan = self._read(sprint)
                except (OSError, ValueError, RecursionError):
                    continue  # half written or damaged: it says nothing
                self._add(database, stamp, finding, plan)

    def _stamps(self) -> Iterable[tuple[str, str]]:
        for run in Store(self.results).runs(("sprint", "sweep")):
            try:
                state = (self.results / run / (SWEPT if run.startswith("sweep_") else SUMMARY)).stat()
            except OSError:
                continue
            yield run, f"{state.st_mtime_ns}-{state.st_size}-{state.st_ino}"

    def _read(self, run: str) -> tuple[Finding, str]:
        """What a run left, and what it set out to do. Raises OSError or ValueError where that cannot be read."""
        store = Store(self.results)
        if not run.startswith("sweep_"):
            summary = store.summary(run)
            return finding_of(run, summary), line(part(summary, "discussion").get("action_plan"), MAX_TEXT)
        folder = store.existing(run).path
        summary, spec = read_object(folder / SWEPT), read_object(folder / SWEEP)
        try:
            code = (folder / CODE).read_text(encoding="utf-8", errors="replace")
        except OSError:
            code = ""
        return finding_of_sweep(run, summary, spec, code), line(summary.get("space"), MAX_TEXT)

    def _add(self, database: sqlite3.Connection, stamp: str, finding: Finding, plan: str) -> None:
        row = database.execute(
            "INSERT INTO sprints (root, sprint, stamp, question, finding) VALUES (?, ?, ?, ?, ?)",
            (self._root, finding.sprint, stamp, finding.question, finding.model_dump_json()),
        ).lastrowid
        failures = " ".join([finding.failure, *finding.repairs])
        texts = (finding.goal, plan, f"{finding.verdict} {finding.factor}", failures)
        database.execute(
            "INSERT INTO texts (rowid, goal, plan, verdict, failure) VALUES (?, ?, ?, ?, ?)", (row, *texts)
        )


@dataclass
class _Rivals:
    """Findings by their question, each question read once."""

    database: sqlite3.Connection
    root: str
    without: str = ""
    known: dict[str, list[Finding]] = field(default_factory=dict)

    def better(self, finding: Finding) -> Finding | None:
        """The one that supersedes a finding."""
        best = self._best(finding)
        return best if best.power > finding.power else None

    def standing(self, finding: Finding) -> Finding:
        """The one that nothing supersedes; of several that are as good (a sprint that was repeated), the newest."""
        while (best := self._best(finding)).sprint != finding.sprint:
            finding = best
        return finding

    def _best(self, finding: Finding) -> Finding:
        others = self._of(finding.question) if finding.question else []
        rivals = [finding, *(one for one in others if one.at_the_scale_of(finding))]
        return max(rivals, key=lambda one: (one.power, one.when, one.sprint))

    def _of(self, question: str) -> list[Finding]:
        if question not in self.known:
            rows = self.database.execute(
                "SELECT finding FROM sprints WHERE root = ? AND question = ? AND sprint != ?",
                (self.root, question, self.without),
            )
            self.known[question] = [Finding.model_validate_json(text) for (text,) in rows]
        return self.known[question]


def _marked(finding: Finding, rivals: _Rivals) -> Finding:
    better = rivals.better(finding)
    return finding.model_copy(update={"superseded_by": better.sprint if better else None})


def _asked(finding: Finding) -> str:
    """The same for findings of which one is enough: a dead end that was met twice is one."""
    return finding.sprint if finding.question else json.dumps([finding.goal.casefold(), finding.word, finding.failure])


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


Recall = Callable[[str], list[Finding]]
"""What is known that has to do with a goal."""
