"""A run told to a tracker while it goes on, on the host.

The experiment is neither slowed nor ended by it: records wait in a bounded queue, a thread of its own talks to the tool,
and what goes wrong there is noted once, in one line, which begins with the tool's name.
"""

import hashlib
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from executor.experiment import AnyRecord, Execution, Outcome, Sink
from executor.sinks import PassingSink
from results.export.destinations import DestinationName, destination
from results.export.replay import execution_facts, files_of, free_name, retell, state_of
from results.export.tracker import Destination, RunInfo, State, Summary, Tracked
from results.store import RunFolder
from results.summary import verdict_of

_WAITING = 10_000
_PATIENCE = 30.0
Note = Callable[[str], None]


@dataclass(frozen=True)
class Tracking:
    """Where a person wants to see runs as they go."""

    to: DestinationName
    out: Path
    online: bool = False

    def open(self) -> Destination:
        """Loads the tool. Raises ExportError, and whatever the tool raises."""
        return destination(self.to, self.out, self.online)


class Following:
    """One sprint or single execution, told as it goes. Without `tracking` it does nothing.

    Each attempt is a run of its own, which ends when the next begins, or with the whole: then the report is there to be
    taken along. A study that goes on in a further container goes on in its run.
    """

    def __init__(
        self, tracking: Tracking | None, folder: Path, facts: Mapping[str, str], note: Note, patience: float = _PATIENCE
    ) -> None:
        self._tracking, self._folder, self._facts, self._note, self._patience = tracking, folder, facts, note, patience
        self._now: _Told | None = None
        self._code = ""
        self._execution: Execution | None = None

    def attempt(self, sink: Sink, code: str) -> Sink:
        """A sink that passes everything on to `sink`, and tells of it. The same code again is a further container."""
        if self._tracking is None:
            return sink
        if self._now is not None and code == self._code:
            self._now = self._now.going_on(sink)
            return self._now
        self._finish({})
        self._code = code
        facts = {**self._facts, "code_sha256": hashlib.sha256(code.encode()).hexdigest()}
        self._now = _Told(sink, _Feed(self._tracking, self._note, self._patience), self._folder.name, facts)
        return self._now

    def ended(self, execution: Execution) -> None:
        """How the attempt ended."""
        self._execution = execution

    def conclude(self, summary: Mapping[str, Any]) -> None:
        """How the whole was judged. Where all runs were made before, by a process that broke off, they are told now."""
        if self._tracking is not None and not self._code:
            feed = _Feed(self._tracking, self._note, self._patience)
            feed.retell(RunFolder(self._folder), summary)
        verdict = verdict_of(dict(summary))
        self._finish({"verdict": verdict} if verdict else {})

    def _finish(self, more: Mapping[str, str]) -> None:
        if self._now is None:
            return
        now, execution, self._now, self._execution = self._now, self._execution, None, None
        state: State = "killed"
        facts: dict[str, str] = {}
        if execution is not None:
            state = state_of(execution.outcome.value, execution.outcome is Outcome.COMPLETED)
            facts = execution_facts(execution.model_dump(mode="json", exclude={"metrics", "stdout", "stderr"}))
        now.end(Summary(state, {**facts, **more}, files_of(self._folder, artifacts=False)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish({})


class _Told(PassingSink):
    """The sink of one attempt, which tells of its records."""

    def __init__(self, then: Sink, feed: "_Feed", run: str, facts: Mapping[str, str]) -> None:
        super().__init__(then)
        self._feed, self._run, self._facts = feed, run, facts
        self._begun = False

    def going_on(self, then: Sink) -> "_Told":
        """For the next container of the same study."""
        other = _Told(then, self._feed, self._run, self._facts)
        other._begun = self._begun
        return other

    def record(self, record: AnyRecord) -> None:
        super().record(record)
        self._begin(record.t)
        self._feed.put(lambda tracked: tracked.record(record))

    def end(self, summary: Summary) -> None:
        """Waits until the tool has it all, but not for ever."""
        self._begin(0.0)
        self._feed.end(summary)

    def _begin(self, t: float) -> None:
        """With the first record: only then is it known when the experiment began."""
        if not self._begun:
            self._begun = True
            self._feed.begin(RunInfo(self._run, time.time() - t, self._facts))


class _Feed:
    """The thread that talks to the tool."""

    def __init__(self, tracking: Tracking, note: Note, patience: float) -> None:
        self._tracking, self._note, self._patience = tracking, note, patience
        self._jobs: queue.Queue[Callable[[Tracked], None]] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._guarded, args=(self._follow,), daemon=True, name="tracker")
        self._run: RunInfo | None = None
        self._dropped = 0
        self._summary: Summary | None = None
        self._over = threading.Event()

    def begin(self, run: RunInfo) -> None:
        self._run = run
        self._thread.start()

    def put(self, job: Callable[[Tracked], None]) -> None:
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            self._dropped += 1

    def end(self, summary: Summary) -> None:
        self._summary = summary
        self._over.set()
        self._wait()

    def retell(self, folder: RunFolder, summary: Mapping[str, Any]) -> None:
        """Instead of all the others: tells a folder's records."""

        def work(to: Destination) -> None:
            retell(folder, free_name(folder.id, to), summary, to, artifacts=False)

        self._thread = threading.Thread(target=self._guarded, args=(work,), daemon=True, name="tracker")
        self._thread.start()
        self._wait()

    def _wait(self) -> None:
        self._thread.join(self._patience)
        if self._thread.is_alive():
            self._note(
                f"{self._tracking.to} did not finish within {self._patience:g} s; the run's own records are whole"
            )
        elif self._dropped:
            self._note(f"{self._tracking.to} was too slow: {self._dropped} records were left out there")

    def _guarded(self, work: Callable[[Destination], None]) -> None:
        try:
            work(self._tracking.open())
        except Exception as error:  # whatever the tool, its server or the disk did
            why = " ".join(str(error).split())[:200] or type(error).__name__
            self._note(
                f"{self._tracking.to} failed, and the run goes on without it (labsandbox export may tell it later): {why}"
            )

    def _follow(self, to: Destination) -> None:
        assert self._run is not None
        tracked = Tracked(to)
        try:
            tracked.begin(RunInfo(free_name(self._run.id, to), self._run.began, self._run.facts))
            while (job := self._next()) is not None:
                job(tracked)
            tracked.end(self._ending())
        except Exception:
            tracked.abandon()
            raise

    def _next(self) -> Callable[[Tracked], None] | None:
        """The next job; None after the last."""
        while True:
            try:
                return self._jobs.get(timeout=0.1)
            except queue.Empty:
                if self._over.is_set() and self._jobs.empty():
                    return None

    def _ending(self) -> Summary:
        found = self._summary or Summary("killed")
        if not self._dropped:
            return found
        return replace(found, facts={**found.facts, "too_slow": f"{self._dropped} records were left out"})
